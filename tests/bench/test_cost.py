"""The cost model: it finds the line again, counts tokens as the formula says, and names the right limit."""

from __future__ import annotations

import random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mlxmtp.bench.cost import acceptance, expected_tokens, fit, limit, remedies, round_times, with_split
from mlxmtp.bench.samples import Case, DrafterTiming, Round
from tests.bench.fake_harness import sample

lengths = st.lists(st.integers(0, 8), min_size=2, max_size=6, unique=True)
shares = st.lists(st.floats(0, 1), min_size=1, max_size=8)


@given(st.floats(1e-3, 1), st.floats(0, 0.5), lengths, st.integers(6, 50))
def test_the_fit_recovers_an_exact_line(base, step, ks, count):
    cost = fit({k: [base + step * k] * (count + k) for k in ks})
    assert cost is not None
    assert cost.base == pytest.approx(base, rel=1e-6)
    assert cost.step == pytest.approx(step, rel=1e-6, abs=1e-9)
    assert [point.predicted for point in cost.points] == pytest.approx([point.measured for point in cost.points])


def test_the_fit_survives_noise_and_pauses_of_the_machine():
    numbers = random.Random(7)
    times = {k: [(0.012 + 0.003 * k) * numbers.gauss(1, 0.03) for _ in range(200)] for k in (0, 1, 3, 5)}
    for found in times.values():
        found[::20] = [0.5] * len(found[::20])
    cost = fit(times)
    assert cost is not None
    assert cost.base == pytest.approx(0.012, rel=0.03)
    assert cost.step == pytest.approx(0.003, rel=0.05)


def test_lengths_weigh_by_their_rounds():
    cost = fit({0: [0.010] * 1000, 1: [0.012] * 1000, 2: [0.020] * 6})
    assert cost is not None
    assert cost.seconds(1) == pytest.approx(0.012, rel=0.01)


@pytest.mark.parametrize("times", [{}, {0: [0.01] * 9}, {0: [0.01] * 9, 3: [0.02] * 5}, {1: [0.01] * 9, 2: [1.0] * 9}])
def test_there_is_no_line_where_there_is_nothing_to_draw_it_through(times):
    assert fit(times) is None


@given(shares, st.integers(0, 8))
def test_expected_tokens_grow_with_the_length_and_stay_below_it(accept, k):
    tokens = expected_tokens(k, accept)
    assert 1 <= tokens <= k + 1
    assert expected_tokens(k + 1, accept) >= tokens


def test_expected_tokens_follow_the_formula():
    assert expected_tokens(3, [0.5, 0.4, 0.1]) == pytest.approx(1 + 0.5 + 0.2 + 0.02)
    assert expected_tokens(3, [0.5]) == pytest.approx(1 + 0.5 + 0.25 + 0.125)
    assert expected_tokens(2, []) == 1


def test_acceptance_counts_only_what_was_reached_and_no_cut_round():
    rounds = (Round(3, 3, 4, 1), Round(3, 0, 1, 1), Round(3, 1, 2, 1), Round(3, 2, 2, 1))
    made = sample(3)
    object.__setattr__(made, "rounds", rounds)
    assert acceptance([made]) == [2 / 3, 1 / 2, 1.0]
    assert round_times([made]) == {3: [1, 1, 1]}


def split(k: int, drafted: float, free: float) -> DrafterTiming:
    return DrafterTiming(Case("m", None), k, (drafted,) * 9, (free,) * 9)


@given(st.floats(1e-3, 0.1), st.floats(1e-5, 0.01), st.floats(1e-5, 0.01), st.integers(1, 8))
def test_drafter_and_checking_are_told_apart(base, drafter, checking, k):
    cost = fit({n: [base + (drafter + checking) * n] * 9 for n in (0, k)})
    assert cost is not None
    told = with_split(cost, split(k, base + (drafter + checking) * k, base + checking * k))
    assert told.drafter == pytest.approx(drafter, rel=1e-4)
    assert told.verify == pytest.approx(checking, rel=1e-4)


def test_a_split_that_noise_made_impossible_stays_within_the_cost_of_a_token():
    cost = fit({0: [0.010] * 9, 2: [0.014] * 9})
    assert cost is not None
    assert with_split(cost, split(2, 0.014, 0.015)).drafter == 0
    assert with_split(cost, split(2, 0.030, 0.010)).verify == 0


@pytest.mark.parametrize(
    ("drafter", "checking", "accept", "expected"),
    [
        (0.004, 0.0004, [0.99] * 4, "the drafter's cost"),
        (0.0004, 0.004, [0.99] * 4, "the cost of checking"),
        (0.0001, 0.0001, [0.3] * 4, "acceptance"),
    ],
)
def test_the_limit_is_what_would_help_most(drafter, checking, accept, expected):
    step = drafter + checking
    cost = fit({k: [0.01 + step * k] * 9 for k in (0, 4)})
    assert cost is not None
    found = limit(with_split(cost, split(4, 0.01 + 4 * step, 0.01 + 4 * checking)), accept)
    assert found is not None
    assert found[0] == expected


def test_nothing_limits_a_drafter_that_is_free_and_right():
    cost = fit({0: [0.01] * 9, 4: [0.01] * 9})
    assert cost is not None
    assert limit(cost, [1.0] * 4) is None


@given(st.floats(1e-3, 1), st.floats(1e-4, 0.5), shares)
def test_a_remedy_never_hurts(base, step, accept):
    cost = fit({k: [base + step * k] * 9 for k in (0, 3)})
    assume(cost is not None)
    assert cost is not None
    assert all(gain >= -1e-9 for gain in remedies(cost, accept).values())
