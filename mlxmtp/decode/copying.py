"""Drafts copied from the text so far: what followed the last few tokens where they stood before."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from mlxmtp.limits import COPIED

_LONG, _SHORT = 8, 4  # tokens that must stand there again; the longer is looked for first
_CHANCE = {_LONG: 0.9, _SHORT: 0.7}  # of a copied token after others that were right, before anything is known
_STRENGTH = 4.0  # observations that this is worth
_DECAY = 0.8  # of what was seen, per round: texts change between copying and writing from one line to the next
_TRUST = 8.0  # tokens that forecasts are believed for, until copies have been made
_FADING = 0.97  # of how these did, per round: after some fifty without one it is tried again


@dataclass(slots=True)
class Copying:
    """Finds in a text what may follow, and judges by what did follow how far that can be trusted.

    chance of a copied token after right ones     p = hits / seen, of late, where so many tokens stand there again
    tokens of a round                             1 + trust (p + p^2 + ... + p^COPIED)
    trust                                         right in rounds that were copied / forecast for them, at most 1

    Trust, because copies are chosen where p is high, as just before the end of a line that begins like others.
    """

    proposed: list[int] = field(default_factory=list)
    """Tokens that may follow the text, COPIED at most; empty where nothing like its end stands before."""
    _size: int = _LONG  # tokens by which they were found
    _places: dict[tuple[int, ...], int] = field(default_factory=dict)  # by the tokens before
    _text: list[int] = field(default_factory=list)  # that is in `_places`
    _hits: dict[int, float] = field(default_factory=lambda: dict.fromkeys(_CHANCE, 0.0))
    _seen: dict[int, float] = field(default_factory=lambda: dict.fromkeys(_CHANCE, 0.0))
    _right: float = 0.0
    _forecast: float = 0.0

    def begin(self, text: Sequence[int]) -> None:
        """Begin another text, unless it goes on from the one before."""
        self.proposed = []
        if self._text != text[: len(self._text)]:
            self._places, self._text = {}, []

    def read(self, text: Sequence[int]) -> None:
        """Take in what is new in ``text``."""
        for size in _CHANCE:
            for end in range(max(len(self._text), size), len(text)):  # the end itself has no token after it yet
                self._places[tuple(text[end - size : end])] = end
        self._text += text[len(self._text) :]

    def find(self, text: Sequence[int]) -> None:
        """Propose what may follow ``text``."""
        self.read(text)
        self.proposed = []
        for size in _CHANCE:
            if place := self._places.get(tuple(text[-size:])):
                found = list(takewhile(lambda token: token >= 0, text[place : place + COPIED]))  # up to a picture
                self.proposed = (found * COPIED)[:COPIED]  # at the end of the text it may go on in circles
                self._size = size
                return

    def judge(self, followed: Sequence[int], *, copied: bool = False) -> None:
        """Compare what was proposed with the tokens that ``followed``; ``copied``: it was what a round checked."""
        self._right, self._forecast = _FADING * self._right, _FADING * self._forecast
        pairs = list(zip(self.proposed, followed, strict=False))
        if pairs:
            right = next((i for i, (one, other) in enumerate(pairs) if one != other), len(pairs))
            if copied:
                self._right, self._forecast = self._right + right, self._forecast + self._expected()
            self._hits[self._size] = _DECAY * self._hits[self._size] + right
            self._seen[self._size] = _DECAY * self._seen[self._size] + right + (right < len(pairs))

    def tokens(self) -> float:
        """Return the expected tokens of a round that checks what is proposed."""
        if not self.proposed:
            return 0.0
        trust = (_TRUST + self._right) / (_TRUST + self._forecast)
        return 1 + min(trust, 1.0) * self._expected()

    def _expected(self) -> float:
        """Return p + ... + p^COPIED."""
        chance = self._hits[self._size] + _STRENGTH * _CHANCE[self._size]
        chance = min(chance / (self._seen[self._size] + _STRENGTH), 0.99)
        return chance * (1 - chance**COPIED) / (1 - chance)
