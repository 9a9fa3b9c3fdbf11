"""Pages of a PDF, by pypdfium2: their text where they have a layer of it, else pictures."""

import io
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any

from mlxmtp.errors import UsageError
from mlxmtp.limits import IMAGE_TOKENS

MARK = b"%PDF-"
MOST_PICTURES = 100
_TEXT = 40  # characters of a page that is text; fewer are the page number of a scan
_AREA = max(IMAGE_TOKENS) * 48 * 48  # pixels of a page: as many as the largest budget reads
_LONGEST = 20_000  # pixels of a side
_SECONDS, _MEMORY = 120, 4 << 30  # that reading a document may take
_READING = BoundedSemaphore(2)  # documents at a time


@dataclass(frozen=True, slots=True)
class Page:
    """A page, counted from 1: its text, or without any a picture of it as PNG."""

    number: int
    text: str
    picture: bytes = b""


def read_pages(data: bytes, name: str, most: int = MOST_PICTURES) -> list[Page]:
    """Return the pages of a PDF, `most` of them without text.

    A process of its own reads them, because a small file can keep pdfium busy, and fill the memory, without end.
    Raises UsageError where it has more, is damaged or encrypted, takes too long, or nothing here reads it.
    """
    if find_spec("pypdfium2") is None:
        raise UsageError(
            f"{name} is a PDF, which needs pypdfium2: pip install 'mlxmtp[pdf]', or turn it into text, for example "
            "with pdftotext."
        )
    here = str(Path(__file__).parents[2])  # -P: no package of the folder one happens to be in
    code = f"import sys; sys.path.insert(0, {here!r}); from {__name__} import _main; _main({most})"
    command = [sys.executable, "-P", "-c", code]
    try:
        with _READING:
            done = subprocess.run(command, input=data, capture_output=True, timeout=_SECONDS, check=True)
        pages = list(_pages_of(io.BytesIO(done.stdout)))
    except subprocess.TimeoutExpired:
        raise UsageError(
            f"{name} is a PDF that takes more than {_SECONDS} seconds to read: give a part of it."
        ) from None
    except (OSError, subprocess.SubprocessError, ValueError, KeyError) as error:
        raise UsageError(f"{name} is a PDF that cannot be read: save it as a PDF again.") from error
    except _Unreadable as error:
        raise UsageError(f"{name} {error}") from None
    if not pages:
        raise UsageError(f"{name} is a PDF without pages.")
    return pages


class _Unreadable(Exception):
    """A fault of a document, to be said behind its name."""


def _pages_of(told: io.BytesIO) -> Iterator[Page]:
    """Yield the pages that the other process told. Raises _Unreadable for what it said instead."""
    for line in told:
        page = json.loads(line)
        if "error" in page:
            raise _Unreadable(page["error"])
        yield Page(page["number"], page["text"], told.read(page["size"]))


def _main(most: int) -> None:
    """Tell the pages of the PDF on stdin: a line of JSON each, and the bytes of its picture."""
    import resource

    import pypdfium2

    with suppress(OSError, ValueError):  # macOS has no such limits of memory
        resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    out = sys.stdout.buffer
    try:
        with closing(pypdfium2.PdfDocument(sys.stdin.buffer.read())) as document:
            with suppress(pypdfium2.PdfiumError):
                document.init_forms()
            for page in _read(document, most):
                out.write(json.dumps({"number": page.number, "text": page.text, "size": len(page.picture)}).encode())
                out.write(b"\n" + page.picture)
        return
    except _Unreadable as error:
        said = str(error)
    except (
        pypdfium2.PdfiumError,
        ArithmeticError,
        LookupError,
        MemoryError,
        OSError,
        RuntimeError,
        ValueError,
    ) as error:
        said = f"is a PDF that cannot be read ({str(error).rstrip('.')[:100]}): save it as a PDF again."
        if "password" in str(error).lower():
            said = "is encrypted: give a PDF without a password."
    out.write(json.dumps({"error": said}).encode() + b"\n")


def _read(document: Any, most: int) -> Iterator[Page]:
    """Yield all pages. Pictures take seconds and memory, so none is rendered before it is known how many there are."""
    texts = [_text(document, i) for i in range(len(document))]
    if (count := sum(not text for text in texts)) > most:
        raise _Unreadable(f"has {count} pages without text, and at most {most} are seen: give a part of it.")
    for i, text in enumerate(texts):
        yield Page(i + 1, text, b"" if text else _picture(document, i))


def _text(document: Any, i: int) -> str:
    """Return the text of a page, none where it has no more than a number."""
    if document.formenv:
        with closing(document[i]) as page, suppress(RuntimeError):  # as pypdfium2's own error is
            page.flatten()  # what stands in fields of a form becomes part of the page, its text and its picture
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
