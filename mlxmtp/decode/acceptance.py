"""Acceptance of draft tokens, forecast by position in the draft."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile

_DECAY = (0.99, 0.93, 0.75)  # of all counts, per round with drafts: about 100, 14 and 4 rounds are remembered
_STRENGTH = (6.0, 2.0, 1.0)  # s: observations that the forecast from outside is worth
_SHARE = 0.02
_PRIOR = 0.7  # of the first draft, before anything is known: between prose (0.3 to 0.75) and code (0.66 to 1)
_CARRIED = 4.0  # observations that what was seen of the texts before is worth, in each memory
_WORTH = 1.5  # observations that what was learned in another conversation is worth


@dataclass(slots=True)
class Acceptance:
    """Forecasts for each of ``positions``: several memories, each believed as far as it has been right lately
    (fixed share: Herbster and Warmuth 1998).

    forecast of m      p_m(i) = (hits + s q) / (seen + s)      both forgetting at m's rate; q: the longer memory's
    together           a(i) = sum_m w_m p_m(i)
    after each draft   w_m <- (1 - share) w_m p_m(what happened) / sum + share / M
    """

    positions: int
    _hits: list[list[float]] = field(init=False)
    _seen: list[list[float]] = field(init=False)
    _weights: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self._hits = [[0.0] * self.positions for _ in _DECAY]
        self._seen = [[0.0] * self.positions for _ in _DECAY]
        self._weights = [1 / len(_DECAY)] * len(_DECAY)

    def observe(self, drafted: int, accepted: int) -> None:
        """Take in a round: ``drafted`` tokens, of which the first ``accepted`` were accepted."""
        for hits, seen, decay in zip(self._hits, self._seen, _DECAY, strict=True):
            for i in range(self.positions if drafted else 0):
                hits[i] *= decay
                seen[i] *= decay
        slow = _PRIOR
        for i in range(min(accepted + 1, drafted, self.positions)):
            hit = i < accepted
            forecasts = self._forecasts(i, slow)
            slow = forecasts[0]
            likely = [p if hit else 1 - p for p in forecasts]
            together = sum(w * p for w, p in zip(self._weights, likely, strict=True))
            even = _SHARE / len(_DECAY)
            self._weights = [(1 - _SHARE) * w * p / together + even for w, p in zip(self._weights, likely, strict=True)]
            for hits, seen in zip(self._hits, self._seen, strict=True):
                hits[i] += hit
                seen[i] += 1

    def tokens(self) -> list[float]:
        """Return the expected tokens of a round with k = 0, 1, ... drafts: 1 + a_1 + a_1 a_2 + ... + a_1 ... a_k."""
        found, total, product, slow = [1.0], 1.0, 1.0, _PRIOR
        for i in range(self.positions):
            slow, *others = self._forecasts(i, slow)
            product *= sum(w * share for w, share in zip(self._weights, [slow, *others], strict=True))
            total += product
            found.append(total)
        return found

    def average(self) -> list[float]:
        """Return the longest memory's share accepted, by position, as far as observed; without the prior, which would
        count once more at every start."""
        pairs = zip(self._hits[0], self._seen[0], strict=True)
        return [hits / seen for hits, seen in takewhile(lambda pair: pair[1] > 0, pairs)]

    def begin(self) -> None:
        """Begin another text: what was seen counts for at most so many observations of it."""
        for hits, seen in zip(self._hits, self._seen, strict=True):
            for i, count in enumerate(seen):
                decay = min(1.0, _CARRIED / count) if count else 1.0
                hits[i] *= decay
                seen[i] *= decay

    def start_from(self, average: Sequence[float]) -> None:
        """Begin with what `average` gave, as if it had been observed a few times."""
        for i, share in enumerate(average[: self.positions]):
            self._hits[0][i], self._seen[0][i] = share * _WORTH, _WORTH

    def _forecasts(self, i: int, before: float) -> list[float]:
        """By memory, longest first. Each leans on the one before it as long as it has seen little, the longest on
        ``before``, its own forecast for the position before: who passed i drafts passes the next about as often.
        """
        found, share = [], before
        for hits, seen, s in zip(self._hits, self._seen, _STRENGTH, strict=True):
            share = (hits[i] + s * share) / (seen[i] + s)
            found.append(share)
        return found
