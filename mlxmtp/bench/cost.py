"""Cost model of a round, t(K) = a + b K: expected speeds, the best draft length, and what limits the gain."""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mlxmtp.bench.samples import DrafterTiming, Sample

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
    """The line through measured rounds, in seconds: t(K) = `base` + K `step`; `drafter` is a part of `step`.

    `base` is a pass of the target over one row, `step` one draft step and one more row to verify. With p_i the share of
    the draft tokens at position i that are accepted when all before them were,

        tokens(K) = 1 + p_1 + p_1 p_2 + ... + p_1 ... p_K        speed(K) = tokens(K) / t(K)
    """

    base: float
    step: float
    points: tuple[Point, ...]
    drafter: float | None = None

    def seconds(self, k: int) -> float:
        return self.base + self.step * k

    def speed(self, k: int, accept: Sequence[float]) -> float:
        """Return the expected tokens per second with `k` draft tokens, `accept` as from `acceptance`."""
        return expected_tokens(k, accept) / self.seconds(k)

    def best(self, accept: Sequence[float]) -> int:
        """Return the fastest length among those whose acceptance is known."""
        return max(range(len(accept) + 1), key=lambda k: self.speed(k, accept))

    @property
    def verify(self) -> float | None:
        """Seconds for one more row to verify."""
        return None if self.drafter is None else max(self.step - self.drafter, 0.0)


def fit(times: Mapping[int, Sequence[float]]) -> Cost | None:
    """Fit median times by draft length by least squares; None with fewer than two lengths or no positive base."""
    medians = {k: statistics.median(found) for k, found in sorted(times.items()) if len(found) >= _ENOUGH}
    if len(medians) < 2:
        return None
    each = [k for k in medians for _ in times[k]]  # a length counts as often as it was timed
    step, base = statistics.linear_regression(each, [medians[k] for k in each])
    if base <= 0:
        return None
    points = (Point(k, len(times[k]), t, base + step * k) for k, t in medians.items())
    return Cost(base, step, tuple(points))


def with_split(cost: Cost, timing: DrafterTiming | None) -> Cost:
    """Return the cost with the drafter's part of a draft token, as measured."""
    if timing is None or not timing.with_drafter or not timing.without_its_cost or cost.step <= 0:
        return cost
    saved = statistics.median(timing.with_drafter) - statistics.median(timing.without_its_cost)
    return replace(cost, drafter=min(max(saved / timing.num_draft_tokens, 0.0), cost.step))


def round_times(samples: Sequence[Sample]) -> dict[int, list[float]]:
    """Group the seconds of rounds by draft length, without the first of every run: more than one may be sent then."""
    found: dict[int, list[float]] = {}
    for step in (step for sample in samples for step in sample.rounds[1:]):
        found.setdefault(step.drafted, []).append(step.seconds)
    return found


def acceptance(samples: Iterable[Sample], *, conditional: bool = True) -> list[float]:
    """Return the share of draft tokens accepted at each position: of all proposed there, or conditional (p_i above)."""
    tried: Counter[int] = Counter()
    accepted: Counter[int] = Counter()
    for step in (step for sample in samples for step in sample.rounds if step.complete):
        tried.update(range(min(step.accepted + 1, step.drafted) if conditional else step.drafted))
        accepted.update(range(step.accepted))
    return [accepted[position] / tried[position] for position in range(len(tried))]


def expected_tokens(k: int, accept: Sequence[float]) -> float:
    """Return the mean tokens of a round with `k` drafts; positions beyond `accept` are accepted like its last."""
    total = product = 1.0
    for position in range(k):
        product *= accept[min(position, len(accept) - 1)] if accept else 0.0
        total += product
    return total


def remedies(cost: Cost, accept: Sequence[float]) -> dict[Limit, float]:
    """Return how much faster the best length would be (0.1 = 10 %) with each cost, or the rejections, halved."""

    def best(step: float, accept: Sequence[float]) -> float:
        changed = replace(cost, step=step)
        return changed.speed(changed.best(accept), accept)

    halved: dict[Limit, float] = {"the cost of a draft token": cost.step}
    if cost.drafter is not None:
        halved = {"the drafter's cost": cost.drafter, "the cost of checking": cost.verify or 0.0}
    now = best(cost.step, accept)
    found: dict[Limit, float] = {name: best(cost.step - part / 2, accept) / now - 1 for name, part in halved.items()}
    found["acceptance"] = best(cost.step, [(1 + share) / 2 for share in accept]) / now - 1
    return found


def limit(cost: Cost, accept: Sequence[float]) -> tuple[Limit, float] | None:
    """Return the cost that most holds the gain back and what halving it would bring; None below 1 %."""
    gains = remedies(cost, accept)
    name = max(gains, key=lambda key: gains[key])
    return (name, gains[name]) if gains[name] >= _MATTERS else None
