"""Speeds, ratios and agreement out of samples."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scripts.benchmarks.harness.drive import Sample


@dataclass(frozen=True, slots=True)
class Spread:
    """Median with the lowest and highest value, over repetitions."""

    median: float
    low: float
    high: float

    def text(self, digits: int = 0) -> str:
        """Median (low to high)."""
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}–{self.high:.{digits}f})"


def spread(values: Iterable[float]) -> Spread | None:
    """None without values."""
    found = list(values)
    return Spread(statistics.median(found), min(found), max(found)) if found else None


class Figures:
    """Questions about one phase of a run."""

    def __init__(self, samples: Iterable[Sample], phase: str) -> None:
        self._samples = [sample for sample in samples if sample.phase == phase]

    def arms(self) -> list[str]:
        """The arms that were measured."""
        return list(dict.fromkeys(sample.arm for sample in self._samples))

    def speeds(self, arm: str, kinds: Sequence[str]) -> dict[int, float]:
        """Tokens per second by repetition: all tokens of these kinds over all their decoding time."""
        tokens: dict[int, int] = {}
        seconds: dict[int, float] = {}
        for sample in self._of(arm, kinds):
            tokens[sample.repetition] = tokens.get(sample.repetition, 0) + sample.decoded
            seconds[sample.repetition] = seconds.get(sample.repetition, 0.0) + sample.seconds
        return {repetition: tokens[repetition] / seconds[repetition] for repetition in tokens if seconds[repetition]}

    def speed(self, arm: str, kinds: Sequence[str]) -> Spread | None:
        """Tokens per second."""
        return spread(self.speeds(arm, kinds).values())

    def ratio(self, arm: str, other: str, kinds: Sequence[str]) -> Spread | None:
        """How many times as fast as `other`, repetition by repetition: both were measured in turn."""
        ours, theirs = self.speeds(arm, kinds), self.speeds(other, kinds)
        return spread(ours[repetition] / theirs[repetition] for repetition in ours.keys() & theirs.keys())

    def first_token(self, arm: str, kinds: Sequence[str]) -> Spread | None:
        """Seconds until the first token."""
        return spread(sample.first for sample in self._of(arm, kinds))

    def tokens_per_pass(self, arm: str, kinds: Sequence[str]) -> float | None:
        """New tokens for each pass of the target."""
        found = [sample for sample in self._of(arm, kinds) if sample.rounds]
        rounds = sum(sample.rounds or 0 for sample in found)
        return sum(sample.decoded for sample in found) / rounds if rounds else None

    def acceptance(self, arm: str, kinds: Sequence[str]) -> float | None:
        """Accepted share of all draft tokens."""
        found = [sample for sample in self._of(arm, kinds) if sample.drafted]
        drafted = sum(sample.drafted or 0 for sample in found)
        return sum(sample.accepted or 0 for sample in found) / drafted if drafted else None

    def agreement(self, arm: str, other: str) -> str:
        """Whether the texts are the same, else where the first of them parts."""
        theirs = {(s.repetition, s.kind, s.text): s.tokens for s in self._of(other, None)}
        pairs = [
            (s.tokens, theirs[key]) for s in self._of(arm, None) if (key := (s.repetition, s.kind, s.text)) in theirs
        ]
        parting = [index for a, b in pairs if (index := first_difference(a, b)) is not None]
        if not parting:
            return f"yes ({len(pairs)} of {len(pairs)})"
        return f"{len(pairs) - len(parting)} of {len(pairs)}, first difference at token {min(parting) + 1}"

    def tokens(self, arm: str, kinds: Sequence[str]) -> int:
        """New tokens of all samples."""
        return sum(len(sample.tokens) for sample in self._of(arm, kinds))

    def _of(self, arm: str, kinds: Sequence[str] | None) -> list[Sample]:
        return [s for s in self._samples if s.arm == arm and (kinds is None or s.kind in kinds)]


def first_difference(a: Sequence[int], b: Sequence[int]) -> int | None:
    """Index of the first token in which two texts differ (also by their length); None if they are the same."""
    for index, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return index
    return None if len(a) == len(b) else min(len(a), len(b))
