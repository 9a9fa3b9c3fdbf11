"""Several answers at a time from a server, which shares its rounds among them by itself: `map --url`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, Protocol, cast

from mlxmtp.engine.events import End, Event

if TYPE_CHECKING:
    from mlxmtp.engine.answer import Answer
    from mlxmtp.engine.seat import Seat

_NO_SEAT = cast("Seat", None)


class Served(Protocol):
    """An answer that a server gives."""

    def leave(self) -> None:
        """Tell the server to stop, from any thread."""


@dataclass(frozen=True, slots=True, eq=False)
class Running:
    """An answer on its way among others; `tag` is whatever its owner calls it."""

    answer: Answer
    seat: Seat
    tag: Any = None


class ServedStreams:
    """Answers side by side, each a request of its own that a thread reads."""

    def __init__(self, parallel: int) -> None:
        self.parallel = parallel
        self._running: list[Running] = []
        self._came: SimpleQueue[tuple[Running, Event | Exception]] = SimpleQueue()

    @property
    def running(self) -> Sequence[Running]:
        """The answers that have not ended."""
        return tuple(self._running)

    def begin(self, ask: Callable[[Seat], Answer], tag: Any = None) -> Running:
        """Add the answer that `ask` has the server give; it gets no seat."""
        running = Running(ask(_NO_SEAT), _NO_SEAT, tag)
        self._running.append(running)
        Thread(target=self._read, args=(running,), name="mlxmtp-answer", daemon=True).start()
        return running

    def cancel(self, running: Running) -> None:
        """Give an answer up; the server hears of it."""
        if running in self._running:
            self._running.remove(running)
        cast("Served", running.answer).leave()

    def close(self) -> None:
        """Cancel all answers."""
        for running in self.running:
            self.cancel(running)

    def step(self) -> list[tuple[Running, Event | Exception]]:
        """Wait for what comes next of any answer, and return all that is there."""
        found = [self._came.get()] if self._running else []
        while not self._came.empty():
            found.append(self._came.get())
        found = [one for one in found if one[0] in self._running]
        for running, event in found:
            if isinstance(event, End | Exception):
                self._running.remove(running)
        return found

    def _read(self, running: Running) -> None:
        try:
            for event in running.answer:
                self._came.put((running, event))
        except Exception as error:  # noqa: BLE001  (told where this answer is awaited)
            self._came.put((running, error))
