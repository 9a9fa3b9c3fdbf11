"""The thread that owns the model (MLX keeps streams and traces per thread), so that Ctrl-C never strikes inside MLX."""

from __future__ import annotations

import os
import select
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Event, Lock, Thread
from typing import Any, TypeVar

from mlxmtp.app.open import OpenModel
from mlxmtp.app.together import Together
from mlxmtp.engine import events
from mlxmtp.engine.answer import Answer, OnPrefill
from mlxmtp.errors import MlxmtpError, as_exception

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is in memory."""


@dataclass(frozen=True, slots=True)
class Prefill:
    """The number of the prompt's tokens that are in the KV cache."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Failed:
    """Nothing more will come of what was asked for."""

    error: Exception


@dataclass(frozen=True, slots=True)
class Beside:
    """An event of the answer that was asked for by `answer_beside` with this key."""

    key: object
    event: events.Event | Failed


WorkerEvent = Ready | Prefill | events.Event | Failed | Beside
"""`load` ends in Ready or Failed, `answer` in End or Failed."""


_TAKING = 0.002
"""Seconds that the reader of events has to take the first words."""


class _Stopped(Exception):
    """Raised into the prefill of a prompt, to end it."""


class Worker:
    """One model at a time, one job at a time. Only the thread that made this object may call it."""

    def __init__(self, parallel: int = 1) -> None:
        """`parallel`: answers at a time among those that are asked for with `answer_beside`."""
        self._together = Together(parallel, self._tell_beside)
        self.model: OpenModel | None = None
        self.error: Exception | None = None  # of reading the model
        self._silent: set[object] = set()  # keys of answers beside others of which nothing has come
        self._jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._events: deque[WorkerEvent] = deque()
        self._stop, self._taken = Event(), Event()
        self._wanted: object = None  # stands for the model that was asked for last
        self._lock = Lock()
        self._bell, self._button = os.pipe()
        os.set_blocking(self._bell, False)
        os.set_blocking(self._button, False)
        self._thread: Thread | None = None

    def load(self, read: Callable[[], OpenModel]) -> None:
        """Read a model after freeing the one before it. Of several asked for meanwhile, only the last has an event."""
        with self._lock:
            before, self.model, self.error = self.model, None, None
            self._wanted = wanted = object()

        def job() -> None:
            nonlocal before
            model, error = None, None
            try:
                self._let_go(before)
                before = None  # here, where its traces are
                if self._wanted is not wanted:
                    return
                model = read()
            except BaseException as failure:  # noqa: BLE001  (told, like every other, where the person is)
                error = as_exception(failure)
            with self._lock:
                given_up = self._wanted is not wanted
                if not given_up:
                    self.model, self.error = model, error
            if not given_up:
                self._emit(Ready() if error is None else Failed(error))
            elif model is not None:
                model.close()

        self._do(job)

    def unload(self) -> None:
        """Free the model; nothing can be asked until another is read."""
        with self._lock:
            before, self.model = self.model, None
            self._wanted = object()

        def job() -> None:
            nonlocal before
            with suppress(BaseException):  # the next load tells what is wrong
                self._let_go(before)
            before = None  # here, where its traces are

        self._do(job)

    def _let_go(self, model: OpenModel | None) -> None:
        """Close a model and what answers side by side on it."""
        self._together.close()
        if model is not None:
            model.close()

    def answer(self, begin: Callable[[OpenModel, OnPrefill], Answer]) -> None:
        """Answer with the model, once it is there; `begin` runs on the thread."""
        self._stop = stop = Event()
        told = -1

        def on_prefill(done: int, total: int) -> None:
            nonlocal told
            if stop.is_set():
                raise _Stopped
            if done != told:  # it is called after every layer
                told = done
                self._emit(Prefill(done, total))

        def job() -> None:
            if self.model is None:
                self._emit(Failed(self.error or MlxmtpError("No model is loaded: choose one with /model.")))
                return
            try:
                answer = begin(self.model, on_prefill)
                silent = True
                with suppress(_Stopped):
                    for event in answer:
                        self._emit(event)
                        if isinstance(event, events.End):
                            return
                        if silent and isinstance(event, events.Text | events.Thinking):
                            silent = False
                            self._wait_for_reader()
                        if stop.is_set():
                            break
                answer.close()
                self._emit(events.End("cancelled", answer.stats))
            except BaseException as error:  # noqa: BLE001  (told, like every other, where the person is)
                self._emit(Failed(as_exception(error)))

        self._do(job)

    def answer_beside(self, key: object, begin: Callable[[OpenModel, OnPrefill], Answer]) -> None:
        """Answer beside others asked for in this way; events come as `Beside`, ending in End or Failed."""

        def job() -> None:
            if self.model is None:
                self._together.fail(self.error or MlxmtpError("No model is loaded."))
            else:
                self._together.run(self.model)

        self._silent.add(key)
        if self._together.join(key, begin):
            self._do(job)

    def leave(self, key: object) -> None:
        """End an answer that was asked for with `answer_beside` as soon as possible."""
        self._together.leave(key)

    def _tell_beside(self, key: object, event: Any) -> None:
        self._emit(Beside(key, Failed(event) if isinstance(event, Exception) else event))
        if key in self._silent:
            self._silent.remove(key)
            self._wait_for_reader()

    def prepare(self, job: Callable[[OpenModel], None]) -> None:
        """Have `job` done with the model once it is there, before any later answer, which meets what it raises."""

        def task() -> None:
            if self.model is not None:
                with suppress(BaseException):
                    job(self.model)

        self._do(task)

    def run(self, job: Callable[[OpenModel], T]) -> T:
        """Return what `job` makes of the model where it lives; what it raises is raised here."""
        assert self.model is not None, "nothing is run before the model is there"
        model, future = self.model, Future[T]()

        def task() -> None:
            try:
                future.set_result(job(model))
            except BaseException as error:  # noqa: BLE001  (raised where the job was given)
                future.set_exception(as_exception(error))

        self._do(task)
        return future.result()

    def idle(self, seconds: float) -> bool:
        """Return whether everything asked for has ended by then; false for a model that does not react."""
        over = Event()
        self._do(over.set)
        return over.wait(seconds)

    def ended(self) -> Future[None]:
        """Return what is done once everything asked for until now has ended."""
        over = Future[None]()

        def task() -> None:
            if over.set_running_or_notify_cancel():
                over.set_result(None)

        self._do(task)
        return over

    def stop(self) -> None:
        """End the answer as soon as possible: its `End` says so and comes as any other."""
        self._stop.set()

    @property
    def bell(self) -> int:
        """A file descriptor that can be read when events have come, for those who wait in a loop of their own."""
        return self._bell

    def wait(self, *keys: int, seconds: float | None = None) -> bool:
        """Sleep until an event comes, a file descriptor of `keys` can be read, or time is up; true for a key."""
        ready, _, _ = select.select([self._bell, *keys], [], [], seconds)
        return any(key in ready for key in keys)

    def wake(self) -> None:
        with suppress(BlockingIOError):  # so many rings are waiting already
            os.write(self._button, b"\0")

    def _wait_for_reader(self) -> None:
        """Let the first words of an answer be taken before the next round is built, which keeps others from running."""
        self._taken.clear()
        if self._events:
            self._taken.wait(_TAKING)

    def events(self) -> Sequence[WorkerEvent]:
        with suppress(BlockingIOError):
            os.read(self._bell, 1 << 16)
        found = [self._events.popleft() for _ in range(len(self._events))]
        self._taken.set()
        return found

    def _emit(self, event: WorkerEvent) -> None:
        self._events.append(event)
        self.wake()

    def _do(self, job: Callable[[], None]) -> None:
        def work() -> None:
            while True:
                self._jobs.get()()

        self._jobs.put(job)
        if self._thread is None:
            self._thread = Thread(target=work, name="mlxmtp-model", daemon=True)
            self._thread.start()
