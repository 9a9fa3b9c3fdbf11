"""Answers side by side on the thread that owns the model, asked for and given up from another thread."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from queue import Empty, SimpleQueue
from threading import Lock
from typing import TYPE_CHECKING, Any

from mlxmtp.app.open import OpenModel
from mlxmtp.engine.events import End
from mlxmtp.errors import as_exception

if TYPE_CHECKING:
    from mlxmtp.engine.answer import Answer, OnPrefill
    from mlxmtp.engine.seat import Seat
    from mlxmtp.engine.streams import Running, Streams

Begin = Callable[[OpenModel, "OnPrefill"], "Answer"]
Tell = Callable[[object, Any], None]
"""(key of an answer, its event, or the exception that ended it)"""


class GivenUp(Exception):
    """Raised into the reading of a prompt whose answer nobody wants any more."""


class Together:
    """Answers by key. `join` and `leave` may be called from any thread, `run` and `close` by the model's."""

    def __init__(self, parallel: int, tell: Tell) -> None:
        self._parallel, self._tell = parallel, tell
        self._joining: SimpleQueue[tuple[object, Begin]] = SimpleQueue()
        self._left: set[object] = set()
        self._open: set[object] = set()  # whose end has not been told
        self._lock = Lock()
        self._active = False
        self._of: tuple[OpenModel, Streams] | None = None

    def join(self, key: object, begin: Begin) -> bool:
        """Ask for an answer; return True if `run` must be called for it."""
        with self._lock:
            self._joining.put((key, begin))
            before, self._active = self._active, True
            return not before

    def leave(self, key: object) -> None:
        """Give an answer up: it ends with "cancelled"."""
        with self._lock:
            self._left.add(key)

    def close(self) -> None:
        """Let go of a model's networks and traces."""
        if self._of is not None:
            self._of[1].close()
            self._of = None

    def run(self, opened: OpenModel) -> None:
        """Answer until nothing is asked for any more."""
        try:
            if self._of is None or self._of[0] is not opened:
                self.close()
                self._of = opened, opened.model.streams(self._parallel)
            streams = self._of[1]
            while self._goes_on(streams):
                self._go_on(opened, streams)
        except BaseException as fault:  # noqa: BLE001  (ours or a library's: it ends these answers, not the thread)
            error = as_exception(fault)
            with suppress(BaseException):
                self.close()
            self._of = None
            for key in [*self._open]:  # one of them may have ended in the step that failed
                self._say(key, error)
            self.fail(error)

    def _go_on(self, opened: OpenModel, streams: Streams) -> None:
        self._take_in(opened, streams)
        for running in streams.running:
            if self._has_left(running.tag):
                streams.cancel(running)
                self._say(running.tag, End("cancelled", running.answer.stats))
        for running, event in streams.step():
            self._deliver(running, event)

    def fail(self, error: Exception) -> None:
        """Tell all that wait that there is no model."""
        with self._lock:
            self._active = False
            while not self._joining.empty():
                self._tell(self._joining.get()[0], error)

    def _goes_on(self, streams: Streams) -> bool:
        with self._lock:
            self._active = bool(streams.running) or not self._joining.empty()
            if not self._active:
                self._left.clear()
            return self._active

    def _take_in(self, opened: OpenModel, streams: Streams) -> None:
        """Begin the answers that were asked for meanwhile."""
        while True:
            try:
                key, begin = self._joining.get_nowait()
            except Empty:
                return

            self._open.add(key)

            def on_prefill(done: int, total: int, key: object = key) -> None:
                del done, total
                self._take_in(opened, streams)
                if self._has_left(key):
                    raise GivenUp

            try:
                streams.begin(partial(_seated, opened, begin, on_prefill), key)
            except Exception as error:  # noqa: BLE001  (told, like every other, where the answer is awaited)
                self._say(key, error)

    def _has_left(self, key: object) -> bool:
        with self._lock:
            if key not in self._left:
                return False
            self._left.remove(key)
            return True

    def _deliver(self, running: Running, event: object) -> None:
        if isinstance(event, GivenUp):
            event = End("cancelled", running.answer.stats)
        self._say(running.tag, event)

    def _say(self, key: object, event: object) -> None:
        if isinstance(event, End | Exception):
            self._open.discard(key)
        self._tell(key, event)


def _seated(opened: OpenModel, begin: Begin, on_prefill: OnPrefill, seat: Seat) -> Answer:
    return begin(replace(opened, model=opened.model.seated(seat)), on_prefill)
