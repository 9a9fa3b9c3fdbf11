"""Files of pictures, sounds and videos, told from text by their first bytes and never by their names."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from mlxmtp.errors import UsageError
from mlxmtp.media.heif import is_heif

if TYPE_CHECKING:
    from numpy.typing import NDArray

Kind = Literal["image", "audio", "video"]

HEAD = 64
"""Bytes that tell what a file is."""
LIMIT = 512 * 2**20  # bytes of a file: an hour of uncompressed sound, more than any picture
_BEGINNINGS = (
    (b"\xff\xd8\xff", "image/jpeg"), (b"\x89PNG\r\n\x1a\n", "image/png"), (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"), (b"II*\0", "image/tiff"), (b"MM\0*", "image/tiff"), (b"BM", "image/bmp"),
    (b"\0\0\0\x0cjP  ", "image/jp2"), (b"\xff\x4f\xff\x51", "image/jp2"), (b"fLaC", "audio/flac"),
    (b"OggS\0", "audio/ogg"), (b"ID3\2", "audio/mpeg"), (b"ID3\3", "audio/mpeg"), (b"ID3\4", "audio/mpeg"),
    (b"\xff\xfb", "audio/mpeg"), (b"\xff\xfa", "audio/mpeg"), (b"\xff\xf3", "audio/mpeg"),
    (b"\xff\xf2", "audio/mpeg"), (b"\xff\xe3", "audio/mpeg"), (b"\xff\xf1", "audio/aac"), (b"\xff\xf9", "audio/aac"),
    (b"caff\0\1", "audio/x-caf"), (b".snd\0\0\0", "audio/basic"),
    (b"\x1a\x45\xdf\xa3", "video/webm"),
)  # fmt: skip
_IN_RIFF = {b"WEBP": "image/webp", b"WAVE": "audio/wav", b"AVI ": "video/x-msvideo"}
_BRANDS = {
    "image/avif": (b"avif", b"avis", b"mif1", b"msf1"),
    "audio/mp4": (b"M4A ", b"M4B "),
    "video/quicktime": (b"qt  ",),
}
"""Types by the brand of their container; all other brands are video/mp4."""
_OLD_QUICKTIME = re.compile(rb"\0\0\0\x08wide|[\0-\x1f].{3}(moov|mdat)", re.DOTALL)
"""Files without a brand: they begin with the size of a part, below LIMIT, and its name."""
_PICTURES = {
    "video/mp4": (re.compile(rb"hdlr\0{8}vide"), "audio/mp4"),
    "video/quicktime": (re.compile(rb"mhlrvide"), "audio/mp4"),
    "video/webm": (re.compile(rb"V_(VP|AV1|MPEG|MS/|THEORA)"), "audio/webm"),
}
"""What containers say of their pictures, and their types without any: memos have no beginning of their own."""


@dataclass(frozen=True, eq=False)
class MediaFile:
    """A picture, a sound or a video as it lies in a file; `media_type` is what its first bytes say."""

    name: str
    media_type: str
    data: bytes

    @property
    def kind(self) -> Kind:
        kind = kind_of(self.media_type)
        assert kind is not None, "media types begin with their kinds"
        return kind

    @cached_property
    def digest(self) -> str:
        """`sha256:` and the hash of the bytes."""
        return f"sha256:{hashlib.sha256(self.data).hexdigest()}"


def media_file(data: bytes, name: str) -> MediaFile | None:
    """Return the picture, sound or video in a file's bytes, None for anything else. Raises UsageError if too large."""
    media_type = media_type_of(data[:HEAD])
    if media_type is None:
        return None
    if len(data) > LIMIT:
        raise UsageError(f"{name} has more than {LIMIT >> 20} MB: give a smaller file.")
    if media_type in _PICTURES and not _PICTURES[media_type][0].search(data):
        media_type = _PICTURES[media_type][1]
    return MediaFile(name, media_type, data)


def kind_of(media_type: str | None) -> Kind | None:
    """Return the kind that a media type begins with."""
    kinds: tuple[Kind, ...] = ("image", "audio", "video")
    return next((kind for kind in kinds if media_type and media_type.startswith(f"{kind}/")), None)


def media_type_of(head: bytes) -> str | None:
    """Return the type of a picture, sound or video that begins with `head`; None for anything else."""
    if head[:4] in (b"RIFF", b"RF64"):
        return _IN_RIFF.get(head[8:12])
    if head[4:8] == b"ftyp":
        other = "video/mp4" if head[:2] == b"\0\0" else None  # the size of a few brands, or words
        found = next((kind for kind, brands in _BRANDS.items() if head[8:12] in brands), other)
        return "image/heic" if is_heif(head) else found
    if _OLD_QUICKTIME.match(head):
        return "video/quicktime"
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "audio/aiff"
    if head[:2] == b"BM" and (len(head) < 18 or head[15:18] != b"\0\0\0"):  # a header's size, or words like "BMW"
        return None
    return next((kind for beginning, kind in _BEGINNINGS if head.startswith(beginning)), None)


def digest(data: NDArray[Any]) -> str:
    """Return a hash of what the network gets; a picture's budget is in the shape."""
    return hashlib.sha256(f"{data.shape}".encode() + data.tobytes()).hexdigest()
