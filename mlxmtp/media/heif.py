"""HEIC, the photos of phones: by pillow-heif where it is installed, else by the converter that macOS has."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from mlxmtp.errors import UsageError

if TYPE_CHECKING:
    from PIL import Image

BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
_SECONDS = 60


def is_heif(head: bytes) -> bool:
    """Return True for the beginning of a HEIC; mif1 and msf1 may be AVIF, too, and that is said behind them."""
    return head[4:8] == b"ftyp" and head[8:12] in BRANDS and b"avif" not in head[16:64]


def open_heif(data: bytes, name: str) -> bytes | Image.Image:
    """Return the picture, upright, its pixels perhaps not read yet, or the bytes of a PNG of it.

    Raises UsageError where nothing here reads it.
    """
    try:
        import pillow_heif
    except ImportError:
        return _converted(data, name)
    try:
        image: Image.Image = pillow_heif.HeifImageFile(io.BytesIO(data))
    except (ArithmeticError, LookupError, OSError, RuntimeError, SyntaxError, TypeError, ValueError) as error:
        raise UsageError(f"{name} is damaged ({str(error)[:100]}): give an undamaged file.") from error
    return image


def _converted(data: bytes, name: str) -> bytes:
    if sys.platform == "darwin":
        with TemporaryDirectory() as folder:
            source, made = Path(folder, "photo.heic"), Path(folder, "photo.png")
            source.write_bytes(data)
            command = ["/usr/bin/sips", "-s", "format", "png", str(source), "--out", str(made)]
            try:
                subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS, check=True)
                return made.read_bytes()
            except (OSError, subprocess.SubprocessError) as error:
                raise UsageError(f"{name} is a HEIC that sips cannot convert: give it as JPEG.") from error
    raise UsageError(f"{name} is HEIC, which needs pillow-heif: pip install 'mlxmtp[heic]', or give it as JPEG.")
