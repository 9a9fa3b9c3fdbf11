"""Noise by seed, position and token: exact distributions, and the filters of transformers."""

import math
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxmtp.decode.sampling import Sampling, choose, gumbel, largest

LOGITS = mx.array([2.0, 1.0, 0.5, 0.0, -1.0, -3.0, 1.7, 0.2])


def draw(sampling: Sampling, count: int, logits: mx.array = LOGITS, ids: mx.array | None = None) -> Any:
    """Tokens at ``count`` positions that all have the same logits."""
    rows = mx.broadcast_to(logits, (count, logits.shape[0]))
    return choose(rows, sampling.key(), mx.arange(count), sampling.filters, ids).tolist()


def expected(sampling: Sampling, logits: Any) -> list[float]:
    """The filtered distribution, written out in plain Python."""
    weights = [math.exp(x / sampling.temp) for x in logits]
    order = sorted(range(len(weights)), key=lambda i: -weights[i])
    kept = order[: sampling.top_k] if sampling.top_k else order
    total, mass, nucleus = sum(weights[i] for i in kept), 0.0, []
    for i in kept:
        if mass < sampling.top_p:
            nucleus.append(i)
        mass += weights[i] / total
    kept = [i for i in nucleus if weights[i] >= sampling.min_p * weights[nucleus[0]]]
    total = sum(weights[i] for i in kept)
    return [weights[i] / total if i in kept else 0.0 for i in range(len(weights))]


def chi_square(counts: list[int], probabilities: list[float]) -> float:
    n = sum(counts)
    return sum((c - n * p) ** 2 / (n * p) for c, p in zip(counts, probabilities, strict=True) if p > 0)


@pytest.mark.few(5)
@pytest.mark.parametrize(
    "settings_",
    [
        {"temp": 1.0},
        {"temp": 0.7, "top_k": 5},
        {"temp": 1.3, "top_p": 0.8},
        {"temp": 1.0, "min_p": 0.2},
        {"temp": 1.3, "top_k": 6, "top_p": 0.9, "min_p": 0.1},
    ],
    ids=str,
)
@pytest.mark.parametrize("across", ["positions", "seeds"])
def test_draws_follow_the_distribution(settings_, across):
    n = 4000
    if across == "positions":
        tokens: Any = draw(Sampling(**settings_, seed=11), n)
    else:
        at = mx.array([5])
        keys = [Sampling(**settings_, seed=seed * 7919) for seed in range(n)]
        filters = keys[0].filters
        tokens = mx.concatenate([choose(LOGITS[None], s.key(), at, filters) for s in keys]).tolist()
    probabilities = expected(Sampling(**settings_), LOGITS.tolist())
    counts = [tokens.count(i) for i in range(8)]
    assert all(c == 0 for c, p in zip(counts, probabilities, strict=True) if p == 0)
    assert chi_square(counts, probabilities) < 27  # 7 degrees of freedom: 1 in 3,000; seeds are fixed


def test_neighbouring_positions_and_seeds_are_independent():
    """Pairs of draws fill the product distribution: a shifted or repeated noise pattern would not."""
    logits = mx.zeros((4,))
    pairs = [0] * 16
    for seed in range(40):
        tokens = draw(Sampling(temp=1.0, seed=seed), 100, logits)
        following = draw(Sampling(temp=1.0, seed=seed + 1), 100, logits)
        for a, b in [*zip(tokens[::2], tokens[1::2], strict=True), *zip(tokens, following, strict=True)]:
            pairs[4 * a + b] += 1
    assert chi_square(pairs, [1 / 16] * 16) < 45  # 15 degrees of freedom


def test_the_noise_is_finite_and_gumbel_over_a_full_vocabulary():
    noise = gumbel(mx.array([3, 9], mx.uint32), mx.arange(8), mx.arange(262144)[None])
    assert bool(mx.isfinite(noise).all())
    assert abs(noise.mean().item() - 0.5772) < 0.005  # Euler's constant
    assert abs(noise.var().item() - math.pi**2 / 6) < 0.01


def test_restricted_candidates_get_the_noise_of_the_whole_vocabulary():
    """The drafter scores a few tokens only; it must find the winner of the full race if the winner is among them."""
    sampling = Sampling(temp=0.8, seed=4)
    full = draw(sampling, 300)
    ids = mx.array([6, 0, 3, 1])
    part = draw(sampling, 300, LOGITS[ids], ids)
    among = [(a, b) for a, b in zip(full, part, strict=True) if a in (6, 0, 3, 1)]
    assert len(among) > 200
    assert all(a == b for a, b in among)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 70), st.integers(1, 3), st.integers(0, 10_000))
def test_largest_in_blocks_is_the_largest(k, rows, seed):
    """Over a vocabulary large enough for the two-step search the result is that of a sort."""
    values = mx.random.normal((rows, 4 * 70 * 128), key=mx.random.key(seed))
    found = largest(values, k)
    wanted = mx.sort(values, axis=-1)[:, ::-1][:, :k]
    assert mx.array_equal(mx.take_along_axis(values, found, axis=-1), wanted)


def test_seeds_of_64_bits_differ():
    draws = {tuple(draw(Sampling(temp=1.0, seed=seed), 40)) for seed in (0, 1, 2**32, 2**63, 2**64 - 1)}
    assert len(draws) == 5


@pytest.mark.parametrize(
    "bad",
    [
        {"temp": -1},
        {"temp": math.nan},
        {"temp": math.inf},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"min_p": 2},
        {"seed": -1},
        {"seed": 2**64},
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Sampling(**bad)


def test_greedy_ignores_filters_and_seed():
    assert Sampling(temp=0, top_k=3, top_p=0.5, seed=1).filters == Sampling().filters
    assert draw(Sampling(seed=5), 3) == [0, 0, 0]
