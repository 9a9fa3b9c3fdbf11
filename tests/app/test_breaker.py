"""The circuit breaker, with a clock that the test turns."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mlxmtp.app.breaker import FAILURES, WITHIN, Breaker

REST, LONGEST = 30.0, 600.0


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def failing(count: int = FAILURES) -> tuple[Breaker, Clock]:
    clock = Clock()
    breaker = Breaker(clock)
    for _ in range(count):
        assert breaker.begin()
        breaker.fail()
    return breaker, clock


def test_it_opens_after_failures_and_tries_once_after_the_rest() -> None:
    breaker, clock = failing(FAILURES - 1)
    assert not breaker.seconds_left
    breaker.fail()
    assert (breaker.seconds_left, breaker.begin()) == (REST, False)
    clock.now += REST
    assert not breaker.seconds_left
    assert [breaker.begin() for _ in range(3)] == [True, False, False]
    breaker.succeed()
    assert [breaker.begin() for _ in range(3)] == [True] * 3


def test_failures_long_apart_do_not_count_together() -> None:
    breaker, clock = failing(FAILURES - 1)
    clock.now += WITHIN + 1
    breaker.fail()
    assert not breaker.seconds_left
    breaker.fail()
    breaker.succeed()  # an answer in between: the server lives
    breaker.fail()
    assert not breaker.seconds_left
    assert [breaker.begin() for _ in range(3)] == [True] * 3


def test_a_trial_that_fails_doubles_the_rest_up_to_ten_minutes() -> None:
    breaker, clock = failing()
    rests = []
    for _ in range(7):
        clock.now += breaker.seconds_left
        assert breaker.begin()
        breaker.fail()
        rests.append(breaker.seconds_left)
    assert rests == [60, 120, 240, 480, 600, 600, 600]
    clock.now += breaker.seconds_left
    assert breaker.begin()
    breaker.succeed()
    for _ in range(FAILURES):
        breaker.fail()
    assert breaker.seconds_left == REST  # all is forgotten


def test_a_server_that_asks_for_time_gets_it_at_once() -> None:
    breaker, clock = failing(0)
    breaker.fail(retry_after=7)
    assert (breaker.begin(), breaker.seconds_left) == (False, 7)
    clock.now += 7
    assert breaker.begin()
    breaker.fail(retry_after=1e9)
    assert breaker.seconds_left == LONGEST


def test_a_trial_that_was_given_up_is_free_for_another() -> None:
    breaker, clock = failing()
    clock.now += REST
    assert breaker.begin()
    breaker.give_up()
    assert breaker.begin()
    assert not breaker.begin()
    clock.now += LONGEST  # a trial of which nothing is heard any more
    assert breaker.begin()


STEPS = st.lists(
    st.one_of(
        st.sampled_from(["begin", "succeed", "give up"]),
        st.floats(0, 900).map(lambda seconds: ("wait", seconds)),
        st.none() | st.floats(0, 2000),
    ),
    max_size=60,
)


@given(STEPS)
def test_whatever_happens(steps: list[object]) -> None:
    """Never open longer than ten minutes, closed without failures, and one request at a time after a rest."""
    clock = Clock()
    breaker, opened, trial, failures = Breaker(clock), False, -LONGEST, 0
    for step in steps:
        if step == "begin":
            may = not opened or (not breaker.seconds_left and clock.now - trial >= LONGEST)
            assert breaker.begin() == may
            trial = clock.now if may and opened else trial
        elif step == "succeed":
            breaker.succeed()
            if trial >= 0 or not opened:  # else it is of a request from before the rest
                opened, failures = False, 0
            trial = -LONGEST if not opened else trial
        elif step == "give up":
            breaker.give_up()
            trial = -LONGEST
        elif isinstance(step, tuple):
            clock.now += step[1]
        else:
            breaker.fail(step)  # type: ignore[arg-type]
            opened, trial, failures = opened or bool(step) or breaker.seconds_left > 0, -LONGEST, failures + 1
        assert breaker.seconds_left <= LONGEST + 1e-6
        assert failures or not breaker.seconds_left
