"""What is typed while there is no prompt, at first and between two: the editor gets it as if it had been there.

A terminal would show it at once, and the editor would show it again; and it would hand over Enter as a line feed, which
means a new line to the editor, so that a question typed in these two tenths of a second was not sent. What is pasted
comes marked, or every line of it would be sent.
"""

from __future__ import annotations

import signal
import sys
import termios
from types import FrameType

from mlxmtp.cli import pastes

_before: list[int | list[bytes | int]] | None = None


def hold() -> None:
    """No echo, Enter and Ctrl+D stay what they are, pastes are marked, until `release`. Ctrl+C stays a signal."""
    global _before  # noqa: PLW0603  (there is one terminal)
    if _before is not None:
        return
    try:
        _before = termios.tcgetattr(sys.stdin)
        mode = termios.tcgetattr(sys.stdin)
    except (termios.error, OSError):  # no terminal after all
        return
    assert isinstance(mode[0], int)
    assert isinstance(mode[3], int)
    mode[0] &= ~termios.ICRNL
    mode[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(sys.stdin, termios.TCSANOW, mode)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)
    pastes.mark()


def release() -> None:
    """Give the terminal back as it was. Nothing happens if it is not held."""
    hand_over()
    pastes.unmark()


def hand_over() -> None:
    """The same to the line editor, which goes on marking pastes: one may come just now."""
    global _before  # noqa: PLW0603
    if _before is not None:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, _before)
        _before = None


def _end(number: int, _frame: FrameType | None) -> None:
    """A signal ends the program as it always does, but not with the terminal as it was held."""
    release()
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
