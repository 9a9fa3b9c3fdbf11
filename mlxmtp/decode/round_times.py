"""Round times by draft length: one belief about all lengths, corrected by every measurement."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

TOKEN = 0.2  # a draft token in units of a plain pass, before anything is measured: drafter and one more row to check
_PACE, _SLOPE, _FIRST, _OWN = 10.0, 0.15, 0.1, 0.1
_NOISE = 0.1  # of one measurement: scheduling, clocks
_DRIFT, _OWN_DRIFT = 0.02, 0.003  # per measured round: the machine's pace, one length beside it (the context grows)
_FAR, _REACH = 0.5, 0.05  # pace and price of a draft token: standard deviation for e times the rows attended to
_CUT, _PAUSE = 3.0, 1.5  # deviations that are believed, down and up: rounds are often longer by chance, never shorter
_REMEMBERED = 0.05  # added to what was learned before: another context length, another day
_TAKES_OVER = 0.1  # added when compiled rounds take over: they are faster, in nearly the same proportions


@dataclass(slots=True)
class RoundTimes:
    """The belief about the seconds of a round for each of ``lengths``, the first of which is 0. ``token``: the price of
    a draft token in plain rounds, before anything is measured.

    The logarithms x(K) are jointly Gaussian. They share the machine's pace (a constant), the price of a draft token
    (t = a + b K in first order, so d_K = K / (1 + b K) in the logarithm) and what any draft costs; every length has a
    deviation of its own, because kernels have cliffs:

        Sigma = pace^2 1 1' + slope^2 d d' + first^2 [K>0][K>0]' + own^2 I

    A measurement y is taken in as a Kalman filter does it; e is cut: a pause of the machine is not a trend. One that is
    much shorter than expected is taken for another pace of all lengths: it ends a pause, or a busy time.

        S = Sigma[K,K] + noise^2     e = log y - x(K)     x += Sigma[:,K] e / S     Sigma -= Sigma[:,K] Sigma[K,:] / S

    A context f times as long adds (far log f)^2 1 1' + (reach log f)^2 d d'.
    """

    lengths: Sequence[int]
    token: float = TOKEN
    _x: list[float] = field(init=False)
    _sigma: list[list[float]] = field(init=False)
    measured: set[int] = field(default_factory=set)
    """Lengths timed since the rounds became what they are now."""

    def __post_init__(self) -> None:
        self._x = [math.log1p(self.token * k) for k in self.lengths]
        slope = [_SLOPE * d for d in self._slopes()]
        first = [_FIRST * (k > 0) for k in self.lengths]
        self._sigma = [
            [_PACE**2 + a * b + c * d + _OWN**2 * (i == j) for j, (b, d) in enumerate(zip(slope, first, strict=True))]
            for i, (a, c) in enumerate(zip(slope, first, strict=True))
        ]

    def observe(self, k: int, seconds: float) -> None:
        """Take in one timed round of one of ``lengths``; what cannot be a time is ignored."""
        if not 0 < seconds < math.inf:
            return
        at = self._at(k)
        self.measured.add(self.lengths[at])
        self._widen(_DRIFT, _OWN_DRIFT)
        error, spread = math.log(seconds) - self._x[at], self._sigma[at][at] + _NOISE**2
        if error < -_CUT * math.sqrt(spread):  # no round is that short by chance: those before it were slow
            self._widen(_PACE, 0.0)
            spread = self._sigma[at][at] + _NOISE**2
        error = min(error, _PAUSE * math.sqrt(spread))
        self._correct(self._sigma[at].copy(), error / spread, spread)  # symmetric: the row is the column

    def cost(self, k: int) -> float:
        """Time of a round with ``k`` drafts in plain rounds; never less than 1, more work takes no less time."""
        return max(math.exp(self._x[self._at(k)] - self._x[0]), 1.0)

    def plain(self) -> float | None:
        """Seconds of a round without drafts; None as long as nothing was timed."""
        return math.exp(self._x[0]) if self.measured else None

    def width(self, k: int, base: int) -> float:
        """Standard deviation of log t(k) / t(base)."""
        i, j = self._at(k), self._at(base)
        return math.sqrt(max(self._sigma[i][i] + self._sigma[j][j] - 2 * self._sigma[i][j], 0.0))

    def become_others(self) -> None:
        """Begin with other rounds, as when the compiled form takes over: another pace, nearly the same proportions."""
        self.measured.clear()
        self._widen(_PACE, _TAKES_OVER)

    def stretch(self, factor: float) -> None:
        """Adapt to rounds that attend to ``factor`` times as many rows: another pace and price of a draft token."""
        reach = math.log(factor)
        slope = [_REACH * reach * d for d in self._slopes()]
        self._sigma = [
            [value + (_FAR * reach) ** 2 + a * b for value, b in zip(row, slope, strict=True)]
            for row, a in zip(self._sigma, slope, strict=True)
        ]

    def expect(self, costs: Mapping[int, float]) -> None:
        """Guess other costs than those of a line, in plain rounds by length: kernels have cliffs that are known."""
        self._x = [
            math.log(max(costs[k], 1.0)) if k in costs else x for k, x in zip(self.lengths, self._x, strict=True)
        ]

    def learned(self) -> dict[int, tuple[float, float]]:
        """By length: log of its cost in plain rounds, and the width of that."""
        return {k: (math.log(self.cost(k)), self.width(k, 0)) for k in self.lengths[1:]}

    def start_from(self, learned: Mapping[int, tuple[float, float]]) -> None:
        """Begin with what `learned` gave, taken in as measurements of x(K) - x(0): it tells of other lengths, too."""
        for at, k in enumerate(self.lengths):
            if k in learned:
                mean, width = learned[k]
                column = [row[at] - row[0] for row in self._sigma]
                spread = column[at] - column[0] + width**2 + _REMEMBERED**2
                self._correct(column, (mean - self._x[at] + self._x[0]) / spread, spread)

    def _correct(self, column: Sequence[float], error: float, spread: float) -> None:
        """x += column error     Sigma -= column column' / spread"""
        for i, value in enumerate(column):
            self._x[i] += value * error
            row, gain = self._sigma[i], value / spread
            for j, other in enumerate(column):
                row[j] -= gain * other

    def _slopes(self) -> list[float]:
        """d x(K) / d b of x(K) = log(1 + b K)."""
        return [k / (1 + self.token * k) for k in self.lengths]

    def _widen(self, pace: float, own: float) -> None:
        for i, row in enumerate(self._sigma):
            for j in range(len(row)):
                row[j] += pace**2
            row[i] += own**2

    def _at(self, k: int) -> int:
        return self.lengths.index(k)
