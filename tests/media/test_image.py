"""Pictures from files: the reference's pixels, upright, on white, one sentence for what cannot be read."""

from __future__ import annotations

import hashlib
import io
import json
import random
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from mlxmtp.errors import UsageError
from mlxmtp.media.image import MOST_PIXELS, open_picture
from mlxmtp.media.source import media_file
from scripts.goldens.pictures import picture
from tests.golden import FOLDER
from tests.media.damage import damaged, encoded, samples

RECORDED: list[dict[str, Any]] = json.loads((FOLDER / "media" / "pixels.json").read_text())


def png(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def seen(data: bytes) -> Any:
    return np.asarray(open_picture(data).image)


def test_pixels_are_those_of_the_reference_at_every_budget() -> None:
    sizes = list(dict.fromkeys((one["size"][0], one["size"][1]) for one in RECORDED))
    files = {size: png(Image.fromarray(picture(*size, seed))) for seed, size in enumerate(sizes)}
    opened = {size: open_picture(data) for size, data in files.items()}
    for one in RECORDED:
        pixels = opened[one["size"][0], one["size"][1]].pixels(one["budget"], 48)
        assert [*pixels.shape] == one["pixels"]
        assert hashlib.sha256(pixels.tobytes()).hexdigest()[:16] == one["sha256"], one


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "RGB"])
def test_other_colours_become_rgb_as_pillow_has_it(mode: str) -> None:
    kind = {"CMYK": "TIFF", "YCbCr": "TIFF", "HSV": "PNG"}.get(mode, "PNG")
    source = Image.fromarray(picture(50, 30, 1)).convert(mode)
    if mode == "HSV":  # no format keeps it
        assert np.array_equal(np.asarray(open_picture(source).image), np.asarray(source.convert("RGB")))
        return
    data = png(source, kind)
    assert np.array_equal(seen(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_a_cmyk_photo_keeps_its_colours() -> None:
    red = png(Image.new("RGB", (32, 32), (200, 30, 40)).convert("CMYK"), "JPEG", quality=95)
    assert np.abs(seen(red).astype(int) - (200, 30, 40)).max() < 12


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "TIFF of two pages"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_a_turned_photo_is_seen_upright(kind: str, turn: int) -> None:
    upright = Image.fromarray(picture(80, 40, 2))
    ways = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose that turns it as the camera was held
    stored = upright if turn == 1 else upright.transpose(Image.Transpose(ways[turn]))
    exif = Image.Exif()
    exif[0x0112] = turn
    options: dict[str, Any] = (
        {"quality": 100, "subsampling": 0} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    )
    if kind == "TIFF of two pages":
        kind, options = "TIFF", {"save_all": True, "append_images": [stored]}
    found = seen(png(stored, kind, exif=exif, **options))
    assert found.shape == (40, 80, 3)
    assert np.abs(found.astype(int) - np.asarray(upright)).mean() < (2 if kind == "JPEG" else 1e-9)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_damaged_metadata_leave_a_picture_as_it_is(kind: str) -> None:
    image = Image.fromarray(picture(80, 40, 2))
    plain = seen(png(image, kind))
    turned = b"Exif\0\0II*\0\x08\0\0\0\2\0\x12\1\3\0\1\0\0\0\6\0\0\0"  # and a second entry, of which there is a part
    for exif in (b"Exif\0\0no TIFF at all", b"Exif\0\0II*\0", b"Exif\0\0" + bytes(40), turned + b"\x0f\1"):
        found = seen(png(image, kind, exif=exif))
        assert any(np.array_equal(found, one) for one in (plain, np.rot90(plain, -1)))


def test_what_is_transparent_stands_on_white() -> None:
    hidden = np.zeros((2000, 30, 4), np.uint8)
    hidden[...] = (255, 0, 255, 0)
    hidden[1500:, 10:] = (0, 0, 0, 255)
    hidden[700, 5] = (0, 0, 0, 128)
    rgba = Image.fromarray(hidden)
    palette = Image.new("P", (30, 20), 1)
    palette.putpalette([0, 0, 0, 255, 0, 255])
    palette.paste(0, (10, 10, 30, 20))
    files = [png(rgba), png(rgba, "WEBP", lossless=True), png(palette, transparency=1), png(rgba.convert("LA"))]
    files.append(png(palette, transparency=b"\xff\x00"))
    for data in files:
        found = seen(data)
        assert found[0, 0].tolist() == [255, 255, 255]
        assert found[-1, -1].tolist() == [0, 0, 0]
    assert seen(files[0])[700, 5].tolist() == [127] * 3


def test_sixteen_bits_of_grey_keep_their_shades() -> None:
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16)[None].repeat(8, 0)
    for kind in ("PNG", "TIFF"):
        found = seen(png(Image.fromarray(ramp), kind))
        assert np.array_equal(found[..., 1], np.rint(ramp / 257.0).astype(np.uint8))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_picture_is_seen(kind: str) -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "blue", "green")]
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    found = open_picture(png(frames[0], kind, save_all=True, append_images=frames[1:], **options), "many")
    assert np.asarray(found.image)[0, 0].tolist() == [255, 0, 0]
    assert found.notes == ("many has 3 frames or pages, of which the first is read.",)


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header says that it has so many pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\4IDATabcd\0\0\0\0"


def test_a_bomb_is_refused_before_its_pixels_are_there() -> None:
    with pytest.raises(UsageError, match=r"has 100,000 x 100,000 pixels, and at most 300 million are read"):
        open_picture(bomb(100_000, 100_000), "big.png")
    with pytest.raises(UsageError, match=r"big\.png is damaged"):
        open_picture(bomb(16_000, MOST_PIXELS // 16_000), "big.png")  # a phone's size is allowed; this one is empty


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "x.png is empty"),
        (b"Just some words.", "x.png is no image that can be read"),
        (encoded("PNG")[:700], "x.png is damaged"),
        (encoded("JPEG")[:300], "x.png is damaged"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "x.png is no image that can be read"),
        (png(Image.new("F", (4, 4)), "TIFF"), "x.png has floating-point pixels"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(data: bytes, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_picture(data, "x.png")
    said = str(caught.value)
    assert sentence in said
    assert "\n" not in said
    assert len(said) < 200


def check(data: bytes) -> str:
    """Read a file as the program does; return what it says, or nothing if it is a picture. Other faults are raised."""
    try:
        file = media_file(data, "x")
        if file is None or file.kind != "image":
            return "no image"
        pixels = open_picture(file.data, file.name).pixels(70, 48)
    except UsageError as error:
        said = str(error)
        assert said.startswith("x ")
        assert said.endswith((".", "smaller."))
        assert "\n" not in said
        return said
    assert pixels.shape[2] == 3
    assert 0 < pixels.shape[0] * pixels.shape[1] <= 70 * 48 * 48
    return ""


def test_damaged_files_are_pictures_or_one_sentence() -> None:
    """`python -m scripts.hostile_media` does so with thousands, in processes of their own."""
    for name, data in samples().items():
        assert check(data) == "", name
        dice = random.Random(name)
        for _ in range(8):
            check(damaged(data, dice))


def test_the_sizes_of_upright_pictures_count() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    tall = png(Image.fromarray(picture(80, 40, 2)), exif=exif)
    assert open_picture(tall).size == (40, 80)
    assert ImageOps.exif_transpose(Image.open(io.BytesIO(tall))).size == (40, 80)
