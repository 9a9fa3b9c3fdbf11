"""The line in front of the model: one answer at a time, in the order in which they were asked for, with an end.

Everything here runs on the thread of the event loop; the model is on the thread of `app/worker.py`.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from mlxmtp.app.open import OpenModel
from mlxmtp.app.worker import Failed, Ready, Worker, WorkerEvent
from mlxmtp.engine.answer import Answer, OnPrefill
from mlxmtp.engine.events import End
from mlxmtp.serve.fields import Refused

Begin = Callable[[OpenModel, OnPrefill], Answer]


@dataclass(slots=True, eq=False)
class Job:
    """An answer that was asked for; `events` has all of it, ending in End or Failed. `answer` is there once it runs."""

    begin: Begin
    events: asyncio.Queue[WorkerEvent] = field(default_factory=asyncio.Queue)
    answer: Answer | None = None

    def start(self, opened: OpenModel, on_prefill: OnPrefill) -> Answer:
        """Begin the answer, on the thread of the model."""
        self.answer = self.begin(opened, on_prefill)
        return self.answer


class Scheduler:
    """Jobs for one model. `most` may wait beside the one that runs."""

    def __init__(self, worker: Worker, most: int) -> None:
        self._worker, self._most = worker, most
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._loaded = asyncio.Event()
        self.state: Literal["loading", "ok", "failed"] = "loading"

    def start(self, read: Callable[[], OpenModel]) -> None:
        """Read the model in the background."""
        asyncio.get_running_loop().add_reader(self._worker.bell, self._deliver)
        self._worker.load(read)

    def stop(self) -> None:
        """Take no more events; the worker's thread ends with the process."""
        self._worker.stop()
        asyncio.get_running_loop().remove_reader(self._worker.bell)

    async def loaded(self) -> Exception | None:
        """Wait until the model is there or cannot be read; return why."""
        await self._loaded.wait()
        return self._worker.error

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> bool:
        return self._running is not None

    def submit(self, job: Job) -> None:
        """Put a job at the end of the line. Raises Refused if it is too long."""
        if self.state == "failed":
            raise Refused(f"The model cannot be read: {self._worker.error}", status=503)
        if len(self._waiting) >= self._most:
            raise Refused(
                f"{len(self._waiting)} requests are waiting already: try again.", status=503, code="overloaded", retry=2
            )
        self._waiting.append(job)
        self._next()

    def cancel(self, job: Job) -> None:
        """Give a job up: nobody reads its events any more."""
        if job is self._running:
            self._worker.stop()
        elif job in self._waiting:
            self._waiting.remove(job)

    def _next(self) -> None:
        if self._running is None and self._waiting and self.state == "ok":
            self._running = self._waiting.popleft()
            self._worker.answer(self._running.start)

    def _deliver(self) -> None:
        for event in self._worker.events():
            if self.state == "loading":
                self.state = "ok" if isinstance(event, Ready) else "failed"
                self._loaded.set()
                self._fail_all(event)
            elif self._running is not None:
                self._running.events.put_nowait(event)
                if isinstance(event, End | Failed):
                    self._running = None
        self._next()

    def _fail_all(self, event: WorkerEvent) -> None:
        """Tell those who wait for a model that will not come."""
        while isinstance(event, Failed) and self._waiting:
            self._waiting.popleft().events.put_nowait(event)
