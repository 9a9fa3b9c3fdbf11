"""Samples to the figures of a report: by case and arm, and by kind of text."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from mlxmtp.bench.cost import Cost, acceptance, fit, round_times, with_split
from mlxmtp.bench.samples import Arm, Case, Checking, Parting, Sample

Difference = Literal["faster", "slower", "same within spread", "unclear"]


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, lowest and highest of some values, and how many they were."""

    median: float
    low: float
    high: float
    count: int

    def text(self, digits: int = 0) -> str:
        """`280 (271–284)`; one value stands alone."""
        middle = f"{self.median:.{digits}f}"
        return middle if self.count == 1 else f"{middle} ({self.low:.{digits}f}–{self.high:.{digits}f})"

    def times(self, factor: float) -> Spread:
        """In another unit."""
        return Spread(self.median * factor, self.low * factor, self.high * factor, self.count)


def spread(values: Iterable[float]) -> Spread | None:
    """None without values."""
    found = list(values)
    return Spread(statistics.median(found), min(found), max(found), len(found)) if found else None


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the `values` lie, between neighbours on a line (numpy's default).

    Raises ValueError without values or for a share outside 0 to 1.
    """
    if not values or not 0 <= share <= 1:
        raise ValueError("a quantile needs values and a share from 0 to 1")
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def compare(before: Spread, after: Spread, *, more_is_better: bool = True) -> Difference:
    """Whether `after` is better than `before`: only if no value of one lies within the other's spread.

    With three values on each side that happens by luck once in ten times, with five once in 126. One value has no
    spread, so nothing can be said.
    """
    if min(before.count, after.count) < 2:
        return "unclear"
    if after.low > before.high:
        return "faster" if more_is_better else "slower"
    if after.high < before.low:
        return "slower" if more_is_better else "faster"
    return "same within spread"


WAITS = (0.5, 0.95, 0.99)


@dataclass(frozen=True, slots=True)
class Speed:
    """Decoding of some texts in one way. A spread is over repetitions; `gain` is in units of the plain speed."""

    tps: Spread
    gain: Spread | None
    accepted: float | None
    per_pass: float


@dataclass(frozen=True, slots=True)
class ArmFigures:
    """One row of the report. `prompt_tps` in tokens per second, times in seconds, memory in bytes.

    `waits` are quantiles of the time between two moments at which text appears: the tokens of a round appear at once.
    `by_position[i]` is the share of the draft tokens proposed at position i that were kept. `partings` are the texts
    that differ from plain, out of `compared`.
    """

    case: Case
    arm: Arm
    speed: Speed
    kinds: dict[str, Speed]
    prompt_tokens: Spread
    prompt_tps: Spread
    first_token: Spread
    latency: Spread
    waits: tuple[float, ...]
    by_position: tuple[float, ...]
    peak_memory: int
    compared: int
    partings: tuple[Parting, ...]

    def to_dict(self) -> dict[str, Any]:
        """As the schema has it."""
        return {
            "model": self.case.model,
            "length": self.case.length,
            "num_draft_tokens": self.arm,
            **_speed_to_dict(self.speed),
            "kinds": {kind: _speed_to_dict(speed) for kind, speed in self.kinds.items()},
            "prompt_tokens": asdict(self.prompt_tokens),
            "prompt_tps": asdict(self.prompt_tps),
            "first_token_seconds": asdict(self.first_token),
            "total_seconds": asdict(self.latency),
            "wait_seconds": {f"p{100 * share:.0f}": value for share, value in zip(WAITS, self.waits, strict=True)},
            "acceptance_by_position": list(self.by_position),
            "peak_memory": self.peak_memory,
            "same_text": None if self.arm == 0 else not self.partings,
            "texts_compared": self.compared,
            "texts_different": len(self.partings),
        }


@dataclass(frozen=True, slots=True)
class CaseFigures:
    """All arms on one case. `accept` is the acceptance the cost model counts with."""

    case: Case
    arms: tuple[ArmFigures, ...]
    cost: Cost | None
    accept: tuple[float, ...]

    def arm(self, arm: Arm) -> ArmFigures | None:
        """The row of an arm."""
        return next((row for row in self.arms if row.arm == arm), None)

    @property
    def fixed(self) -> list[ArmFigures]:
        """Rows of fixed draft lengths, plain first."""
        return sorted((row for row in self.arms if row.arm != "auto"), key=lambda row: int(row.arm))

    @property
    def kinds(self) -> list[str]:
        """Kinds of text, in the order in which they were measured."""
        return list(self.arms[0].kinds)


def figures(samples: Iterable[Sample], checking: Iterable[Checking] = ()) -> list[CaseFigures]:
    """Every case in the order of measurement; what an interruption left half done is left out."""
    cases: dict[Case, list[Sample]] = defaultdict(list)
    for sample in complete(list(samples)):
        cases[sample.case].append(sample)
    splits = {one.case: one for one in checking}
    return [_case(case, found, splits.get(case)) for case, found in cases.items()]


def complete(samples: Sequence[Sample]) -> list[Sample]:
    """Only what compares like with like: texts decoded in all ways, and if there is one, whole repetitions."""
    cases: dict[Case, list[Sample]] = defaultdict(list)
    for sample in samples:
        cases[sample.case].append(sample)
    kept: list[Sample] = []
    for found in cases.values():
        arms = len({sample.arm for sample in found})
        sizes: dict[Any, int] = defaultdict(int)
        for sample in found:
            sizes[sample.group] += 1
        even = [sample for sample in found if sizes[sample.group] == arms]
        repetitions: dict[int, int] = defaultdict(int)
        for sample in even:
            repetitions[sample.repetition] += 1
        most = max(repetitions.values(), default=0)
        kept += [sample for sample in even if repetitions[sample.repetition] == most]
    return kept


def _case(case: Case, samples: list[Sample], split: Checking | None) -> CaseFigures:
    arms = list(dict.fromkeys(sample.arm for sample in samples))
    plain = [sample for sample in samples if sample.arm == 0]
    rows = tuple(_row(case, arm, [sample for sample in samples if sample.arm == arm], plain) for arm in arms)
    fixed = [sample for sample in samples if sample.arm not in (0, "auto")]
    # What `auto` tries depends on how easy the text is, so it only speaks where nothing else does.
    times = round_times([*plain, *fixed] if fixed else samples)
    cost = fit(times)
    accept = tuple(acceptance(fixed or samples))
    return CaseFigures(case, rows, None if cost is None else with_split(cost, split), accept)


def _row(case: Case, arm: Arm, samples: list[Sample], plain: list[Sample]) -> ArmFigures:
    kinds = list(dict.fromkeys(sample.kind for sample in samples))
    waits = [step.seconds for sample in samples for step in sample.rounds]
    return ArmFigures(
        case,
        arm,
        _speed(arm, samples, plain),
        {kind: _speed(arm, _of(samples, kind), _of(plain, kind)) for kind in kinds},
        _over(samples, lambda found: statistics.median(sample.prompt_tokens for sample in found)),
        _over(samples, lambda found: sum(s.prompt_tokens for s in found) / sum(s.prefill_seconds for s in found)),
        _over(samples, lambda found: statistics.median(sample.first_token_seconds for sample in found)),
        _over(samples, lambda found: statistics.median(sample.total_seconds for sample in found)),
        tuple(quantile(waits, share) for share in WAITS),
        by_position(samples),
        max(sample.peak_memory for sample in samples),
        0 if arm == 0 else len(samples),
        tuple(sample.parting for sample in samples if sample.parting is not None),
    )


def _speed(arm: Arm, samples: list[Sample], plain: list[Sample]) -> Speed:
    ours, theirs = _repetitions(samples), _repetitions(plain)
    gain = None
    if arm != 0 and theirs:
        gain = spread(_pooled(ours[number]) / _pooled(theirs[number]) for number in ours.keys() & theirs.keys())
    whole = [step for sample in samples for step in sample.rounds if step.whole]
    drafted = sum(step.drafted for step in whole)
    return Speed(
        _over(samples, _pooled),
        gain,
        sum(step.accepted for step in whole) / drafted if drafted else None,
        sum(step.kept for step in whole) / len(whole) if whole else 0.0,
    )


def by_position(samples: Iterable[Sample]) -> tuple[float, ...]:
    """The share of the draft tokens proposed at each position that were kept."""
    proposed: list[int] = []
    kept: list[int] = []
    for step in (step for sample in samples for step in sample.rounds if step.whole):
        for position in range(step.drafted):
            if position == len(proposed):
                proposed.append(0)
                kept.append(0)
            proposed[position] += 1
            kept[position] += position < step.accepted
    return tuple(k / p for k, p in zip(kept, proposed, strict=True))


def _pooled(samples: Sequence[Sample]) -> float:
    """All tokens over all time."""
    return sum(sample.decoded for sample in samples) / sum(sample.decode_seconds for sample in samples)


def _over(samples: Sequence[Sample], value: Callable[[list[Sample]], float]) -> Spread:
    """The spread of a value over repetitions."""
    found = spread(value(group) for group in _repetitions(samples).values())
    assert found is not None, "a row has samples"
    return found


def _repetitions(samples: Iterable[Sample]) -> dict[int, list[Sample]]:
    found: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        found[sample.repetition].append(sample)
    return found


def _of(samples: Iterable[Sample], kind: str) -> list[Sample]:
    return [sample for sample in samples if sample.kind == kind]


def _speed_to_dict(speed: Speed) -> dict[str, Any]:
    return {
        "generation_tps": asdict(speed.tps),
        "times_plain": None if speed.gain is None else asdict(speed.gain),
        "acceptance": speed.accepted,
        "tokens_per_pass": speed.per_pass,
    }
