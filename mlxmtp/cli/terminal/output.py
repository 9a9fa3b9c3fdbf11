"""The two streams of a command: the answer on stdout, everything else on stderr. The only module that writes.

Contracts: nothing but the answer reaches stdout; escape codes go only to terminals; a reader that
went away is `ReaderGone`, once, and never a traceback.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from io import TextIOWrapper, UnsupportedOperation
from typing import TextIO

from mlxmtp.cli.terminal.markdown import without_controls
from mlxmtp.cli.terminal.wrap import wrapped
from mlxmtp.errors import MlxmtpError


class ReaderGone(Exception):
    """Nobody reads stdout any more."""


@dataclass(frozen=True, slots=True)
class Look:
    """How the streams may be used."""

    quiet: bool = False
    color: bool = True
    dumb: bool = False


class Output:
    """stdout and stderr of one command."""

    def __init__(self, stdout: TextIO | None, stderr: TextIO | None, look: Look | None = None) -> None:
        self._stdout = stdout
        self._stderr = stderr
        self.look = look or Look()
        self._transient = False  # a progress line stands on stderr's last row
        self._in_thought = False  # the last thing on stderr was part of a thought
        self._thought_at_start = True

    @classmethod
    def standard(cls, look: Look | None = None) -> Output:
        """The process's own streams. What does not go to a terminal is UTF-8, whatever the locale says."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, TextIOWrapper):
                stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors="replace")
        return cls(sys.stdout, sys.stderr, look)

    @property
    def terminal(self) -> bool:
        """Whether a person sees stdout."""
        return self._stdout is not None and self._stdout.isatty()

    @property
    def error_terminal(self) -> bool:
        """Whether a person sees stderr."""
        return self._stderr is not None and self._stderr.isatty()

    def size(self) -> tuple[int, int]:
        """Columns and rows of the terminal on stdout."""
        return _size(self._stdout)

    def write(self, text: str) -> None:
        """Put text of the answer on stdout now. Raises ReaderGone."""
        if not text:
            return
        self.clear_progress()
        self.end_thought()
        if self._stdout is None:
            raise MlxmtpError("Standard output is closed, so there is nowhere to put the answer.")
        try:
            self._stdout.write(text)
            self._stdout.flush()
        except BrokenPipeError as error:
            abandon(self._stdout)
            raise ReaderGone from error
        except OSError as error:
            abandon(self._stdout)
            raise MlxmtpError(f"The answer cannot be written: {error.strerror or error}.") from error

    def note(self, text: str) -> None:
        """A remark the reader of the answer should know; `quiet` drops it. A terminal gets it broken between words."""
        if self.look.quiet:
            return
        self._remark(f"Note: {text}")

    def error(self, text: str) -> None:
        """Why the command failed. A terminal gets it broken between words, too."""
        self._remark(f"Error: {text}")

    def _remark(self, text: str) -> None:
        if self.error_terminal and not self.look.dumb:
            text = "\n".join(wrapped(without_controls(text), _size(self._stderr)[0]))
        self._line(text)

    def line(self, text: str) -> None:
        """One line on stderr, whatever it is connected to."""
        self._line(text)

    def progress(self, text: str) -> None:
        """Replace the progress line; only a terminal shows it."""
        if self.error_terminal and not self.look.quiet and not self.look.dumb:
            self.end_thought()
            self._transient = True  # first: Ctrl-C may come as soon as the line is there
            # One row, with room for the terminal's own ^C: a line that wraps could not be taken away again.
            self._err(f"\r\x1b[K\x1b[2m{_cropped(without_controls(text), _size(self._stderr)[0] - 3)}\x1b[0m")

    def clear_progress(self) -> None:
        """Take the progress line away."""
        if self._transient:
            self._err("\r\x1b[K")
            self._transient = False

    def thinking(self, text: str) -> None:
        """A piece of reasoning: on stderr, dim where that is a terminal."""
        self.clear_progress()
        if not self._in_thought:
            text = text.lstrip("\n")
        if not text:
            return
        self._in_thought = True
        self._thought_at_start = text.endswith("\n")
        if not self.error_terminal:
            self._err(text)
        elif self.look.dumb:
            self._err(without_controls(text))
        else:
            self._err(f"\x1b[2m{without_controls(text)}\x1b[0m")

    def end_thought(self) -> None:
        """Leave the thought: what follows starts on a line of its own."""
        if self._in_thought:
            self._in_thought = False
            self._err("\n" if self._thought_at_start else "\n\n")

    def undo_modes(self) -> None:
        """After a signal in the middle of a line: a cursor, no bracketed paste, and a line for what follows."""
        if self.terminal and not self.look.dumb:
            with suppress(MlxmtpError, ReaderGone):  # the window may be gone
                self.write("\x1b[?2004l\x1b[?25h\r\n")

    def settle(self) -> None:
        """Leave stderr clean, however the command ends."""
        self.clear_progress()
        self.end_thought()

    def _line(self, text: str) -> None:
        self.clear_progress()
        self.end_thought()
        self._err(f"{without_controls(text) if self.error_terminal else text}\n")

    def _err(self, text: str) -> None:
        if self._stderr is None:
            return
        try:
            self._stderr.write(text)
            self._stderr.flush()
        except OSError:  # nobody reads the remarks; the answer may still have a reader
            abandon(self._stderr)


def _size(stream: TextIO | None) -> tuple[int, int]:
    try:
        columns, rows = os.get_terminal_size(stream.fileno() if stream is not None else -1)
    except (OSError, UnsupportedOperation, ValueError):
        return 80, 24
    return columns or 80, rows or 24


def _cropped(text: str, columns: int) -> str:
    """The start of `text` that fits; characters beyond ASCII count as wide."""
    used = 0
    for at, character in enumerate(text):
        used += 1 if character.isascii() else 2
        if used > columns:
            return text[:at]
    return text


def abandon(stream: TextIO) -> None:
    """Let what a broken stream still holds run into nothing, so that Python's own flush at exit stays silent."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (OSError, UnsupportedOperation):
        return
