"""Text to the clipboard: the Mac's own program, else the terminal's escape sequence, which works over ssh, too."""

from __future__ import annotations

import base64
import subprocess
import sys
from collections.abc import Callable

_LONGEST = 74_994  # bytes: what terminals take in one sequence (xterm's limit of 100,000 base64 characters)


def copy(text: str, write: Callable[[str], None], *, escapes: bool = True) -> str:
    """Copy and return one sentence that says how it went; `write` sends to the terminal, if it takes `escapes`."""
    if sys.platform == "darwin" and _pbcopy(text):
        return f"Copied {_amount(text)}."
    data = text.encode("utf-8", "replace")
    if not escapes:
        return "This terminal has no way to the clipboard: /export writes a file instead."
    if len(data) > _LONGEST:
        return f"{_amount(text)} are too many for the terminal's clipboard: /export writes a file instead."
    write(f"\x1b]52;c;{base64.b64encode(data).decode()}\x07")
    return f"Copied {_amount(text)}, if this terminal allows it."


def _pbcopy(text: str) -> bool:
    try:
        subprocess.run(["/usr/bin/pbcopy"], input=text, encoding="utf-8", errors="replace", check=True)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


def _amount(text: str) -> str:
    return f"{len(text):,} character{'' if len(text) == 1 else 's'}"
