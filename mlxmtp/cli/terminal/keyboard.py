"""The keyboard while the model works: keys act at once, and what is typed ahead is kept for the next line."""

from __future__ import annotations

import os
import re
import select
import signal
import sys
import termios
import time
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Protocol

from mlxmtp.cli.terminal.markdown import without_controls
from mlxmtp.cli.terminal.tail import terminal_was_shared

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
    mark()


def release() -> None:
    """Give the terminal back as it was. Nothing happens if it is not held."""
    hand_over()
    unmark()


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


CTRL_D, CTRL_T = "\x04", "\x14"
BACKSPACE, CTRL_U, CTRL_W = ("\x7f", "\x08"), "\x15", ("\x17", "\x1b\x7f")  # the last with Alt, too
ON_ITS_WAY = 0.2
"""Seconds in which a Ctrl+C arrives here that a child of this process has heard already: a terminal sends it to the
compiler of MLX's kernels, too, whose failure may come first."""
_PASTE_SECONDS = 1.0  # a paste whose end is missing: how long nothing comes before it is taken as it is

_PIECE = re.compile(
    rf"{re.escape(START)}(?P<paste>(?s:.*?))(?:{re.escape(END)}|\Z)"
    r"|\x1b(?:\[[0-?]*[ -/]*[@-~]|O.|[^\n\x1b])?"  # arrows and the like
    r"|(?P<text>[^\x00-\x08\x0b-\x1f\x7f-\x9f]+)"
    r"|."
)


@dataclass(frozen=True, slots=True)
class TypedAhead:
    """What was typed before there was a line for it; `pasted`: what it begins with came from the clipboard."""

    text: str = ""
    pasted: bool = False


class Keys(Protocol):
    """What an answer needs to know of a keyboard."""

    def __enter__(self) -> object:
        """Begin to listen."""

    def __exit__(self, *_: object) -> None:
        """Leave the terminal as it was."""

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What can be waited for; empty without a keyboard."""

    def pressed(self) -> str:
        """The control keys that came, Ctrl+T only; the rest is kept."""

    def take_in(self) -> None:
        """What has been typed so far is for `typed_ahead`, and answers no question that comes now."""

    def typed_ahead(self) -> TypedAhead:
        """What was typed since the last call, edited as it was typed; several lines keep their breaks.

        Raises EOFError for Ctrl+D with nothing before it, as an empty line would.
        """


class NoKeys:
    """Where keys cannot be read one by one."""

    descriptors: tuple[int, ...] = ()

    def __enter__(self) -> NoKeys:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def pressed(self) -> str:
        """None."""
        return ""

    def take_in(self) -> None:
        """Nothing."""

    def typed_ahead(self) -> TypedAhead:
        """None."""
        return TypedAhead()


class Keyboard:
    """The terminal on `descriptor`: no echo and no waiting for Enter while this is entered, and pastes are marked.

    Ctrl+C stays a signal.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptors: tuple[int, ...] = (descriptor,)
        self._fd = descriptor
        self._saved: list[int | list[bytes | int]] | None = None
        self._decoder = getincrementaldecoder("utf-8")("replace")
        self._typed = ""
        self._before: dict[int, object] = {}
        self._marked = False  # pastes, before this was entered

    def __enter__(self) -> Keyboard:
        try:
            self._saved = termios.tcgetattr(self._fd)
        except termios.error:  # no terminal after all
            self.descriptors = ()
            return self
        self._marked = marked()
        self._listen()
        self._before = {
            signal.SIGCONT: signal.signal(signal.SIGCONT, self._continued),
            signal.SIGTSTP: signal.signal(signal.SIGTSTP, self._suspended),
        }
        return self

    def __exit__(self, *_: object) -> None:
        if self._saved is None:
            return
        try:
            self._take_the_rest()
        finally:
            for number, handler in self._before.items():
                signal.signal(number, handler)  # type: ignore[arg-type]  # what `signal` itself returned
            if not self._marked:
                unmark()
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._saved)
            self._saved = None

    def pressed(self) -> str:
        """Ctrl+T, as often as it came."""
        try:
            data = os.read(self._fd, 4096)
        except OSError:  # the terminal is gone: nothing more will come from it
            data = b""
        if not data:
            self.descriptors = ()
        text = self._decoder.decode(data)
        self._typed += text.replace(CTRL_T, "")
        return CTRL_T * text.count(CTRL_T)

    def take_in(self) -> None:
        """See `Keys`."""
        with self:
            pass  # what is there is taken in the end

    def typed_ahead(self) -> TypedAhead:
        """Everything but control characters; the line break at the end sends nothing by itself. Raises EOFError."""
        keys, self._typed = self._typed.replace("\r\n", "\n").replace("\r", "\n"), ""
        line: list[str] = []  # characters: one that is taken away must cost nothing, be the line a megabyte
        pasted = False
        for piece in _PIECE.finditer(keys):
            new = piece["text"] or without_controls(piece["paste"] or "")
            if not line:
                new = new.lstrip("\n")
                pasted = piece["paste"] is not None
                if piece[0] == CTRL_D:
                    raise EOFError
            line += new
            if not new:
                _erase(line, piece[0])
        return TypedAhead("".join(line).rstrip("\n"), pasted)

    def _take_the_rest(self) -> None:
        """What is there already, and a paste to its end: else its lines would be sent one by one."""
        while self.descriptors:
            in_paste = self._typed.rfind(START) > self._typed.rfind(END)
            if not select.select(self.descriptors, [], [], _PASTE_SECONDS if in_paste else 0)[0]:
                break
            self.pressed()

    def _listen(self) -> None:
        mode = termios.tcgetattr(self._fd)
        given, flags = mode[0], mode[3]
        assert isinstance(given, int)
        assert isinstance(flags, int)
        mode[0] = given & ~termios.ICRNL  # a line that was pasted may end in both
        # IEXTEN off: else Ctrl+V and, on macOS, Ctrl+O and Ctrl+Y never arrive.
        mode[3] = flags & ~(termios.ECHO | termios.ICANON | termios.IEXTEN) | termios.ISIG
        termios.tcsetattr(self._fd, termios.TCSADRAIN, mode)
        mark()

    def _suspended(self, number: int, _frame: FrameType | None) -> None:
        """Ctrl+Z: not every shell expects marks."""
        unmark()
        signal.signal(number, self._before[number])  # type: ignore[arg-type]
        signal.raise_signal(number)  # here it stands still, unless there is no shell to go back to
        signal.signal(number, self._suspended)
        self._listen()

    def _continued(self, _number: int, _frame: FrameType | None) -> None:
        """Back from Ctrl+Z: the shell has set the terminal its own way, and its lines stand above the cursor."""
        self._listen()
        terminal_was_shared()


def _erase(line: list[str], key: str) -> None:
    """Take away what this key takes away in the line editor, at the line's end; most keys do nothing."""
    if key in BACKSPACE:
        del line[-1:]
    elif key == CTRL_U:
        while line and line[-1] != "\n":
            line.pop()
    elif key in CTRL_W:
        while line and line[-1].isspace():
            line.pop()
        while line and not line[-1].isspace():
            line.pop()


def interrupts(react: Callable[[], None]) -> AbstractContextManager[None]:
    """Within it Ctrl+C calls `react()` instead of raising KeyboardInterrupt anywhere at all."""
    return _on(signal.SIGINT, react)


def resumption(react: Callable[[], None]) -> AbstractContextManager[None]:
    """Within it `react()` is called whenever this process goes on after Ctrl+Z."""
    return _on(signal.SIGCONT, react)


@contextmanager
def _on(number: int, react: Callable[[], None]) -> Iterator[None]:
    before = signal.signal(number, lambda _number, _frame: react())
    try:
        yield
    finally:
        signal.signal(number, before)


class _Killed(SystemExit):
    """Out of everything, to where `kills` began; asyncio lets only SystemExit and KeyboardInterrupt through."""


@contextmanager
def kills() -> Iterator[list[int]]:
    """SIGTERM, and SIGHUP of a window that was closed, end what is within it in order; the list has their number then.

    Afterwards they do what they always do: a second one ends the process at once.
    """
    numbers = (signal.SIGTERM, signal.SIGHUP)
    killed: list[int] = []

    def end(number: int, _frame: FrameType | None) -> None:
        killed.append(number)
        raise _Killed

    # Those that are ignored stay so, as under nohup.
    heeded = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, end) for number in heeded}
    try:
        yield killed
    except _Killed:
        pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def ctrl_c_first() -> Iterator[None]:
    """A failure that comes of Ctrl+C is a KeyboardInterrupt, however late its own signal is (see ON_ITS_WAY)."""
    try:
        yield
    except RuntimeError:
        time.sleep(ON_ITS_WAY)
        raise
