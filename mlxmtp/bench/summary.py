"""Summaries of samples by case, draft length and kind of text: medians with their spread, and conclusions in words."""

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Literal

from mlxmtp.bench.cost import Cost, acceptance, fit, limit, round_times, with_split
from mlxmtp.bench.samples import Case, Divergence, DrafterTiming, DraftSetting, Sample, draft_label

Difference = Literal["faster", "slower", "same within spread", "unclear"]


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, lowest and highest of some values, and their number."""

    median: float
    low: float
    high: float
    count: int

    def text(self, digits: int = 0, factor: float = 1) -> str:
        """Return `280 (271–284)`, times `factor`; one value stands alone."""
        middle, low, high = (f"{factor * value:.{digits}f}" for value in (self.median, self.low, self.high))
        return middle if self.count == 1 else f"{middle} ({low}–{high})"


def spread(values: Iterable[float]) -> Spread | None:
    """Return the spread of the values; None without any."""
    found = list(values)
    return Spread(statistics.median(found), min(found), max(found), len(found)) if found else None


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value below which `share` of the `values` lie, interpolated linearly (numpy's default).

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
    """Judge `after` against `before`: different only if no value of one lies within the other's spread.

    With three values on each side that happens by luck once in ten times, with five once in 126.
    """
    if min(before.count, after.count) < 2:
        return "unclear"
    if after.low > before.high:
        return "faster" if more_is_better else "slower"
    if after.high < before.low:
        return "slower" if more_is_better else "faster"
    return "same within spread"


@dataclass(frozen=True, slots=True)
class Speed:
    """Decoding of some texts with one draft length. A spread is over repetitions; `times_plain` is null for plain."""

    generation_tps: Spread
    times_plain: Spread | None
    acceptance: float | None
    tokens_per_pass: float


@dataclass(frozen=True, slots=True)
class Row:
    """All texts of a case with one draft length. Speeds in tokens per second, times in seconds, memory in bytes.

    `wait_seconds` are quantiles of the time between two rounds; `acceptance_by_position[i]` is of the draft tokens
    proposed at position i; `divergences` are the texts that differ from plain, out of `texts_compared`; `near_ties` of
    all `tokens`: see `Sample`.
    """

    case: Case = field(metadata={"inline": True})
    num_draft_tokens: DraftSetting
    speed: Speed = field(metadata={"inline": True})
    kinds: dict[str, Speed]
    prompt_tokens: Spread
    prompt_tps: Spread
    first_token_seconds: Spread
    total_seconds: Spread
    wait_seconds: dict[str, float]
    acceptance_by_position: tuple[float, ...]
    peak_memory: int
    same_text: bool | None
    texts_compared: int
    texts_different: int
    divergences: tuple[Divergence, ...] = field(metadata={"key": None})
    tokens: int = field(metadata={"key": None})
    near_ties: int | None = None


@dataclass(frozen=True, slots=True)
class CaseSummary:
    """All draft lengths of one case. `accept` is the acceptance that the cost model counts with."""

    case: Case
    rows: tuple[Row, ...]
    cost: Cost | None
    accept: tuple[float, ...]

    def row(self, length: DraftSetting) -> Row | None:
        return next((row for row in self.rows if row.num_draft_tokens == length), None)

    @property
    def fixed(self) -> dict[int, Row]:
        """Rows by fixed draft length, plain first."""
        rows = {row.num_draft_tokens: row for row in self.rows if row.num_draft_tokens != "auto"}
        return dict(sorted(rows.items()))

    @property
    def kinds(self) -> list[str]:
        """Kinds of text, in the order in which they were measured."""
        return list(self.rows[0].kinds)


def summarize(samples: Iterable[Sample], timings: Iterable[DrafterTiming] = ()) -> list[CaseSummary]:
    """Summarize every case in the order of measurement, without the repetitions that an interruption left half done."""
    cases = _grouped(complete(list(samples)), attrgetter("case"))
    by_case = {one.case: one for one in timings}
    return [_case_summary(case, found, by_case.get(case)) for case, found in cases.items()]


def complete(samples: Sequence[Sample]) -> list[Sample]:
    """Return the texts that were decoded with all draft lengths, and of those whole repetitions if there is one."""
    found: list[Sample] = []
    for case in _grouped(samples, attrgetter("case")).values():
        lengths = len({sample.num_draft_tokens for sample in case})
        texts = _grouped(case, attrgetter("kind", "prompt", "repetition"))
        even = [sample for text in texts.values() if len(text) == lengths for sample in text]
        sizes = Counter(sample.repetition for sample in even)
        found += [sample for sample in even if sizes[sample.repetition] == max(sizes.values())]
    return found


def _case_summary(case: Case, samples: list[Sample], timing: DrafterTiming | None) -> CaseSummary:
    by_length = _grouped(samples, attrgetter("num_draft_tokens"))
    plain = by_length.get(0, [])
    rows = tuple(_row(case, length, found, plain) for length, found in by_length.items())
    fixed = [sample for sample in samples if sample.num_draft_tokens not in (0, "auto")]
    # The lengths that `auto` tries depend on how easy the text is, so it only speaks where nothing else does.
    cost = fit(round_times([*plain, *fixed] if fixed else samples))
    accept = tuple(acceptance(fixed or samples))
    return CaseSummary(case, rows, None if cost is None else with_split(cost, timing), accept)


def _row(case: Case, length: DraftSetting, samples: list[Sample], plain: list[Sample]) -> Row:
    def median(name: str) -> Spread:
        return _over_repetitions(samples, lambda found: statistics.median(map(attrgetter(name), found)))

    kinds, plain_kinds = (_grouped(side, attrgetter("kind")) for side in (samples, plain))
    waits = [step.seconds for sample in samples for step in sample.rounds]
    divergences = tuple(sample.divergence for sample in samples if sample.divergence is not None)
    return Row(
        case,
        length,
        _speed(length, samples, plain),
        {kind: _speed(length, found, plain_kinds.get(kind, [])) for kind, found in kinds.items()},
        median("prompt_tokens"),
        _over_repetitions(samples, lambda f: sum(s.prompt_tokens for s in f) / sum(s.prefill_seconds for s in f)),
        median("first_token_seconds"),
        median("total_seconds"),
        {f"p{percent}": quantile(waits, percent / 100) for percent in (50, 95, 99)},
        tuple(acceptance(samples, conditional=False)),
        max(sample.peak_memory for sample in samples),
        None if length == 0 else not divergences,
        0 if length == 0 else len(samples),
        len(divergences),
        divergences,
        sum(len(sample.tokens) for sample in samples),
        None if None in (ties := [sample.near_ties for sample in samples]) else sum(filter(None, ties)),
    )


def _speed(length: DraftSetting, samples: list[Sample], plain: list[Sample]) -> Speed:
    ours, theirs = (_grouped(side, attrgetter("repetition")) for side in (samples, plain))
    gains = [_pooled_tps(ours[number]) / _pooled_tps(theirs[number]) for number in ours.keys() & theirs.keys()]
    rounds = [step for sample in samples for step in sample.rounds if step.complete]
    drafted = sum(step.drafted for step in rounds)
    return Speed(
        _over_repetitions(samples, _pooled_tps),
        None if length == 0 else spread(gains),
        sum(step.accepted for step in rounds) / drafted if drafted else None,
        sum(step.tokens for step in rounds) / len(rounds) if rounds else 0.0,
    )


def _pooled_tps(samples: Sequence[Sample]) -> float:
    """Return all tokens over all time."""
    return sum(sample.decoded for sample in samples) / sum(sample.decode_seconds for sample in samples)


def _over_repetitions(samples: Sequence[Sample], value: Callable[[list[Sample]], float]) -> Spread:
    found = spread(value(group) for group in _grouped(samples, attrgetter("repetition")).values())
    assert found is not None, "a row has samples"
    return found


def _grouped(samples: Iterable[Sample], key: Callable[[Sample], Any]) -> dict[Any, list[Sample]]:
    found: dict[Any, list[Sample]] = defaultdict(list)
    for sample in samples:
        found[key(sample)].append(sample)
    return dict(found)


_NEAR = 0.02  # speeds closer than this are the same


def verdict(case: CaseSummary) -> list[str]:
    """Return sentences about one case, the most important first."""
    drafted = [row for row in case.rows if row.num_draft_tokens != 0]
    if not drafted:
        return ["Only plain decoding was measured, so there is nothing to say about drafting."]
    best = max(drafted, key=_tps)
    parts = [_worth(case, best, len(drafted)), _by_kind(case, best), _automatic(case), _cost(case), _same_text(drafted)]
    return [part for part in parts if part]


def _tps(row: Row) -> float:
    return row.speed.generation_tps.median


def _worth(case: CaseSummary, best: Row, lengths: int) -> str:
    plain, gain = case.row(0), best.speed.times_plain
    if plain is None or gain is None:
        return ""
    speeds = f"{_tps(best):.1f} tok/s against {_tps(plain):.1f} plain"
    times = f"{gain.text(2)} times" + (" (one repetition: no spread is known)" if gain.count == 1 else "")
    name = "the automatic length" if best.num_draft_tokens == "auto" else f"drafting {best.num_draft_tokens}"
    name += "" if lengths == 1 else ", the best of the lengths measured,"
    if gain.high < 1 and (gain.count > 1 or gain.median < 1 - _NEAR):
        even = "even " if lengths > 1 else ""
        return f"The drafter loses here: {even}{name} gives {speeds}, {times}. Of the lengths measured 0 is best."
    if gain.low <= 1 or gain.median < 1 + _NEAR:
        return f"The drafter makes no difference here: {name} gives {speeds}, {times}."
    return f"The drafter is worth it here: {name} gives {speeds}, {times}."


def _by_kind(case: CaseSummary, best: Row) -> str:
    if len(case.kinds) < 2:
        return ""
    speeds = {kind: best.kinds[kind].times_plain for kind in case.kinds if kind in best.kinds}
    gains = {kind: 1.0 if gain is None else gain.median for kind, gain in speeds.items()}
    told = ", ".join(f"{kind} {gain:.2f}" for kind, gain in sorted(gains.items(), key=lambda item: -item[1]))
    losers = [kind for kind, gain in gains.items() if gain < 1 - _NEAR]
    loss = f" It loses on {' and '.join(losers)}." if losers else ""
    return f"By kind of text, in times plain with {draft_label(best.num_draft_tokens)}: {told}.{loss}"


def _automatic(case: CaseSummary) -> str:
    auto = case.row("auto")
    if auto is None or len(case.fixed) < 2:
        return ""
    length, best = max(case.fixed.items(), key=lambda item: _tps(item[1]))
    share = f"{100 * _tps(auto) / _tps(best):.0f} %"
    return f"The automatic length reaches {share} of the best fixed one ({draft_label(length)})."


def _cost(case: CaseSummary) -> str:
    cost = case.cost
    if cost is None or not case.accept:
        return ""
    base, step = 1000 * cost.base, 1000 * cost.step
    told = f"A round costs {base:.2f} ms and {step:.2f} ms more for each draft token"
    if cost.drafter is not None and cost.verify is not None:
        told += f" ({1000 * cost.drafter:.2f} drafter, {1000 * cost.verify:.2f} checking)"
    told += f", {100 * step / base:.0f} % of a plain one; with the acceptance seen here "
    best = cost.best(case.accept)
    speed = f"{cost.speed(best, case.accept):.1f} tok/s by the cost model"
    told += f"{draft_label(best)} should be best ({speed}). " if best else "no length pays. "
    if (found := limit(cost, case.accept)) is None:
        return (
            f"{told}Nothing limits it: halving either cost, or the share of rejected drafts, would bring less than 1 %."
        )
    name, gain = found
    halved = "the share of rejected drafts" if name == "acceptance" else "it"
    return f"{told}What limits it most is {name}: halving {halved} would bring {100 * gain:.0f} %."


def _same_text(drafted: Sequence[Row]) -> str:
    compared = sum(row.texts_compared for row in drafted)
    divergences = [divergence for row in drafted for divergence in row.divergences]
    near = sum(row.near_ties or 0 for row in drafted)
    told = f" {near} of {sum(row.tokens for row in drafted)} tokens were near ties." if near else ""
    if not divergences:
        return f"Every text is the same as plain ({compared} of {compared}).{told}"
    ties = sum(divergence.near_tie for divergence in divergences)
    first = min(divergences, key=lambda divergence: divergence.at)
    told = f"{len(divergences)} of {compared} texts differ from plain, the first at token {first.at}"
    told += f" ({first.other_text!r} for {first.plain_text!r}, margin {first.margin:.3g})"
    if ties == len(divergences):
        return f"{told}; all at near-ties, which rounding explains."
    return f"{told}; {len(divergences) - ties} of them with a clear margin, which rounding does not explain."
