"""The signals of a person: Ctrl-C, a closed window. Imports nothing that takes time: it is there before all else.

A KeyboardInterrupt strikes wherever Python is just then: within an import, or in a function that C++ has called, where
it is printed instead of raised, or aborts the process. So Ctrl-C ends the process without an exception, until something
has more to lose and is called instead.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

Handler = Callable[[int, FrameType | None], object]

# Seconds in which a Ctrl-C arrives here that a child has heard already: the failure of MLX's compiler may come first.
ON_ITS_WAY = 0.2
_DEAF = 1.0  # seconds after which a main thread that has not come back to Python is not waited for

before_the_end: list[Callable[[], None]] = []
"""What leaves the terminal as it was; called by `end`, which may come between any two steps of the main thread."""


def end(number: int, _frame: FrameType | None = None) -> NoReturn:
    """End the process here and now, as that signal does: no thread is torn down, no module taken apart."""
    for restore in before_the_end:
        with suppress(Exception):  # the terminal may be gone, and nobody is left to hear of it
            restore()
    os._exit(128 + number)


def end_on_ctrl_c() -> None:
    """Let Ctrl-C end the process, from here on and wherever nothing else is said."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, end)


@contextmanager
def handled(handlers: Mapping[int, Handler]) -> Iterator[dict[int, Any]]:
    """Handle these signals within it, but those that are ignored, as under nohup; yields the handlers before."""
    before = {number: signal.getsignal(number) for number in handlers}
    heeded = [number for number in handlers if before[number] is not signal.SIG_IGN]
    for number in heeded:
        signal.signal(number, handlers[number])
    try:
        yield before
    finally:
        for number in heeded:
            signal.signal(number, before[number])


def interrupts(react: Callable[[], object]) -> AbstractContextManager[object]:
    """Let Ctrl-C call `react()` within it."""
    return handled({signal.SIGINT: lambda _number, _frame: react()})


def raises() -> AbstractContextManager[object]:
    """Let Ctrl-C raise KeyboardInterrupt within it, for what cleans up after itself and imports little."""
    return handled({signal.SIGINT: signal.default_int_handler})


class Shield:
    """While it is entered last words wait: a stream that is being written to takes nothing from a handler."""

    def __init__(self) -> None:
        self._depth = 0
        self._waiting: Callable[[], None] | None = None

    def __enter__(self) -> None:
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if not self._depth and self._waiting is not None:
            say, self._waiting = self._waiting, None
            say()

    def after(self, say: Callable[[], None]) -> None:
        """Call `say()` now, or once nothing is being written."""
        if self._depth:
            self._waiting = say
        else:
            say()


writing = Shield()


class LastWords:
    """Ctrl-C during an answer: say what there is and end; use with `interrupts`.

    It strikes while this is entered, and what comes before is kept until then: nothing that is being shown or written
    down is cut short. A second one waits for nothing.
    """

    def __init__(self, say: Callable[[], None]) -> None:
        self._say = say
        self._open = self.came = False
        self._ahead = self._speaking = False  # another thread has heard what the main one will hear; it finishes

    def __call__(self, *, beside: bool = False) -> None:
        """`beside`: in another thread than the main one, which hears the same Ctrl-C later."""
        if self._ahead:
            self._ahead = False
            while self._speaking:  # over there; the process ends with it, or with a second Ctrl-C
                time.sleep(_DEAF)
            return
        if self.came:
            end(signal.SIGINT)
        self.came, self._ahead = True, beside
        if self._open:
            writing.after(self._finish)

    def __enter__(self) -> None:
        self._open = True
        if self.came:
            self._finish()

    def __exit__(self, _kind: object, error: object, _trace: object) -> None:
        if isinstance(error, RuntimeError):  # maybe of a compiler that Ctrl-C has ended
            time.sleep(ON_ITS_WAY)
        self._open = False

    def _finish(self) -> NoReturn:
        self._open, self._speaking = False, True
        try:
            self._say()
        finally:
            end(signal.SIGINT)


@contextmanager
def rings(mouth: int) -> Iterator[None]:
    """Write a byte for every signal, its number, into the pipe that ends in `mouth`, and close that afterwards."""
    os.set_blocking(mouth, False)
    before = signal.set_wakeup_fd(mouth, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(mouth)


@contextmanager
def _beside(words: LastWords) -> Iterator[None]:
    """Hear Ctrl-C in another thread, too: MLX builds dozens of kernels in one call, and Python waits for the last."""
    from threading import Thread

    ear, mouth = os.pipe()

    def listen() -> None:
        with open(ear, "rb", buffering=0) as told:  # noqa: PTH123  (a descriptor)
            while number := told.read(1):
                time.sleep(_DEAF)
                if number[0] == signal.SIGINT and not words.came:
                    words(beside=True)

    Thread(target=listen, name="mlxmtp-signals", daemon=True).start()
    with rings(mouth):
        yield


class _Killed(SystemExit):
    """Leads out of everything, to `kills`; asyncio lets only SystemExit and KeyboardInterrupt through."""


@contextmanager
def last_words(say: Callable[[], None]) -> Iterator[None]:
    """Let Ctrl-C within it call `say()` and end the process; within a conversation raise KeyboardInterrupt after it."""
    if signal.getsignal(signal.SIGINT) is end:
        words = LastWords(say)
        with interrupts(words), _beside(words), words:
            yield
        return
    try:
        with raises():
            yield
    except KeyboardInterrupt:
        say()
        raise


@contextmanager
def kills() -> Iterator[list[int]]:
    """Let SIGTERM and SIGHUP end what is within it in order; yields their numbers. A second one ends at once."""
    killed: list[int] = []

    def leave(number: int, _frame: FrameType | None) -> None:
        killed.append(number)
        raise _Killed

    with suppress(_Killed), handled(dict.fromkeys((signal.SIGTERM, signal.SIGHUP), leave)):
        yield killed
