"""Acceptance of draft tokens, forecast by position in the draft."""

from collections.abc import Sequence
from dataclasses import dataclass, field

_DECAY = (0.99, 0.93, 0.75)  # of all counts, per round with drafts: about 100, 14 and 4 rounds are remembered
_STRENGTH = (6.0, 2.0, 1.0)  # s: observations that the forecast from outside is worth
_SHARE = 0.02
_PRIOR = 0.7  # of the first draft, before anything is known: between prose (0.3 to 0.75) and code (0.66 to 1)
_SURE = 0.02  # no text is expected to be nearer to all or nothing
_CARRIED = 4.0  # observations that what was seen of the texts before is worth, in each memory
_TEXTS = 8  # texts that the mean of texts is taken over
_ENOUGH = 4  # rounds with drafts that make a text count there


@dataclass(slots=True)
class Acceptance:
    """Forecasts for each of ``positions``: several memories, each believed as far as it has been right lately
    (fixed share: Herbster and Warmuth 1998).

    forecast of m      p_m(i) = (hits + s q) / (seen + s)      both forgetting at m's rate; q: the longer memory's
    of the longest     q = a(i - 1) + mu(i) - mu(i - 1)        mu: mean over texts, the prior among them as one
    together           a(i) = sum_m w_m p_m(i)
    after each draft   w_m <- (1 - share) w_m p_m(what happened) / sum + share / M
    after each text    mu(i) <- mu(i) + (share accepted in it - mu(i)) / (texts + 1)
    """

    positions: int
    texts: int = 0
    _mean: list[float] = field(init=False)
    _hits: list[list[float]] = field(init=False)
    _seen: list[list[float]] = field(init=False)
    _weights: list[float] = field(init=False)
    _text: list[tuple[int, int]] = field(init=False)
    """Of this text: accepted and drafted, by position."""
    _tokens: list[float] = field(init=False, default_factory=list)
    """What `tokens` gave, as long as it holds: plain rounds, many while drafting is parked, change nothing."""

    def __post_init__(self) -> None:
        self._mean = [_PRIOR] * self.positions
        self._hits = [[0.0] * self.positions for _ in _DECAY]
        self._seen = [[0.0] * self.positions for _ in _DECAY]
        self._weights = [1 / len(_DECAY)] * len(_DECAY)
        self._text = [(0, 0)] * self.positions

    def observe(self, drafted: int, accepted: int) -> None:
        """Take in a round: ``drafted`` tokens, of which the first ``accepted`` were accepted."""
        if not drafted:
            return
        self._tokens = []
        for hits, seen, decay in zip(self._hits, self._seen, _DECAY, strict=True):
            for i in range(self.positions):
                hits[i] *= decay
                seen[i] *= decay
        before = None
        for i in range(min(accepted + 1, drafted, self.positions)):
            hit = i < accepted
            forecasts = self._forecasts(i, before)
            before = self._together(forecasts)
            likely = [p if hit else 1 - p for p in forecasts]
            even, sum_ = _SHARE / len(_DECAY), self._together(likely)
            self._weights = [(1 - _SHARE) * w * p / sum_ + even for w, p in zip(self._weights, likely, strict=True)]
            for hits, seen in zip(self._hits, self._seen, strict=True):
                hits[i] += hit
                seen[i] += 1
            self._text[i] = self._text[i][0] + hit, self._text[i][1] + 1

    def tokens(self, most: int | None = None) -> list[float]:
        """Return the expected tokens of a round with k = 0, 1, ... drafts: 1 + a_1 + a_1 a_2 + ... + a_1 ... a_k.

        ``most``: drafts up to which they are needed (None: all).
        """
        positions = self.positions if most is None else min(most, self.positions)
        if len(self._tokens) > positions:
            return self._tokens
        found, total, product, before = [1.0], 1.0, 1.0, None
        for i in range(positions):
            before = self._together(self._forecasts(i, before))
            product *= before
            total += product
            found.append(total)
        self._tokens = found
        return found

    def mean(self) -> tuple[list[float], int]:
        """Return the mean share accepted by position, over the texts so far with this one, and the number of texts."""
        if self._text[0][1] < _ENOUGH:
            return self._mean, self.texts
        found, share = [], self._mean[0]
        for mean, (hits, seen) in zip(self._mean, self._text, strict=True):
            share = (hits + share) / (seen + 1)  # what was hardly tried goes on like the position before
            found.append(mean + (share - mean) / (self.texts + 2))
        return found, min(self.texts + 1, _TEXTS)

    def begin(self) -> None:
        """Begin another text: what was seen counts for at most so many observations of it."""
        self._tokens = []
        self._mean, self.texts = self.mean()
        self._text = [(0, 0)] * self.positions
        for hits, seen in zip(self._hits, self._seen, strict=True):
            for i, count in enumerate(seen):
                decay = min(1.0, _CARRIED / count) if count else 1.0
                hits[i] *= decay
                seen[i] *= decay

    def start_from(self, mean: Sequence[float], texts: int) -> None:
        """Begin with what `mean` gave."""
        self._tokens = []
        self._mean[: len(mean)], self.texts = mean[: self.positions], min(texts, _TEXTS)

    def _together(self, forecasts: Sequence[float]) -> float:
        return sum(w * p for w, p in zip(self._weights, forecasts, strict=True))

    def _forecasts(self, i: int, before: float | None) -> list[float]:
        """By memory, longest first. Each leans on the one before it as long as it has seen little, the longest on
        ``before``, the forecast for the position before: who passed i drafts passes the next about as often.
        """
        found, share = [], self._mean[i] if before is None else before + self._mean[i] - self._mean[i - 1]
        share = min(max(share, _SURE), 1 - _SURE)
        for hits, seen, s in zip(self._hits, self._seen, _STRENGTH, strict=True):
            share = (hits[i] + s * share) / (seen[i] + s)
            found.append(share)
        return found
