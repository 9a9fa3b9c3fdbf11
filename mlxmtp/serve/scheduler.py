"""The line in front of the model: answers in the order in which they were asked for, one or some at a time.

Everything here runs on the thread of the event loop; the model is on the thread of `app/worker.py`. One model is in
memory; a request for another has it read when its turn has come, after the one before has been freed.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from mlxmtp.app.open import OpenModel
from mlxmtp.app.worker import Beside, Failed, Ready, Worker, WorkerEvent
from mlxmtp.engine.answer import Answer, OnPrefill
from mlxmtp.engine.events import Calling, End, Waiting
from mlxmtp.serve.fields import Refused
from mlxmtp.serve.models import Served

Begin = Callable[[OpenModel, OnPrefill], Answer]


@dataclass(slots=True, eq=False)
class Job:
    """An answer that was asked for; `events` has all of it, ending in End or Failed. `answer` is there once it runs.

    `begin` None: the model is to be read and no more, `events` has Ready or Failed. `ended` is called with the last
    event, also where nobody reads it any more, and with whether its failure has still to be told.
    """

    served: Served
    begin: Begin | None
    ended: Callable[[End | Failed, bool], None]
    events: asyncio.Queue[WorkerEvent] = field(default_factory=asyncio.Queue)
    answer: Answer | None = None

    def start(self, opened: OpenModel, on_prefill: OnPrefill) -> Answer:
        """Begin the answer, on the thread of the model."""
        assert self.begin is not None, "there is nothing to answer"
        self.answer = self.begin(opened, on_prefill)
        return self.answer


class Scheduler:
    """Jobs for the models. `most` may wait beside the `parallel` that run.

    After `keep_alive` seconds without a job the model's memory is freed; the next job has it read again.
    """

    def __init__(self, worker: Worker, most: int, keep_alive: float | None = None, parallel: int = 1) -> None:
        self._worker, self._most, self._keep_alive, self._parallel = worker, most, keep_alive, parallel
        self._together: list[Job] = []  # those that run, if more than one may
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._current: Served | None = None  # in memory, or being read
        self._reading = False
        self._idle: asyncio.TimerHandle | None = None
        self._loaded = asyncio.Event()
        self.state: Literal["loading", "ok", "failed"] = "loading"  # of the first model

    def start(self, first: Served) -> None:
        """Read the first model in the background."""
        asyncio.get_running_loop().add_reader(self._worker.bell, self._deliver)
        self._read(first)

    def stop(self) -> None:
        """End all answers and take no more events; the worker's thread ends with the process."""
        self._worker.stop()
        for job in self._together:
            self._worker.leave(job)
        self._stop_idle_timer()
        asyncio.get_running_loop().remove_reader(self._worker.bell)

    async def loaded(self) -> Exception | None:
        """Wait until the first model is there or cannot be read; return why."""
        await self._loaded.wait()
        return self._worker.error if self.state == "failed" else None

    @property
    def in_memory(self) -> Served | None:
        """The model that is there now."""
        return None if self._reading else self._current

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return (self._running is not None) + len(self._together)

    def submit(self, job: Job) -> None:
        """Put a job at the end of the line. Raises Refused if it is too long."""
        if self.state == "failed":
            raise Refused(f"The model cannot be read: {self._worker.error}", status=503)
        if len(self._waiting) + self.running >= self._most + self._parallel:
            raise Refused(
                f"{len(self._waiting)} requests are waiting already: try again.", status=503, code="overloaded", retry=2
            )
        self._waiting.append(job)
        self._next()

    def cancel(self, job: Job) -> None:
        """Give a job up: nobody reads its events any more."""
        if job is self._running:
            self._worker.stop()
        elif job in self._together:
            self._worker.leave(job)
        elif job in self._waiting:
            self._waiting.remove(job)

    def release(self, served: Served) -> None:
        """Free the memory of a model that nobody uses or waits for."""
        if served is self.in_memory and not self.running and not self._waiting:
            self._stop_idle_timer()
            self._free()

    def _next(self) -> None:
        if self._reading:
            return
        for job in [one for one in self._waiting if one.begin is None and one.served is self._current]:
            self._waiting.remove(job)
            job.events.put_nowait(Ready())
        if self._running is not None:
            return
        self._stop_idle_timer()
        if self._parallel > 1:
            self._join()
        if self._together:
            return
        if not self._waiting:
            if self._keep_alive is not None and self._current is not None:
                self._idle = asyncio.get_running_loop().call_later(self._keep_alive, self._free)
        elif self._waiting[0].served is not self._current:
            self._read(self._waiting[0].served)
        else:
            self._running = self._waiting.popleft()
            self._worker.answer(self._running.start)

    def _join(self) -> None:
        """Let those at the head of the line join the answers that run, as long as they want the same model."""
        while self._waiting and self._waiting[0].served is self._current and len(self._together) < self._parallel:
            job = self._waiting.popleft()
            self._together.append(job)
            self._worker.answer_beside(job, job.start)

    def _read(self, served: Served) -> None:
        self._save()
        self._current, self._reading = served, True
        self._worker.load(served.read)

    def _free(self) -> None:
        self._save()
        self._current = None
        self._worker.unload()

    def _save(self) -> None:
        if self._worker.model is not None:
            self._worker.model.save_learned()

    def _stop_idle_timer(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _deliver(self) -> None:
        for event in self._worker.events():
            if isinstance(event, Beside):
                self._forward(event)
            elif self._reading:
                self._reading = False
                self._finish_reading(event)
            elif self._running is not None:
                _tell(self._running, event)
                if isinstance(event, End | Failed):
                    self._running = None
        self._next()

    def _forward(self, beside: Beside) -> None:
        """Give an event to the answer beside others that it belongs to."""
        job = next((one for one in self._together if one is beside.key), None)
        if job is None:
            return
        _tell(job, beside.event)
        if isinstance(beside.event, End | Failed):
            self._together.remove(job)

    def _finish_reading(self, event: WorkerEvent) -> None:
        """Note that a model is there; or tell those who wait for it that it will not come."""
        served, failed, untold = self._current, isinstance(event, Failed), self.state != "loading"
        if not untold:  # who waits for `loaded` tells it
            self.state = "failed" if failed else "ok"
            self._loaded.set()
        if not failed:
            return
        self._current = None
        for job in [one for one in self._waiting if one.served is served or self.state == "failed"]:
            self._waiting.remove(job)
            _tell(job, event, untold=untold)
            untold = False


def _tell(job: Job, event: WorkerEvent, *, untold: bool = True) -> None:
    """Give an event to a job, unless it says nothing to a client: behind one, what came before it would wait."""
    if isinstance(event, End | Failed):
        job.ended(event, untold)
    if not isinstance(event, Calling | Waiting):
        job.events.put_nowait(event)
