"""The draft length's controller, against a simulated text and machine (no clock is read)."""

import random
from collections.abc import Callable

import pytest

from mlxmtp.decode.depth import LENGTHS, MAX_DRAFT, Depth

Cost = Callable[[int], float]
COSTS: dict[str, Cost] = {
    "a draft costs a tenth of a round": lambda k: 1 + 0.1 * k,
    "a quarter": lambda k: 1 + 0.25 * k,
    "a half, and a third to begin": lambda k: 1.3 + 0.5 * k if k else 1.0,
    "little up to three, then a cliff": lambda k: 1 + 0.15 * k + (1.5 if k > 3 else 0),
}


def play(
    depth: Depth, accept: Callable[[int], float], cost: Cost, tokens: int, seed: int = 0
) -> tuple[float, list[tuple[int, int]]]:
    """Decodes `tokens` tokens: the time it took, and (token, draft length) of each round."""
    rng = random.Random(seed)
    spent, done, history = 0.0, 0, []
    while done < tokens:
        k = depth.choose()
        accepted = 0
        while accepted < k and rng.random() < accept(done):
            accepted += 1
        history.append((done, k))
        spent += cost(k)
        pause = 3.0 if rng.random() < 0.01 else 1.0  # now and then the machine does something else
        depth.observe(k, accepted, cost(k) * pause * rng.uniform(0.92, 1.08))
        done += accepted + 1
    return spent / done, history


def best_fixed(accept: float, cost: Cost) -> float:
    expected = [sum(accept**i for i in range(k + 1)) for k in range(MAX_DRAFT + 1)]
    return min(cost(k) / expected[k] for k in range(MAX_DRAFT + 1))


@pytest.mark.parametrize("accept", [0.0, 0.3, 0.6, 0.8, 0.95])
@pytest.mark.parametrize("cost", COSTS.values(), ids=COSTS)
def test_it_comes_close_to_the_best_length_known_afterwards(accept, cost):
    runs = [play(Depth(), lambda _: accept, cost, 600, seed)[0] for seed in range(5)]
    assert sum(runs) / len(runs) < 1.12 * best_fixed(accept, cost)


@pytest.mark.parametrize("cost", COSTS.values(), ids=COSTS)
def test_text_that_cannot_be_drafted_costs_little(cost):
    runs = [play(Depth(), lambda _: 0.0, cost, 600, seed)[0] for seed in range(5)]
    assert sum(runs) / len(runs) < 1.04 * cost(0)


def test_it_stops_drafting_and_comes_back():
    """Hard text parks it within 30 tokens; a few dozen tokens into easy text it drafts again."""
    cost = COSTS["a quarter"]
    _, history = play(Depth(), lambda token: 0.95 if token < 200 or token >= 400 else 0.02, cost, 600, seed=1)
    hard = [k for token, k in history if 230 <= token < 400]
    easy = [k for token, k in history if token >= 520]
    assert sum(k > 0 for k in hard) / len(hard) < 0.15
    assert sum(easy) / len(easy) > 3


def test_a_fixed_length_is_kept_whatever_happens():
    depth = Depth(fixed=5)
    _, history = play(depth, lambda _: 0.0, COSTS["a half, and a third to begin"], 50)
    assert {k for _, k in history} == {5}


def test_without_a_drafter_nothing_is_drafted():
    for depth in (Depth(limit=0), Depth(limit=0, fixed=4)):
        assert depth.choose() == 0
        assert depth.gain() is None


def test_it_knows_its_gain_and_its_loss():
    winning, losing = Depth(), Depth()
    play(winning, lambda _: 0.8, COSTS["a quarter"], 300)
    play(losing, lambda _: 0.0, COSTS["a quarter"], 300)
    assert winning.best() > 0
    assert winning.speed(winning.best()) > 1.3 * winning.speed(0)
    assert losing.best() == 0
    assert losing.speed(1) < losing.speed(0)
    assert (winning.gain() or 0) > 1.3
    assert (losing.gain() or 2) < 1
    assert Depth().gain() is None


def test_acceptance_is_learned_by_position():
    depth = Depth(fixed=3)
    for _ in range(200):
        depth.observe(3, 2, 1.0)
    assert [round(a, 2) for a in depth.acceptance] == [1.0, 1.0, 0.0]
    assert round(depth.tokens(3), 1) == 3.0


def test_plain_is_not_measured_where_drafting_surely_pays():
    """With nine of ten drafts accepted no clock is needed to know; its two rounds would cost a short answer most."""
    _, history = play(Depth(), lambda _: 0.97, COSTS["a quarter"], 60)
    assert 0 not in {k for _, k in history}


@pytest.mark.parametrize("accept", [0.2, 0.7, 0.99])
def test_only_a_few_lengths_are_tried(accept):
    _, history = play(Depth(), lambda _: accept, COSTS["a quarter"], 400)
    assert {k for _, k in history} <= set(LENGTHS)
