"""Pasted text comes between marks, so that it is told from what is typed ("bracketed paste").

The line editor has that of its own while it runs; this is for the time in which it does not.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress

START, END = "\x1b[200~", "\x1b[201~"
_marked = False


def mark() -> None:
    """From now on. Nothing is written where no person reads, nor to a terminal without escape codes."""
    global _marked  # noqa: PLW0603  (there is one terminal)
    from mlxmtp.settings import dumb_terminal

    if sys.stdout is not None and sys.stdout.isatty() and not dumb_terminal():
        _marked = True  # first: Ctrl+C may come as soon as it is written
        _write("\x1b[?2004h")


def marked() -> bool:
    """Whether they are marked now."""
    return _marked


def unmark() -> None:
    """No longer. Nothing is written unless `mark` has written something."""
    global _marked  # noqa: PLW0603
    if _marked:
        _write("\x1b[?2004l")
        _marked = False


def _write(code: str) -> None:
    with suppress(OSError):  # the window may be gone
        os.write(sys.stdout.fileno(), code.encode())  # past the stream, which a signal may have found writing
