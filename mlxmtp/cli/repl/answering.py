"""Waiting for the model's thread with an ear for keys: until a model is there, and until a turn has ended."""

from __future__ import annotations

import time
from collections.abc import Callable

from mlxmtp.app.turn import Outcome, Turn
from mlxmtp.app.worker import Failed, Prefill, Worker
from mlxmtp.cli.terminal.answer_view import AnswerView
from mlxmtp.cli.terminal.keyboard import ON_ITS_WAY, Keys, interrupts
from mlxmtp.cli.terminal.output import Output
from mlxmtp.cli.terminal.progress import ReadingProgress
from mlxmtp.engine.events import End, Text, Thinking
from mlxmtp.engine.params import Params

_PATIENCE = 3  # times Ctrl+C until the program itself is left, should the model not react


class Leave(Exception):
    """The conversation is over."""


class Interrupts:
    """Counts Ctrl+C and stops the answer; raises nothing, so that writing down what was said is never cut short."""

    def __init__(self, worker: Worker) -> None:
        self.count = 0
        self._worker = worker

    def __call__(self) -> None:
        self.count += 1
        self._worker.stop()
        self._worker.wake()


def wait_for_model(
    worker: Worker, keys: Keys, out: Output, name: str, clock: Callable[[], float] = time.monotonic
) -> bool:
    """Return whether the model is there: not after Ctrl+C, when it goes on loading, nor if it cannot be read."""
    began = clock()
    interrupted = Interrupts(worker)
    with interrupts(interrupted), keys:  # in this order: Ctrl+C must not leave a terminal without echo
        while worker.model is None and worker.error is None and not interrupted.count:
            seconds = clock() - began
            out.progress(f"loading {name}" + (f", {seconds:.0f} s" if seconds >= 1 else ""))
            if worker.wait(*keys.descriptors, seconds=1.0):
                keys.pressed()
            worker.events()
        out.clear_progress()
    return worker.model is not None


class Answering:
    """Shows one turn while it comes, until it ends or soon after Ctrl+C, of which `interrupted` hears."""

    def __init__(self, worker: Worker, keys: Keys, out: Output, view: AnswerView, interrupted: Interrupts) -> None:
        self._worker, self._keys, self._out, self._view = worker, keys, out, view
        self._interrupted = interrupted
        self._progress = ReadingProgress(out)

    def run(self, turn: Turn, params: Params) -> Outcome:
        """Return what came of a turn that has begun. Raises Leave if Ctrl+C after Ctrl+C finds no ear."""
        with self._keys:
            self._worker.events()  # what an earlier wait left over
            self._worker.answer(lambda _, on_prefill: turn.stream(params, on_prefill))
            if self._interrupted.count:  # it came just before there was something to stop
                self._worker.stop()
            try:
                last = self._until_the_end(turn)
                self._close()
            except BaseException as error:
                turn.end("cancelled")
                if isinstance(error, Leave):
                    self._close()  # the shell's prompt begins a line of its own
                raise
        if isinstance(last, End):
            return turn.end(last.finish_reason, last.stats, returns=True)
        return turn.end("cancelled", error=None if self._was_ctrl_c(last.error) else last.error, returns=True)

    def _until_the_end(self, turn: Turn) -> End | Failed:
        while True:
            if self._worker.wait(*self._keys.descriptors, seconds=self._view.patience):
                for _ in self._keys.pressed():
                    self._view.toggle()
            if self._interrupted.count >= _PATIENCE:
                raise Leave
            for event in self._worker.events():
                if isinstance(event, End | Failed):
                    return event
                if isinstance(event, Prefill):
                    self._progress.count(event.done, event.total)
                elif isinstance(event, Text | Thinking):
                    turn.take(event)
                    self._out.clear_progress()
                    show = self._view.text if isinstance(event, Text) else self._view.thinking
                    show(event.text)
            self._view.tick()

    def _was_ctrl_c(self, error: Exception) -> bool:
        """Return whether MLX failed because its compiler heard Ctrl+C, maybe sooner than this process did."""
        if not isinstance(error, RuntimeError):
            return False
        if not self._interrupted.count:
            time.sleep(ON_ITS_WAY)  # not the worker's own wait, which the bell of an event just taken may end
        return self._interrupted.count > 0

    def _close(self) -> None:
        self._out.clear_progress()
        self._view.end()
