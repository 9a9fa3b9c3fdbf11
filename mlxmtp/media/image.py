"""Pictures as a vision tower reads them: upright, RGB on white, resized to a budget of soft tokens.

The reference is transformers' Gemma4ImageProcessorPil, pixel for pixel; its torchvision path differs in up to one of a
hundred values. Other on purpose: what is transparent stands on white (there colours that nobody saw appear), and 16-bit
grey keeps its shades (there all but the darkest 256 are white).
"""

from __future__ import annotations

import io
import math
import struct
import threading
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from mlxmtp.errors import UsageError
from mlxmtp.limits import IMAGE_TOKENS
from mlxmtp.media.heif import is_heif, open_heif

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_PIXELS = 300_000_000
"""Pixels of a picture: more than any camera's, less than what fills the memory. Pillow's own limit refuses phones."""
_STRIP = 1024  # rows of a transparent picture that are put on white at once
_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "TIFF", "BMP", "JPEG2000")
_FAULTS = (
    ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError, SyntaxError, TypeError,
    ValueError, struct.error, Image.DecompressionBombError,
)  # fmt: skip
"""What Pillow raises for damaged files."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""What makes a picture upright, by the orientation in its metadata."""
_OPENING = threading.Lock()  # Pillow's limit is a global of its module


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A picture at its own size, upright and RGB. `notes`: sentences on what was left out of the file."""

    name: str
    image: Image.Image
    media_type: str = "image/png"
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.image.size

    def pixels(self, budget: int, side: int) -> NDArray[np.uint8]:
        """Return pixels [height, width, 3] for at most `budget` soft tokens of `side` x `side` pixels."""
        width, height = self.size
        rows, columns = target_size(height, width, budget, side)
        image = self.image
        if (columns, rows) != image.size:
            image = image.resize((columns, rows), Image.Resampling.BICUBIC)
        return np.asarray(image)


def small_png(picture: Picture, width: int, height: int) -> bytes:
    """Return a picture of at most that size as PNG, to be looked at."""
    small = picture.image.copy()
    small.thumbnail((width, height))
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    return buffer.getvalue()


def target_size(height: int, width: int, budget: int, side: int = 48) -> tuple[int, int]:
    """Return rows and columns of pixels: the budget's area in the picture's proportions, in multiples of `side`.

    A picture is always resized, also upwards. Raises ValueError for a budget that the model was not trained with.
    """
    if budget not in IMAGE_TOKENS:
        known = ", ".join(map(str, IMAGE_TOKENS))
        raise ValueError(f"an image can have a budget of {known} tokens, not {budget!r:.20}")
    factor = math.sqrt(budget * side * side / (height * width))
    rows, columns = (math.floor(factor * length / side) * side for length in (height, width))
    if rows == 0:
        return side, min(width // height * side, budget * side)
    if columns == 0:
        return min(height // width * side, budget * side), side
    return rows, columns


def open_picture(source: bytes | Image.Image, name: str = "the image") -> Picture:
    """Return the picture in the bytes of a file, or one that Pillow has opened.

    Raises UsageError, which names it, for what is damaged, too large or no picture.
    """
    if isinstance(source, Image.Image):
        return _upright(source, name)
    if not source:
        raise UsageError(f"{name} is empty: give an image.")
    if is_heif(source):
        return open_picture(open_heif(source, name), name)
    try:
        with _OPENING, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, about odd metadata: they are no news for a reader
            limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                Image.init()  # an installation may lack some formats
                image = Image.open(io.BytesIO(source), formats=[one for one in _FORMATS if one in Image.OPEN])
            finally:
                Image.MAX_IMAGE_PIXELS = limit
    except _FAULTS as error:
        raise _unreadable(name, error) from error
    return _upright(image, name)


def _upright(image: Image.Image, name: str) -> Picture:
    width, height = image.size
    if width * height > MOST_PIXELS:
        megapixels = MOST_PIXELS // 1_000_000
        raise UsageError(
            f"{name} has {width:,} x {height:,} pixels, and at most {megapixels} million are read: make it smaller."
        )
    if not width or not height:
        raise UsageError(f"{name} has no pixels: give an image.")
    kind = Image.MIME.get(image.format or "PNG", "image/png")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Before `load`, which may turn a TIFF: counting reads the orientation again, and it would be turned twice.
            frames = getattr(image, "n_frames", 1) if image.format != "MPO" else 1  # there others are depth, previews
            image.load()
            upright = _rgb(_turned(image), name)
    except _FAULTS as error:
        raise _unreadable(name, error) from error
    notes = (f"{name} has {frames} frames or pages, of which the first is read.",) if frames > 1 else ()
    return Picture(name, upright, kind, notes)


def _turned(image: Image.Image) -> Image.Image:
    """Return the picture upright, as it is where its metadata are damaged: no pixel depends on them."""
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except _FAULTS:
        return image
    return image if turn is None else image.transpose(turn)


def _rgb(image: Image.Image, name: str) -> Image.Image:
    """Return the picture in RGB, on white where it is transparent."""
    if image.mode.startswith("I"):
        grey = np.clip(np.asarray(image), 0, 65535).astype(np.uint32)
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise UsageError(f"{name} has floating-point pixels: convert it to PNG first.")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        width, height = image.size
        made = Image.new("RGB", image.size)
        for top in range(0, height, _STRIP):  # the whole picture would be in memory four times
            layers = image.crop((0, top, width, min(top + _STRIP, height))).convert("RGBA")
            white = Image.new("RGBA", layers.size, (255, 255, 255, 255))
            made.paste(Image.alpha_composite(white, layers).convert("RGB"), (0, top))
        return made
    return image.convert("RGB")


def _unreadable(name: str, error: BaseException) -> UsageError:
    if isinstance(error, UsageError):
        return error
    if isinstance(error, UnidentifiedImageError):
        return UsageError(f"{name} is no image that can be read: give JPEG, PNG, WebP, AVIF, GIF, TIFF or BMP.")
    said = str(error).strip().rstrip(".") or type(error).__name__
    return UsageError(f"{name} is damaged ({said:.100}): give an undamaged file.")
