"""Answers side by side on the model's thread: every one of them is told its end, whatever fails."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from mlxmtp.app.together import Together
from mlxmtp.engine.events import End
from mlxmtp.engine.stats import Stats


class Failing:
    """Two answers, one of which ends in the step that fails."""

    def __init__(self) -> None:
        self.running: list[Any] = []
        self.closed = False

    def begin(self, ask: object, key: object) -> None:
        self.running.append(SimpleNamespace(tag=key, answer=SimpleNamespace(stats=Stats())))

    def step(self) -> list[tuple[Any, Any]]:
        if any(one.tag == "early" for one in self.running):
            early = self.running.pop(0)
            return [(early, End("stop", early.answer.stats))]
        self.running.pop(0)
        raise ValueError("a fault")

    def close(self) -> None:
        self.closed = True


def test_a_fault_in_a_step_is_told_to_all_that_wait_and_streams_are_closed() -> None:
    told: list[tuple[object, Any]] = []
    together = Together(4, lambda key, event: told.append((key, event)))
    made: list[Failing] = []

    def streams(_: int) -> Failing:
        made.append(Failing())
        return made[-1]

    opened = cast("Any", SimpleNamespace(model=SimpleNamespace(streams=streams)))
    for key in ("early", "ended", "late", "last"):
        together.join(key, cast("Any", None))
    together.run(opened)
    assert told[0][0] == "early"
    assert isinstance(told[0][1], End)
    assert {key for key, event in told[1:] if isinstance(event, ValueError)} == {"ended", "late", "last"}
    assert len(told) == 4
    assert made[0].closed
