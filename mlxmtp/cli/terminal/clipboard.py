"""Text to the clipboard: the Mac's own program, else the terminal's escape sequence, which works over ssh, too."""

from __future__ import annotations

import base64
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlxmtp.cli.terminal.output import Output

_LONGEST = 74_994  # bytes: what terminals take in one sequence (xterm's limit of 100,000 base64 characters)


def copy(text: str, out: Output) -> str:
    """Copy and return one sentence that says how it went."""
    amount = f"{len(text):,} character{'' if len(text) == 1 else 's'}"
    if sys.platform == "darwin":
        try:
            subprocess.run(["/usr/bin/pbcopy"], input=text, encoding="utf-8", errors="replace", check=True)
            return f"Copied {amount}."
        except (OSError, subprocess.CalledProcessError):
            pass  # the terminal may have a way
    data = text.encode("utf-8", "replace")
    if out.look.dumb:
        return "This terminal has no way to the clipboard: /export writes a file instead."
    if len(data) > _LONGEST:
        return f"{amount} are too many for the terminal's clipboard: /export writes a file instead."
    out.draw(f"\x1b]52;c;{base64.b64encode(data).decode()}\x07")
    return f"Copied {amount}, if this terminal allows it."
