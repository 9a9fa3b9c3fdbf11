"""The model's thread without a model: order, stopping, failures."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, cast

import pytest

from mlxmtp.app.worker import Beside, Failed, Prefill, Ready, Worker, WorkerEvent
from mlxmtp.engine.events import End, Text
from mlxmtp.engine.stats import Stats
from mlxmtp.errors import LoadError


class FakeAnswer:
    """Events from a list; `gate` is waited for before each one."""

    def __init__(self, events: list[Any], gate: threading.Semaphore | None = None) -> None:
        self.closed = False
        self.stats = Stats(generation_tokens=len(events))
        self._events = iter(events)
        self._gate = gate

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._gate is not None:
            assert self._gate.acquire(timeout=10)
        return next(self._events)

    def close(self) -> None:
        self.closed = True


def collect(thread: Worker) -> list[WorkerEvent]:
    """Everything until something ends."""
    found: list[WorkerEvent] = []
    while not (found and isinstance(found[-1], Ready | End | Failed)):
        assert not thread.wait(seconds=10)
        found += thread.events()
    return found


class FakeModel:
    """Remembers on which thread it was let go."""

    def __init__(self) -> None:
        self.closed_on: threading.Thread | None = None

    def close(self) -> None:
        self.closed_on = threading.current_thread()


def loaded(model: FakeModel | None = None) -> Worker:
    thread = Worker()
    thread.load(lambda: model or FakeModel())  # type: ignore[arg-type, return-value]
    assert collect(thread) == [Ready()]
    return thread


def test_everything_runs_on_one_thread_that_is_not_this_one() -> None:
    thread, seen = Worker(), []

    def read() -> Any:
        seen.append(threading.current_thread())
        return "a model"

    def begin(model: Any, on_prefill: Any) -> Any:
        seen.append(threading.current_thread())
        assert model == "a model"
        return FakeAnswer([End("stop", Stats())])

    thread.load(read)
    assert collect(thread) == [Ready()]
    thread.answer(begin)
    assert collect(thread) == [End("stop", Stats())]
    assert seen[0] is seen[1]
    assert seen[0] is not threading.current_thread()


def test_events_come_in_order() -> None:
    thread = loaded()

    def begin(model: Any, on_prefill: Any) -> Any:
        on_prefill(1, 2)
        return FakeAnswer([Text("a"), Text("b"), End("stop", Stats())])

    thread.answer(begin)
    assert collect(thread) == [Prefill(1, 2), Text("a"), Text("b"), End("stop", Stats())]


def test_stopping_closes_the_answer_and_says_so() -> None:
    thread, gate = loaded(), threading.Semaphore(0)
    answer = FakeAnswer([Text("a"), Text("b"), Text("c"), End("stop", Stats())], gate)
    thread.answer(lambda *_: answer)  # type: ignore[arg-type]
    gate.release()
    thread.wait(seconds=10)
    thread.stop()
    gate.release()
    found = collect(thread)
    assert found[-1] == End("cancelled", answer.stats)
    assert Text("c") not in found
    assert answer.closed


def test_stopping_ends_the_reading_of_a_prompt() -> None:
    thread, reading = loaded(), threading.Event()

    class Prompt(FakeAnswer):
        def __next__(self) -> Any:
            reading.set()
            for done in range(10_000):
                self.on_prefill(done, 10_000)  # type: ignore[attr-defined]
                threading.Event().wait(0.001)
            return super().__next__()

    answer = Prompt([Text("never")])

    def begin(model: Any, on_prefill: Any) -> Any:
        answer.on_prefill = on_prefill  # type: ignore[attr-defined]
        return answer

    thread.answer(begin)
    assert reading.wait(10)
    thread.stop()
    found = collect(thread)
    assert found[-1] == End("cancelled", answer.stats)
    assert Text("never") not in found
    assert answer.closed


def test_what_cannot_be_read_is_told_and_told_again() -> None:
    thread, error = Worker(), LoadError("damaged")

    def read() -> Any:
        raise error

    thread.load(read)
    assert collect(thread) == [Failed(error)]
    assert thread.error is error
    thread.answer(lambda *_: FakeAnswer([]))  # type: ignore[arg-type]
    assert collect(thread) == [Failed(error)]


def test_a_failure_leaves_the_thread_alive() -> None:
    thread, error = loaded(), ValueError("odd")

    def begin(model: Any, on_prefill: Any) -> Any:
        raise error

    thread.answer(begin)
    assert collect(thread) == [Failed(error)]
    thread.answer(lambda *_: FakeAnswer([End("stop", Stats())]))  # type: ignore[arg-type]
    assert collect(thread) == [End("stop", Stats())]


def test_what_is_no_exception_leaves_the_thread_alive() -> None:
    class Panic(BaseException):
        """What libraries written in Rust raise where they fail."""

    def fail(*_: Any) -> Any:
        raise Panic("at the disco")

    thread = Worker()
    thread.load(fail)
    assert isinstance(collect(thread)[-1], Failed)
    thread.load(lambda: cast("Any", FakeModel()))
    assert collect(thread) == [Ready()]
    thread.prepare(fail)
    thread.answer(fail)
    (failed,) = collect(thread)
    assert isinstance(failed, Failed)
    assert str(failed.error) == "Panic: at the disco"
    with pytest.raises(RuntimeError, match="at the disco"):
        thread.run(fail)
    thread.unload()
    assert thread.idle(10)


def test_what_is_no_exception_ends_answers_side_by_side_and_not_their_thread() -> None:
    class Panic(BaseException):
        """What libraries written in Rust raise where they fail."""

    class Panicking(FakeModel):
        @property
        def model(self) -> Any:
            raise Panic("at the disco")

    thread = loaded(Panicking())
    for key in ("one", "two"):
        thread.answer_beside(key, lambda *_: cast("Any", None))
        found: list[WorkerEvent] = []
        while not found:
            assert not thread.wait(seconds=10)
            found += thread.events()
        (told,) = found
        assert isinstance(told, Beside)
        assert isinstance(told.event, Failed)
        assert (told.key, str(told.event.error)) == (key, "Panic: at the disco")
    assert thread.idle(10)


def test_a_failure_beside_answers_leaves_the_thread_alive() -> None:
    class Stuck(FakeModel):
        def close(self) -> None:
            raise error

    def fail(_: object) -> None:
        raise error

    error, thread = RuntimeError("odd"), loaded(Stuck())
    thread.prepare(fail)
    thread.answer(lambda *_: FakeAnswer([End("stop", Stats())]))  # type: ignore[arg-type]
    assert collect(thread) == [End("stop", Stats())]
    thread.load(Stuck)  # type: ignore[arg-type]
    assert collect(thread) == [Failed(error)], "of the model before"
    thread.load(Stuck)  # type: ignore[arg-type]
    assert collect(thread) == [Ready()]
    thread.unload()
    thread.load(FakeModel)  # type: ignore[arg-type]
    assert collect(thread) == [Ready()]


def test_a_model_is_let_go_on_the_thread_before_the_next_is_read() -> None:
    first = FakeModel()
    thread = loaded(first)

    def read() -> Any:
        assert first.closed_on is threading.current_thread()
        return FakeModel()

    thread.load(read)
    assert thread.model is None
    assert collect(thread) == [Ready()]


def test_a_model_that_another_has_replaced_meanwhile_is_never_there() -> None:
    thread, reading, gate = Worker(), threading.Event(), threading.Event()
    first: Any = FakeModel()
    second: Any = FakeModel()

    def read_first() -> Any:
        reading.set()
        assert gate.wait(10)
        return first

    def read_second() -> Any:
        assert thread.model is None
        assert first.closed_on is threading.current_thread()
        return second

    thread.load(read_first)
    assert reading.wait(10)
    thread.load(read_second)
    gate.set()
    assert collect(thread) == [Ready()]
    assert thread.model is second


def test_a_model_that_nobody_waits_for_any_more_is_not_read() -> None:
    thread, begun, gate, read = loaded(), threading.Event(), threading.Event(), []

    def begin(model: Any, on_prefill: Any) -> Any:
        begun.set()
        assert gate.wait(10)
        return FakeAnswer([End("stop", Stats())])

    thread.answer(begin)
    assert begun.wait(10)

    def reader(name: str) -> Any:
        def one() -> Any:
            read.append(name)
            return FakeModel()

        return one

    thread.load(reader("one"))
    thread.load(reader("two"))
    gate.set()
    found: list[WorkerEvent] = []
    while Ready() not in found:
        found += collect(thread)
    assert found == [End("stop", Stats()), Ready()]
    assert read == ["two"]


def test_a_failure_of_a_model_that_was_given_up_is_no_trouble() -> None:
    thread, reading, gate = Worker(), threading.Event(), threading.Event()

    def read() -> Any:
        reading.set()
        assert gate.wait(10)
        raise LoadError("damaged")

    thread.load(read)
    assert reading.wait(10)
    thread.load(FakeModel)  # type: ignore[arg-type]
    gate.set()
    assert collect(thread) == [Ready()]
    assert thread.error is None
