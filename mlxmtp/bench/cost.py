"""What a round costs, t(K) = a + b K, what drafts earn, and what limits the gain.

With p_i the share of the draft tokens at position i that are accepted when all before them were,

    tokens(K) = 1 + p_1 + p_1 p_2 + ... + p_1 ... p_K        speed(K) = tokens(K) / t(K)

a is a pass of the target over one row; b is one draft step (d) and one more row to check (v).
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mlxmtp.bench.samples import Checking, Sample

Limit = Literal["the drafter's cost", "the cost of checking", "the cost of a draft token", "acceptance"]

_ENOUGH = 6  # rounds of a length from which its median time says something
_MATTERS = 0.01  # a gain smaller than this is none


@dataclass(frozen=True, slots=True)
class Point:
    """Rounds with `k` draft tokens: how many, and their median time in seconds, measured and by the line."""

    k: int
    rounds: int
    measured: float
    predicted: float


@dataclass(frozen=True, slots=True)
class Cost:
    """The line through measured rounds, in seconds: `base` + K `step`. `drafter` is the drafter's part of `step`."""

    base: float
    step: float
    points: tuple[Point, ...]
    drafter: float | None = None

    def seconds(self, k: int) -> float:
        """Of a round with `k` draft tokens."""
        return self.base + self.step * k

    def speed(self, k: int, accept: Sequence[float]) -> float:
        """Expected tokens per second with `k` draft tokens, `accept` as from `acceptance`."""
        return expected_tokens(k, accept) / self.seconds(k)

    def best(self, accept: Sequence[float]) -> int:
        """The fastest length among those whose acceptance is known."""
        return max(range(len(accept) + 1), key=lambda k: self.speed(k, accept))

    @property
    def checking(self) -> float | None:
        """Seconds for one more row to check."""
        return None if self.drafter is None else max(self.step - self.drafter, 0.0)

    @property
    def error(self) -> float:
        """The largest deviation of a point from the line, relative to what was measured."""
        return max(abs(point.predicted / point.measured - 1) for point in self.points)


def fit(times: Mapping[int, Sequence[float]]) -> Cost | None:
    """Least squares through the median times of rounds by draft length, weighted by their number.

    None with fewer than two lengths, or where the line has no positive base.
    """
    medians = {k: statistics.median(found) for k, found in sorted(times.items()) if len(found) >= _ENOUGH}
    if len(medians) < 2:
        return None
    weight = {k: float(len(times[k])) for k in medians}
    total = sum(weight.values())
    middle_k = sum(weight[k] * k for k in medians) / total
    middle_t = sum(weight[k] * t for k, t in medians.items()) / total
    step = sum(weight[k] * (k - middle_k) * (t - middle_t) for k, t in medians.items())
    step /= sum(weight[k] * (k - middle_k) ** 2 for k in medians)
    base = middle_t - step * middle_k
    if base <= 0:
        return None
    points = (Point(k, len(times[k]), t, base + step * k) for k, t in medians.items())
    return Cost(base, step, tuple(points))


def with_split(cost: Cost, checking: Checking | None) -> Cost:
    """The cost of a draft token told apart into drafter and checking, by the measured share of each."""
    if checking is None or not checking.drafted or not checking.free or cost.step <= 0:
        return cost
    saved = (statistics.median(checking.drafted) - statistics.median(checking.free)) / checking.k
    return replace(cost, drafter=min(max(saved, 0.0), cost.step))


def round_times(samples: Sequence[Sample]) -> dict[int, list[float]]:
    """Seconds of rounds by draft length. The first of every run is left out: more than one may be sent then."""
    found: dict[int, list[float]] = {}
    for sample in samples:
        for step in sample.rounds[1:]:
            found.setdefault(step.drafted, []).append(step.seconds)
    return found


def acceptance(samples: Sequence[Sample]) -> list[float]:
    """p_i by position: the share accepted of those whose predecessors were accepted."""
    tried: list[int] = []
    kept: list[int] = []
    for sample in samples:
        for step in (step for step in sample.rounds if step.whole):
            for position in range(min(step.accepted + 1, step.drafted)):
                if position == len(tried):
                    tried.append(0)
                    kept.append(0)
                tried[position] += 1
                kept[position] += position < step.accepted
    return [k / t for k, t in zip(kept, tried, strict=True)]


def expected_tokens(k: int, accept: Sequence[float]) -> float:
    """Tokens of a round with `k` drafts; positions beyond `accept` are accepted like its last."""
    total = product = 1.0
    for position in range(k):
        product *= accept[min(position, len(accept) - 1)] if accept else 0.0
        total += product
    return total


def remedies(cost: Cost, accept: Sequence[float]) -> dict[Limit, float]:
    """How much faster the best length would be (0.1 = 10 %) if each cost, or the share of rejections, were halved."""

    def best(cost: Cost, accept: Sequence[float]) -> float:
        return cost.speed(cost.best(accept), accept)

    now = best(cost, accept)
    found: dict[Limit, float] = {}
    if cost.drafter is None:
        found["the cost of a draft token"] = best(replace(cost, step=cost.step / 2), accept) / now - 1
    else:
        found["the drafter's cost"] = best(replace(cost, step=cost.step - cost.drafter / 2), accept) / now - 1
        checking = cost.checking or 0.0
        found["the cost of checking"] = best(replace(cost, step=cost.step - checking / 2), accept) / now - 1
    found["acceptance"] = best(cost, [(1 + share) / 2 for share in accept]) / now - 1
    return found


def limit(cost: Cost, accept: Sequence[float]) -> tuple[Limit, float] | None:
    """What holds the gain back most, and what halving it would bring; None if nothing would bring 1 %."""
    gains = remedies(cost, accept)
    name = max(gains, key=lambda key: gains[key])
    return (name, gains[name]) if gains[name] >= _MATTERS else None
