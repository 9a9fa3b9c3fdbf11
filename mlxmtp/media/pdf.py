"""Pages of a PDF, by pypdfium2: their text where they have a layer of it, else pictures."""

import io
import math
from contextlib import closing
from dataclasses import dataclass
from threading import Lock
from typing import Any

from mlxmtp.errors import UsageError
from mlxmtp.limits import IMAGE_TOKENS

MARK = b"%PDF-"
MOST_PICTURES = 100
_TEXT = 40  # characters of a page that is text; fewer are the page number of a scan
_AREA = max(IMAGE_TOKENS) * 48 * 48  # pixels of a page: as many as the largest budget reads
_LONGEST = 20_000  # pixels of a side
_READING = Lock()  # pdfium is for one thread at a time


@dataclass(frozen=True, slots=True)
class Page:
    """A page, counted from 1: its text, or without any a picture of it as PNG."""

    number: int
    text: str
    picture: bytes = b""


def read_pages(data: bytes, name: str, most: int = MOST_PICTURES) -> list[Page]:
    """Return the pages of a PDF, `most` of them without text.

    Raises UsageError where it has more, is damaged or encrypted, or nothing here reads it.
    """
    try:
        import pypdfium2
    except ImportError:
        raise UsageError(
            f"{name} is a PDF, which needs pypdfium2: pip install 'mlxmtp[pdf]', or turn it into text, for example "
            "with pdftotext."
        ) from None
    try:
        with _READING:
            document = pypdfium2.PdfDocument(data)
            try:
                pages = _read(document, name, most)
            finally:
                document.close()
    except (pypdfium2.PdfiumError, ArithmeticError, LookupError, OSError, RuntimeError, ValueError) as error:
        if "password" in str(error).lower():
            raise UsageError(f"{name} is encrypted: give a PDF without a password.") from error
        raise UsageError(
            f"{name} is a PDF that cannot be read ({str(error).rstrip('.')[:100]}): save it as a PDF again."
        ) from error
    if not pages:
        raise UsageError(f"{name} is a PDF without pages.")
    return pages


def _read(document: Any, name: str, most: int) -> list[Page]:
    """Return all pages. Pictures take seconds and memory, so none is rendered before it is known how many there are."""
    texts = [_text(document, i) for i in range(len(document))]
    if (count := sum(not text for text in texts)) > most:
        raise UsageError(f"{name} has {count} pages without text, and at most {most} are seen: give a part of it.")
    return [Page(i + 1, text, b"" if text else _picture(document, i)) for i, text in enumerate(texts)]


def _text(document: Any, i: int) -> str:
    """Return the text of a page, none where it has no more than a number."""
    with closing(document[i]) as page, closing(page.get_textpage()) as layer:
        text = str(layer.get_text_bounded()).replace("\r\n", "\n").replace("\0", "").strip()
    return text if len("".join(text.split())) >= _TEXT else ""


def _picture(document: Any, i: int) -> bytes:
    """Return a page as PNG."""
    with closing(document[i]) as page:
        width, height = page.get_size()
        scale = min(math.sqrt(_AREA / (width * height)), _LONGEST / max(width, height))
        buffer = io.BytesIO()
        page.render(scale=scale).to_pil().convert("RGB").save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
