"""The keyboard while the model works: keys act at once, and what is typed ahead is kept for the next line."""

from __future__ import annotations

import os
import re
import select
import signal
import termios
import time
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

from mlxmtp.cli.tail import terminal_was_shared

CTRL_D, CTRL_T = "\x04", "\x14"
ON_ITS_WAY = 0.2
"""Seconds in which a Ctrl+C arrives here that a child of this process has heard already: a terminal sends it to the
compiler of MLX's kernels, too, whose failure may come first."""

_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|O.|.)?")  # arrows and the like


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

    def typed_ahead(self) -> str:
        """What was typed since the last call, without control keys; several lines keep their breaks.

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

    def typed_ahead(self) -> str:
        """None."""
        return ""


class Keyboard:
    """The terminal on `descriptor`: no echo and no waiting for Enter while this is entered. Ctrl+C stays a signal."""

    def __init__(self, descriptor: int) -> None:
        self.descriptors: tuple[int, ...] = (descriptor,)
        self._fd = descriptor
        self._saved: list[int | list[bytes | int]] | None = None
        self._decoder = getincrementaldecoder("utf-8")("replace")
        self._typed = ""
        self._before: object = None

    def __enter__(self) -> Keyboard:
        try:
            self._saved = termios.tcgetattr(self._fd)
        except termios.error:  # no terminal after all
            self.descriptors = ()
            return self
        self._listen()
        self._before = signal.signal(signal.SIGCONT, self._continued)
        return self

    def __exit__(self, *_: object) -> None:
        if self._saved is not None:
            signal.signal(signal.SIGCONT, self._before)  # type: ignore[arg-type]  # what `signal` itself returned
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
            while select.select(self.descriptors, (), (), 0)[0]:
                self.pressed()

    def typed_ahead(self) -> str:
        """Printable characters and line breaks; the break at the end sends nothing by itself. Raises EOFError."""
        text = _SEQUENCE.sub("", self._typed).replace("\r", "\n")
        self._typed = ""
        if text.startswith(CTRL_D):
            raise EOFError
        return "".join(one for one in text if one == "\n" or one.isprintable()).strip("\n")

    def _listen(self) -> None:
        mode = termios.tcgetattr(self._fd)
        flags = mode[3]
        assert isinstance(flags, int)
        # IEXTEN off: else Ctrl+V and, on macOS, Ctrl+O and Ctrl+Y never arrive.
        mode[3] = flags & ~(termios.ECHO | termios.ICANON | termios.IEXTEN) | termios.ISIG
        termios.tcsetattr(self._fd, termios.TCSADRAIN, mode)

    def _continued(self, _number: int, _frame: FrameType | None) -> None:
        """Back from Ctrl+Z: the shell has set the terminal its own way, and its lines stand above the cursor."""
        self._listen()
        terminal_was_shared()


@contextmanager
def interrupts(react: Callable[[], None]) -> Iterator[None]:
    """Within it Ctrl+C calls `react()` instead of raising KeyboardInterrupt anywhere at all."""
    before = signal.signal(signal.SIGINT, lambda _number, _frame: react())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def resumption(react: Callable[[], None]) -> Iterator[None]:
    """Within it `react()` is called whenever this process goes on after Ctrl+Z."""
    before = signal.signal(signal.SIGCONT, lambda _number, _frame: react())
    try:
        yield
    finally:
        signal.signal(signal.SIGCONT, before)


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

    before = {number: signal.signal(number, end) for number in numbers if signal.getsignal(number) is signal.SIG_DFL}
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
