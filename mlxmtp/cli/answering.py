"""From the model's thread to the terminal: waiting for the model, and one answer with its keys and Ctrl+C."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlxmtp.cli.keyboard import ON_ITS_WAY, interrupts
from mlxmtp.cli.model_thread import Failed, Reading
from mlxmtp.cli.progress import ReadingProgress
from mlxmtp.engine.events import End, FinishReason, Text, Thinking

if TYPE_CHECKING:
    from mlxmtp.cli.keyboard import Keys
    from mlxmtp.cli.live import AnswerView
    from mlxmtp.cli.model_thread import Happening, ModelThread
    from mlxmtp.cli.output import Output
    from mlxmtp.engine.answer import Answer, OnPrefill
    from mlxmtp.engine.engine import Model
    from mlxmtp.engine.stats import Stats

_PATIENCE = 3  # times Ctrl+C until the program itself is left, should the model not react


class Leave(Exception):
    """The conversation is over."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a request. `error` instead of `stats` if it failed."""

    text: str
    thinking: str
    reason: FinishReason
    stats: Stats | None = None
    error: Exception | None = None


class Interrupts:
    """Counts Ctrl+C; too many of them raise Leave."""

    def __init__(self, thread: ModelThread) -> None:
        self.count = 0
        self._thread = thread

    def __call__(self) -> None:
        self.count += 1
        self._thread.stop()
        self._thread.wake()
        if self.count >= _PATIENCE:
            raise Leave


def wait_for_model(
    thread: ModelThread, keys: Keys, out: Output, name: str, clock: Callable[[], float] = time.monotonic
) -> bool:
    """Whether the model is there in the end: not after Ctrl+C, when it goes on loading, nor if it cannot be read."""
    began = clock()
    interrupted = Interrupts(thread)
    with interrupts(interrupted), keys:  # in this order: Ctrl+C must not leave a terminal without echo
        while thread.model is None and thread.trouble is None and not interrupted.count:
            seconds = clock() - began
            out.progress(f"loading {name}" + (f", {seconds:.0f} s" if seconds >= 1 else ""))
            if thread.wait(*keys.descriptors, seconds=1.0):
                keys.pressed()
            thread.happened()
        out.clear_progress()
    return thread.model is not None


class Answering:
    """One answer: shows it, hands every piece on, ends when it ends or soon after Ctrl+C."""

    def __init__(
        self, thread: ModelThread, keys: Keys, out: Output, view: AnswerView, on_piece: Callable[[str, str], None]
    ) -> None:
        """`on_piece(text, thinking)` receives every piece as it comes."""
        self._thread, self._keys, self._out, self._view = thread, keys, out, view
        self._reading = ReadingProgress(out)
        self._on_piece = on_piece
        self._interrupted = Interrupts(thread)
        self._text: list[str] = []
        self._thinking: list[str] = []

    def run(self, begin: Callable[[Model, OnPrefill], Answer]) -> Outcome:
        """Ask and wait for the end. Raises Leave if Ctrl+C after Ctrl+C finds no ear."""
        self._interrupted = interrupted = Interrupts(self._thread)
        with interrupts(interrupted), self._keys:
            self._thread.happened()  # what an earlier wait left over
            self._thread.answer(begin)
            if interrupted.count:  # it came just before there was something to stop
                self._thread.stop()
            try:
                return self._until_the_end()
            except Leave:
                self._end("cancelled")  # the shell's prompt begins a line of its own
                raise

    def _until_the_end(self) -> Outcome:
        while True:
            self._listen()
            for what in self._thread.happened():
                outcome = self._take(what)
                if outcome is not None:
                    return outcome
            self._view.tick()

    def _listen(self) -> None:
        if self._thread.wait(*self._keys.descriptors, seconds=self._view.patience):
            for _ in self._keys.pressed():
                self._view.toggle()

    def _take(self, what: Happening) -> Outcome | None:
        if isinstance(what, Text):
            self._text.append(what.text)
            self._on_piece(what.text, "")
            self._out.clear_progress()
            self._view.text(what.text)
        elif isinstance(what, Thinking):
            self._thinking.append(what.text)
            if what.text:
                self._on_piece("", what.text)
            self._out.clear_progress()
            self._view.thinking(what.text)
        elif isinstance(what, Reading):
            self._reading.count(what.done, what.total)
        elif isinstance(what, End):
            return self._end(what.finish_reason, stats=what.stats)
        elif isinstance(what, Failed):
            return self._end("cancelled", error=None if self._was_ctrl_c(what.error) else what.error)
        return None

    def _was_ctrl_c(self, error: Exception) -> bool:
        """Whether MLX failed because its compiler heard Ctrl+C, maybe sooner than this process did."""
        if not isinstance(error, RuntimeError):
            return False
        if not self._interrupted.count:
            time.sleep(ON_ITS_WAY)  # not the thread's own wait, which the bell of what was just taken may end
        return self._interrupted.count > 0

    def _end(self, reason: FinishReason, *, stats: Stats | None = None, error: Exception | None = None) -> Outcome:
        self._out.clear_progress()
        self._view.end()
        return Outcome("".join(self._text), "".join(self._thinking), reason, stats, error)
