"""Medians, quantiles, spreads, and what may be said when two spreads are compared."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

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
