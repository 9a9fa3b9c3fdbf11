"""KV caches of several texts, of which one is decoded at a time: conversations do not read each other anew.

A text that is left keeps its buffers; going back to it copies nothing. A prompt that shares only the beginning of one
gets buffers of its own, filled from a snapshot there, so that the other stays as it is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import mlx.core as mx

from mlxmtp.decode.prefill import block_start
from mlxmtp.decode.snapshots import CacheState, Snapshots
from mlxmtp.models.kv_cache import CacheSpec, KVCache

WORTH = 256
"""Tokens that are worth keeping a text, or a copy of its beginning, for."""
_BLOCK = 512  # tokens that are compared at once: one by one takes milliseconds for a long text


@dataclass(slots=True, eq=False)
class HeldText:
    """A text in a KV cache: ``cache`` holds ``tokens[:rows]``."""

    cache: KVCache
    tokens: list[int] = field(default_factory=list)
    rows: int = 0
    snapshots: Snapshots = field(default_factory=Snapshots)

    @classmethod
    def of(cls, state: CacheState, spec: CacheSpec, dtype: mx.Dtype) -> "HeldText":
        """Return the text of ``state``. Raises ValueError if its buffers are another model's."""
        cache, rows = KVCache(spec, dtype), len(state.tokens)
        cache.fill(state.buffers, rows, state.newest, None if state.place is None else state.place.rings)
        return cls(cache, list(state.tokens), rows, Snapshots(state.place))

    @property
    def nbytes(self) -> int:
        """Bytes of its buffers and snapshots."""
        return sum(buffer.nbytes for buffer in self.cache.buffers) + self.snapshots.nbytes

    def shared(self, prompt: Sequence[int]) -> int:
        """Return the length of the common beginning with ``prompt``, without half of a picture."""
        most, held = min(self.rows, len(prompt)), self.tokens
        starts = range(0, most, _BLOCK)
        begin = next((i for i in starts if held[i : i + _BLOCK] != prompt[i : i + _BLOCK]), most)
        same = next((i for i in range(begin, most) if held[i] != prompt[i]), most)
        return min(block_start(self.tokens, same), block_start(prompt, same))

    def usable(self, prompt: Sequence[int]) -> int:
        """Return how many tokens of ``prompt`` need not be read in this text."""
        shared = min(self.shared(prompt), len(prompt) - 1)
        if self.rows and self.cache.can_rewind(shared):
            return shared
        place = self.snapshots.before(shared)
        return 0 if place is None else place.length

    def replaces(self, other: "HeldText") -> bool:
        """Return True if this one contains ``other``, and what goes on with that has next to nothing to read here."""
        tokens = other.tokens[: other.rows]
        return self.shared(tokens) == other.rows and other.rows - self.usable(tokens) < WORTH

    def state(self, length: int | None = None) -> CacheState:
        """Return it for another cache, as it is or as it was at a snapshot; ValueError if there is none there."""
        if length is None:
            self.snapshots.forget_beyond(self.rows)
            cut = self.cache.cut(self.rows)
            return CacheState(self.tokens[: self.rows], self.cache.newest, cut, self.snapshots.last())
        place = self.snapshots.at(length)
        if place is None:
            raise ValueError(f"there is no snapshot after {length} tokens")
        return CacheState(self.tokens[:length], place.newest, self.cache.cut(length, place.rings))

    def beginning(self, length: int) -> CacheState | None:
        """Return the text up to the last snapshot within ``length`` tokens, for another cache to be filled with."""
        place = self.snapshots.before(length)
        if place is None or place.length < WORTH:
            return None
        return CacheState(self.tokens[: place.length], place.newest, self.cache.cut(place.length, place.rings), place)


class HeldTexts:
    """The texts that are not being decoded, the one that was left last at the end; at most ``limit`` bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._texts: list[HeldText] = []

    def __iter__(self) -> Iterator[HeldText]:
        return iter(self._texts)

    def clear(self) -> None:
        """Hold none: decoders share this object."""
        self._texts.clear()

    def best(self, live: HeldText, prompt: Sequence[int]) -> tuple[HeldText, bool]:
        """Return the text, ``live`` or one that is held, in which least of ``prompt`` need be read, and True if it is
        read in that one: else it would be cut short by WORTH tokens or more, and is kept."""
        best = max([live, *reversed(self._texts)], key=lambda text: text.usable(prompt))
        return best, best.rows - best.shared(prompt) < WORTH

    def choose(self, live: HeldText, prompt: Sequence[int]) -> HeldText:
        """Return the text to read ``prompt`` in, the best or a new one; ``live`` is kept if it is another one."""
        chosen, stays = self.best(live, prompt)
        if not stays:
            begun = chosen.beginning(min(chosen.shared(prompt), len(prompt) - 1))
            kind = chosen.cache.spec, chosen.cache.dtype
            chosen = HeldText(KVCache(*kind)) if begun is None else HeldText.of(begun, *kind)
        self._texts = [text for text in self._texts if text is not chosen]
        if live is not chosen and not chosen.replaces(live):
            self.add(live)
        return chosen

    def add(self, text: HeldText) -> None:
        """Hold a text, if it is worth it and fits, instead of those that it replaces."""
        if text.rows >= WORTH and text.nbytes <= self.limit and not any(one.replaces(text) for one in self._texts):
            self._texts = [one for one in self._texts if not text.replaces(one)] + [text]
        self.keep_within(self.limit)

    def keep_within(self, nbytes: float, stays: HeldText | None = None) -> None:
        """Give up those that were left longest ago where they take more bytes; one that ``stays`` does not count."""
        others = [one for one in self._texts if one is not stays]
        others.sort(key=lambda one: one.nbytes <= nbytes)  # first what would drive out all others, and then itself
        while others and sum(one.nbytes for one in others) > nbytes:
            self._texts.remove(others.pop(0))
