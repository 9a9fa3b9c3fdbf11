"""Acceptance of draft tokens, forecast by position in the draft."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

_DECAY = (0.99, 0.93, 0.75)  # of all counts, per round with drafts: about 100, 14 and 4 rounds are remembered
_STRENGTH = (6.0, 2.0, 1.0)  # s: observations that the forecast from outside is worth
_BELIEF = (0.8, 0.15, 0.05)  # in each memory, when a text begins
_SHARE = 0.02
_KINDS = (0.1, 0.4, 0.7, 0.95)  # share of drafts accepted, before any text is known: prose 0.3 to 0.75, code 0.66 to 1
_TURN = 0.01  # chance, per draft seen, that the text turns into another kind
_SURE = 0.02  # no text is expected to be nearer to all or nothing
_CARRIED = 4.0  # observations that what was seen of the texts before is worth, in each memory
_FADING = 0.1  # share of a kind's texts that is forgotten with each text
_RARE = 0.5  # texts that a kind which does not occur is worth
_MOST = 1e6  # texts
_ENOUGH = 4  # rounds with drafts that make a text count


@dataclass(frozen=True, slots=True)
class Kind:
    """Texts that are alike: of how many this was learned, and the ``shares`` of drafts accepted, by position."""

    texts: float
    shares: tuple[float, ...]

    def fits(self, positions: int) -> bool:
        """Return True if these numbers can be true."""
        return 0 < self.texts < _MOST and len(self.shares) == positions and all(0 < one < 1 for one in self.shares)


@dataclass(slots=True)
class Acceptance:
    """Forecasts for each of ``positions``. A text is of one of a few kinds, known from the texts before, and memories
    of it are believed as far as they have been right lately (fixed share: Herbster and Warmuth 1998).

    forecast of m      p_m(i) = (hits + s q) / (seen + s)      both forgetting at m's rate; q: the longer memory's
    of the longest     q = p_k(i)                              the share that texts of kind k have accepted
    together           a_k(i) = sum_m w_m p_m(i)
    tokens             1 + sum_k o_k (a_k(1) + a_k(1) a_k(2) + ...)
    after each draft   w_m <- (1 - share) w_m p_m(what happened) / sum + share / M
                       o_k <- (1 - turn) o_k p_k(what happened) / sum + turn texts_k / sum
    after each text    p_k(i) <- p_k(i) + (share accepted in it - p_k(i)) / (texts_k + 1) for the likeliest kind
    """

    positions: int
    kinds: list[Kind] = field(init=False)
    known: bool = False
    """True if `kinds` are not only a guess."""
    _odds: list[float] = field(init=False)
    _hits: list[list[float]] = field(init=False)
    _seen: list[list[float]] = field(init=False)
    _weights: list[float] = field(init=False)
    _text: list[tuple[int, int]] = field(init=False)
    """Of this text: accepted and drafted, by position."""
    _tokens: list[tuple[float, list[float]]] = field(init=False, default_factory=list)
    """What `by_kind` gave, as long as it holds: plain rounds, many while drafting is parked, change nothing."""

    def __post_init__(self) -> None:
        self.kinds = [Kind(1.0, (share,) * self.positions) for share in _KINDS]
        self._odds = self._usual()
        self._hits = [[0.0] * self.positions for _ in _DECAY]
        self._seen = [[0.0] * self.positions for _ in _DECAY]
        self._weights = list(_BELIEF)
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
        usual = self._usual()
        for i in range(min(accepted + 1, drafted, self.positions)):
            hit = i < accepted
            shares = [kind.shares[i] for kind in self.kinds]
            self._weights = _believed(self._weights, self._forecasts(i, _mean(self._odds, shares)), hit, _SHARE)
            self._odds = _believed(self._odds, shares, hit, _TURN, usual)
            for hits, seen in zip(self._hits, self._seen, strict=True):
                hits[i] += hit
                seen[i] += 1
            self._text[i] = self._text[i][0] + hit, self._text[i][1] + 1

    def by_kind(self, most: int | None = None) -> list[tuple[float, list[float]]]:
        """Return for each kind how likely the text is of it, and the expected tokens then of a round with k = 0, 1, ...
        drafts: 1 + a_1 + a_1 a_2 + ... + a_1 ... a_k.

        ``most``: drafts up to which they are needed (None: all).
        """
        positions = self.positions if most is None else min(most, self.positions)
        if self._tokens and len(self._tokens[0][1]) > positions:
            return self._tokens
        lines = [self._line(i) for i in range(positions)]
        self._tokens = []
        for odds, kind in zip(self._odds, self.kinds, strict=True):
            found, total, product = [1.0], 1.0, 1.0
            for (low, slope), share in zip(lines, kind.shares, strict=False):
                product *= low + slope * share
                total += product
                found.append(total)
            self._tokens.append((odds, found))
        return self._tokens

    def tokens(self, most: int | None = None) -> list[float]:
        """Return the expected tokens of a round with k = 0, 1, ... drafts, of whatever kind the text may be."""
        odds, tokens = zip(*self.by_kind(most), strict=True)
        return [_mean(odds, of_length) for of_length in zip(*tokens, strict=True)]

    def knows(self) -> bool:
        """Return True if `learned` tells more than a guess."""
        return self.known or self._counts()

    def learned(self) -> list[Kind]:
        """Return the kinds of texts so far, with this one."""
        if not self._counts():
            return self.kinds
        likely = max(range(len(self.kinds)), key=lambda k: self._likelihood(self.kinds[k]))
        found = [Kind(one.texts + _FADING * (_RARE - one.texts), one.shares) for one in self.kinds]
        texts, shares, share = found[likely].texts, [], self.kinds[likely].shares[0]
        for mean, (hits, seen) in zip(found[likely].shares, self._text, strict=True):
            share = (hits + share) / (seen + 1)  # what was hardly tried goes on like the position before
            shares.append(min(max(mean + (share - mean) / (texts + 1), _SURE), 1 - _SURE))
        found[likely] = Kind(texts + 1, tuple(shares))
        return found

    def begin(self) -> None:
        """Begin another text: what was seen counts for at most so many observations of it."""
        self.known, self.kinds = self.knows(), self.learned()
        self._odds = [(now + usual) / 2 for now, usual in zip(self._odds, self._usual(), strict=True)]
        self._tokens = []
        self._text = [(0, 0)] * self.positions
        for hits, seen in zip(self._hits, self._seen, strict=True):
            for i, count in enumerate(seen):
                decay = min(1.0, _CARRIED / count) if count else 1.0
                hits[i] *= decay
                seen[i] *= decay

    def start_from(self, kinds: Sequence[Kind]) -> None:
        """Begin with what `learned` gave."""
        self._tokens = []
        self.known, self.kinds = True, list(kinds)
        self._odds = self._usual()

    def _counts(self) -> bool:
        """Return True if enough was seen of this text."""
        return self._text[0][1] >= _ENOUGH

    def _usual(self) -> list[float]:
        """Return how often texts are of each kind."""
        texts = sum(kind.texts for kind in self.kinds)
        return [kind.texts / texts for kind in self.kinds]

    def _likelihood(self, kind: Kind) -> float:
        """Return the logarithm of how likely what was seen of this text is in a text of that kind."""
        pairs = zip(self._text, kind.shares, strict=True)
        return sum(hits * math.log(share) + (seen - hits) * math.log(1 - share) for (hits, seen), share in pairs)

    def _line(self, i: int) -> tuple[float, float]:
        """Return the forecast of all together as a line: its value where the longest leans on nothing, its slope."""
        low, slope, lows, slopes = 0.0, 1.0, 0.0, 0.0
        for hits, seen, s, weight in zip(self._hits, self._seen, _STRENGTH, self._weights, strict=True):
            all_ = seen[i] + s
            low, slope = (hits[i] + s * low) / all_, s * slope / all_
            lows += weight * low
            slopes += weight * slope
        return lows, slopes

    def _forecasts(self, i: int, share: float) -> list[float]:
        """By memory, longest first. Each leans on the one before it as long as it has seen little, the longest on
        ``share``."""
        found = []
        for hits, seen, s in zip(self._hits, self._seen, _STRENGTH, strict=True):
            share = (hits[i] + s * share) / (seen[i] + s)
            found.append(share)
        return found


def _mean(weights: Sequence[float], values: Sequence[float]) -> float:
    return sum(weight * value for weight, value in zip(weights, values, strict=True))


def _believed(
    weights: Sequence[float], forecasts: Sequence[float], hit: bool, share: float, usual: Sequence[float] | None = None
) -> list[float]:
    """Weights after what happened; a ``share`` of them is given out as ``usual``, or evenly."""
    likely = [weight * (p if hit else 1 - p) for weight, p in zip(weights, forecasts, strict=True)]
    all_, even = sum(likely), 1 / len(likely)
    return [(1 - share) * one / all_ + share * (usual[m] if usual else even) for m, one in enumerate(likely)]
