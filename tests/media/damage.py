"""Damaged pictures and sounds: small files of every format, and what disks, networks and people do to them."""

from __future__ import annotations

import io
import random
from collections.abc import Callable

import soundfile
from PIL import Image

from scripts.goldens.pictures import picture, sound

SOUND_FORMATS = {
    "WAV": ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW", "IMA_ADPCM"),
    "FLAC": ("PCM_S8", "PCM_16", "PCM_24"),
    "OGG": ("VORBIS", "OPUS"),
    "MP3": ("MPEG_LAYER_III",),
    "AIFF": ("PCM_16",),
    "CAF": ("PCM_16", "ALAC_16"),
    "AU": ("PCM_16",),
    "RF64": ("PCM_16",),
}
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "TIFF", "BMP", "JPEG2000")


def encoded(kind: str, mode: str = "RGB", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(60, 40, 3)).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def samples() -> dict[str, bytes]:
    """Return a file of each format that this Pillow writes, and of some kinds inside formats."""
    found = {kind: encoded(kind) for kind in FORMATS if kind in Image.SAVE}
    frames = [Image.fromarray(picture(30, 20, seed)) for seed in range(3)]
    for kind in ("GIF", "PNG", "TIFF", "WEBP"):
        buffer = io.BytesIO()
        frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
        found[f"{kind} of three"] = buffer.getvalue()
    exif = Image.Exif()
    exif[0x0112] = 6
    found["JPEG turned"] = encoded("JPEG", exif=exif.tobytes(), progressive=True)
    found["JPEG CMYK"] = encoded("JPEG", "CMYK")
    found["PNG palette"] = encoded("PNG", "P", transparency=3)
    found["TIFF packed"] = encoded("TIFF", compression="tiff_lzw")
    return found


def sounds() -> dict[str, bytes]:
    """Return a file of each format and coding that libsndfile writes and we read."""
    found = {}
    for container, codings in SOUND_FORMATS.items():
        for coding in codings:
            buffer = io.BytesIO()
            soundfile.write(buffer, sound(8000, 1), 16_000, format=container, subtype=coding)
            found[f"{container} {coding}"] = buffer.getvalue()
    return found


def damaged(data: bytes, random: random.Random) -> bytes:
    """Return a file after one or some accidents."""
    for _ in range(random.choice((1, 1, 2, 8))):
        data = random.choice(_ACCIDENTS)(bytearray(data or b"\0"), random)
    return data


def _place(data: bytearray, random: random.Random) -> int:
    """Return a place, every other time near the beginning, where sizes stand."""
    return random.randrange(min(len(data), random.choice((64, 10**9))))


def _cut(data: bytearray, random: random.Random) -> bytes:
    return bytes(data[: random.randrange(len(data))])


def _flip(data: bytearray, random: random.Random) -> bytes:
    data[_place(data, random)] ^= 1 << random.randrange(8)
    return bytes(data)


def _overwrite(data: bytearray, random: random.Random) -> bytes:
    place, length = _place(data, random), random.choice((1, 2, 4, 8, 100))
    data[place : place + length] = random.randbytes(length) if random.random() < 0.5 else bytes(length)
    return bytes(data)


def _enlarge(data: bytearray, random: random.Random) -> bytes:
    """Say that something is as long as it can be."""
    place, width = _place(data, random), random.choice((2, 4))
    data[place : place + width] = random.choice((b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\x40\0"))[-width:]
    return bytes(data)


def _remove(data: bytearray, random: random.Random) -> bytes:
    place = _place(data, random)
    del data[place : place + random.choice((1, 2, 10, 100))]
    return bytes(data)


def _repeat(data: bytearray, random: random.Random) -> bytes:
    place = _place(data, random)
    piece = data[place : place + random.choice((1, 4, 50, 300))]
    data[place:place] = piece * random.choice((1, 2, 30))
    return bytes(data)


_ACCIDENTS: tuple[Callable[[bytearray, random.Random], bytes], ...] = (
    _cut, _flip, _overwrite, _enlarge, _remove, _repeat,
)  # fmt: skip
