"""Places in a conversation from which it can go on although the rings have moved past them."""

from collections.abc import Iterator
from dataclasses import dataclass

import mlx.core as mx

from mlxmtp.limits import SNAPSHOT_BYTES, SNAPSHOTS
from mlxmtp.models.kv_cache import KVCache

APART = 256  # a place that would save reading fewer tokens is not worth another snapshot


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The rings when positions 0 .. length - 1 had been read, and the hidden state [1, H] of the last of them: in 16
    bits 7 MB for E2B, 24 MB for E4B, 0.4 GB for 12B, 0.2 GB for 26B-A4B and 0.9 GB for 31B.

    ``newest``: the highest position ever written then, drafts included; it says what the rings had forgotten already.
    """

    length: int
    newest: int
    hidden: mx.array
    rings: list[mx.array]

    @property
    def nbytes(self) -> int:
        return sum(ring.nbytes for ring in self.rings)


@dataclass(frozen=True, slots=True)
class CacheState:
    """A conversation for another process: tokens, the highest position ever written, their keys and values as
    ``KVCache.cut`` gives them, and the snapshot furthest into the text, ``place``."""

    tokens: list[int]
    newest: int
    buffers: list[mx.array]
    place: Snapshot | None = None


class Snapshots:
    """The places to go back to in one conversation, oldest first."""

    def __init__(self, first: Snapshot | None = None) -> None:
        self._all = [] if first is None else [first]
        self.due = 0  # where a reading is to end, or was before it was interrupted, after which one may be taken

    def take(self, cache: KVCache, length: int, hidden: mx.array) -> None:
        """Copy the rings of `cache`, which has just read position `length - 1`."""
        self.forget_beyond(length - 1)
        self.due = 0
        self._all.append(Snapshot(length, cache.newest, hidden, cache.rings()))
        while len(self._all) > 1 and (
            len(self._all) > SNAPSHOTS or sum(one.nbytes for one in self._all) > SNAPSHOT_BYTES
        ):
            del self._all[0]

    def worth(self, cache: KVCache, length: int) -> bool:
        """Return True if one after `length` positions saves enough, and another one soon after leaves it in memory."""
        before = self._all[-1].length if self._all else 0
        return length - before >= APART and 2 * sum(ring.nbytes for ring in cache.rings()) <= SNAPSHOT_BYTES

    def forget_beyond(self, length: int) -> None:
        """Drop the snapshots of a continuation that is given up after `length` positions."""
        self._all = [one for one in self._all if one.length <= length]

    def last(self) -> Snapshot | None:
        """Return the one furthest into the conversation."""
        return self._all[-1] if self._all else None

    def before(self, length: int) -> Snapshot | None:
        """Return the furthest one within the first `length` positions."""
        return next((one for one in reversed(self._all) if one.length <= length), None)

    def __iter__(self) -> Iterator[Snapshot]:
        return iter(self._all)

    @property
    def nbytes(self) -> int:
        return sum(one.nbytes for one in self._all)

    def at(self, length: int) -> Snapshot | None:
        """Return the one after `length` positions."""
        return next((one for one in self._all if one.length == length), None)
