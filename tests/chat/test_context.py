from __future__ import annotations

import pytest

from mlxmtp.app.turn import RESERVE, fit, reserve_for


@pytest.mark.parametrize(
    ("used", "exchanges", "full", "warns", "droppable"),
    [
        (0, [], False, False, 0),
        (799, [300, 300], False, False, 0),
        (800, [300, 300], False, True, 0),
        (900, [300, 300], False, True, 0),
        (901, [300, 300], True, False, 1),
        (1201, [300, 300], True, False, 2),
        (1501, [300, 300], True, False, None),
        (1501, [], True, False, None),
        (901, [0, 1, 300], True, False, 2),
    ],
)
def test_a_prompt_fits_or_says_what_must_go(
    used: int, exchanges: list[int], full: bool, warns: bool, droppable: int | None
) -> None:
    room = fit(used, exchanges, context=1000, reserve=100)
    assert (room.full, room.warns, room.droppable) == (full, warns, droppable)
    assert room.percent == used // 10


def test_the_reserve_is_the_answers_limit_and_never_most_of_a_small_context() -> None:
    assert reserve_for(131072, None) == RESERVE
    assert reserve_for(131072, 50) == 50
    assert reserve_for(4096, None) == reserve_for(4096, 4000) == 512


def test_dropping_what_it_says_makes_it_fit() -> None:
    exchanges = [50, 400, 10, 300, 200]
    room = fit(1200, exchanges, 1000, 100)
    assert room.droppable == 2
    assert not fit(1200 - sum(exchanges[:2]), exchanges[2:], 1000, 100).full
    assert fit(1200 - sum(exchanges[:1]), exchanges[1:], 1000, 100).full
