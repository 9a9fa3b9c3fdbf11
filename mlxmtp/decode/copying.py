"""Drafts copied from the text so far: what followed the last few tokens where they stood before."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from mlxmtp.limits import COPIED

_LONG, _SHORT = 8, 4  # tokens that must stand there again; the longer is looked for first
_CHANCE = {_LONG: 0.9, _SHORT: 0.7}  # of a copied token after others that were right, before anything is known
_STRENGTH = 4.0  # observations that this is worth
_DECAY = 0.8  # of what was seen, per round: texts change between copying and writing from one line to the next


@dataclass(slots=True)
class Copying:
    """Finds in a text what may follow, and judges by what did follow how far that can be trusted."""

    proposed: list[int] = field(default_factory=list)
    """Tokens that may follow the text, COPIED at most; empty where nothing like its end stands before."""
    _size: int = _LONG  # tokens by which they were found
    _places: dict[tuple[int, ...], int] = field(default_factory=dict)  # by the tokens before
    _text: list[int] = field(default_factory=list)  # that is in `_places`
    _hits: dict[int, float] = field(default_factory=lambda: dict.fromkeys(_CHANCE, 0.0))
    _seen: dict[int, float] = field(default_factory=lambda: dict.fromkeys(_CHANCE, 0.0))

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

    def judge(self, followed: Sequence[int]) -> None:
        """Compare what was proposed with the tokens that ``followed``."""
        pairs = list(zip(self.proposed, followed, strict=False))
        if pairs:
            right = next((i for i, (one, other) in enumerate(pairs) if one != other), len(pairs))
            self._hits[self._size] = _DECAY * self._hits[self._size] + right
            self._seen[self._size] = _DECAY * self._seen[self._size] + right + (right < len(pairs))

    def tokens(self) -> float:
        """Return the expected tokens of a round that checks what is proposed: 1 + p + ... + p^COPIED."""
        if not self.proposed:
            return 0.0
        chance = self._hits[self._size] + _STRENGTH * _CHANCE[self._size]
        chance = min(chance / (self._seen[self._size] + _STRENGTH), 0.99)
        return (1 - chance ** (COPIED + 1)) / (1 - chance)
