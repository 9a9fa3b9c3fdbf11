from __future__ import annotations

import json

import pytest

from mlxmtp.decode.round import Round
from mlxmtp.engine.stats import Meter
from tests.fake_decoder import fake_round


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_an_answer_in_numbers() -> None:
    clock = Clock()
    meter = Meter(prompt_tokens=50, seed=9, clock=clock)
    meter.reused_tokens = 10
    clock.now += 2.0
    meter.add(fake_round((1,)))
    clock.now += 0.5
    meter.show()
    clock.now += 0.5
    meter.add(fake_round((2, 3, 4), draft=(2, 3, 9), accepted=2))
    clock.now += 1.0
    meter.add(fake_round((5,), draft=(8,), accepted=0))
    stats = meter.stats(peak_memory=7, draft_reason="why")
    assert (stats.prompt_tokens, stats.reused_tokens, stats.prompt_seconds, stats.prompt_tps) == (50, 10, 2.0, 20.0)
    assert stats.time_to_first_token == 2.5
    assert (stats.generation_tokens, stats.generation_seconds, stats.generation_tps) == (5, 2.0, 2.0)
    assert (stats.rounds, stats.drafted, stats.accepted, stats.tokens_per_pass) == (2, 4, 2, 2.0)
    assert stats.acceptance_by_position == (0.5, 1.0, 0.0)
    assert (stats.peak_memory, stats.draft_reason, stats.seed) == (7, "why", 9)


def test_numbers_can_be_asked_before_anything_happened() -> None:
    clock = Clock()
    meter = Meter(prompt_tokens=5, seed=0, clock=clock)
    clock.now += 1.0
    stats = meter.stats()
    assert (stats.prompt_seconds, stats.generation_tps, stats.tokens_per_pass) == (1.0, 0.0, 0.0)


def test_the_dictionary_is_json_with_the_fields_names() -> None:
    meter = Meter(prompt_tokens=5, seed=3, clock=Clock())
    table = json.loads(json.dumps(meter.stats().to_dict()))
    assert table["seed"] == 3
    assert {"prompt_tps", "generation_tps", "acceptance_by_position", "tokens_per_pass"} <= set(table)


def test_copies_are_counted_apart_from_what_the_drafter_proposed() -> None:
    meter = Meter(prompt_tokens=1, seed=0, clock=Clock())
    meter.add(fake_round((1,)))
    meter.add(fake_round((1, 2), draft=(1, 3), accepted=1))
    meter.add(Round((4, 5, 6, 7), (4, 5, 6, 9), 3, copied=True))
    stats = meter.stats()
    assert (stats.drafted, stats.accepted, stats.copy_rounds, stats.copied, stats.rounds) == (2, 1, 1, 3, 2)
    assert stats.tokens_per_pass == 3


@pytest.mark.parametrize("accepted", [0, 1, 2])
def test_acceptance_is_counted_by_position(accepted: int) -> None:
    meter = Meter(prompt_tokens=1, seed=0, clock=Clock())
    meter.add(fake_round((1,)))
    meter.add(fake_round((1,) * (accepted + 1), draft=(1, 1), accepted=accepted))
    assert meter.stats().acceptance_by_position == tuple(float(index < accepted) for index in range(2))


def test_drafts_that_a_constraint_gave_are_not_counted_as_the_drafters() -> None:
    meter = Meter(prompt_tokens=1, seed=0, clock=Clock())
    meter.add(fake_round((1,)))
    meter.add(Round((1, 2, 3), (1, 2), 2, given=2))
    meter.add(Round((1, 2, 3, 4), (1, 2, 3, 9), 3, given=2))
    meter.add(Round((1,), (2, 3, 4), 0, given=2))
    stats = meter.stats()
    assert (stats.drafted, stats.accepted, stats.acceptance_by_position) == (3, 1, (1 / 2, 0.0))
