"""Keys and values of several texts side by side: a slot of each buffer for each.

Buffers are [slots, 2 * kv_heads, rows, head_dim], the layout of ``kv_cache.py`` in each slot. Every text has a position
of its own, so nothing needs to be aligned when one accepts more draft tokens than another.
"""

from collections.abc import Sequence

import mlx.core as mx

from mlxmtp.limits import SLACK
from mlxmtp.models.config import FULL
from mlxmtp.models.kv_cache import CacheSpec, FixedView, KVCache, ring_positions, visible
from mlxmtp.models.kv_quant import Rows


class SlotsView:
    """The buffers during a pass over positions ``offset[b] .. offset[b] + length - 1`` of every slot b.

    ``positions`` [slots * length] run through one slot after the other, as the rows of the pass do; ``masks[kind]`` is
    [slots, length, rows].
    """

    unused = 0

    def __init__(self, spec: CacheSpec, buffers: Sequence[mx.array], offset: mx.array, length: int) -> None:
        self.buffers = list(buffers)
        self._spec, self._slots, self._length = spec, len(offset), length
        by_slot = offset[:, None] + mx.arange(length)  # [slots, L]
        self.positions = by_slot.reshape(-1)
        self.masks: dict[str, mx.array] = {}
        self._at: dict[str, mx.array] = {}  # rows to write [slots, 1, L, 1]
        for kind in dict.fromkeys(spec.kinds):
            rows = buffers[spec.places(spec.kinds.index(kind))[0]].shape[2]
            held = mx.arange(rows) if kind == FULL else ring_positions(by_slot[:, -1:], rows)
            self.masks[kind] = visible(by_slot, held, None if kind == FULL else spec.window)
            self._at[kind] = (by_slot if kind == FULL else by_slot % rows)[:, None, :, None]

    def update(self, i: int, rows: mx.array) -> Rows:
        """Write the K/V rows [1, 2 heads, slots * L, D] of layer ``i`` and return what its queries attend to."""
        _, heads, _, dim = rows.shape
        by_slot = rows.reshape(heads, self._slots, self._length, dim).swapaxes(0, 1)
        at = self._at[self._spec.kinds[i]]
        for place, new in self._spec.stored(i, by_slot).items():
            self.buffers[place] = mx.put_along_axis(self.buffers[place], mx.broadcast_to(at, new.shape), new, axis=2)
        return self._spec.layer(self.buffers, i)


def fixed_view(spec: CacheSpec, buffers: Sequence[mx.array], offset: mx.array, length: int) -> FixedView | SlotsView:
    """Return the view of a pass of fixed shape: over one text, or over one in each slot."""
    return (FixedView if len(offset) == 1 else SlotsView)(spec, buffers, offset, length)


class SlotCache(KVCache):
    """The K/V buffers of ``slots`` texts. Rings have their full length from the start."""

    def reserve(self, rows: int) -> None:
        """Make room for ``rows`` positions in every slot."""
        super().reserve(max(rows, self.spec.window + SLACK))

    def arrange(self, slots: Sequence[int]) -> None:
        """Make what is now in slot ``slots[b]`` slot b; one slot may be taken more than once."""
        self.slots = len(slots)
        index = mx.array(list(slots), mx.int32)
        for i in range(len(self.buffers)):
            self.buffers[i] = self.buffers[i][index]
            mx.eval(self.buffers[i])  # so that old and new exist for one buffer only

    def put(self, slot: int, cache: KVCache, rows: int) -> None:
        """Copy the first ``rows`` positions of a text into a slot that has room for them."""
        for i, (part, source) in enumerate(zip(self._layout, cache.buffers, strict=True)):
            n = rows if part.kind == FULL else source.shape[2]
            self.buffers[i] = mx.slice_update(self.buffers[i], source[:, :, :n], mx.array([slot]), axes=(0,))
        mx.eval(self.buffers)

    def take(self, slot: int, rows: int, newest: int) -> KVCache:
        """Return a copy of the first ``rows`` positions in a slot; ``newest`` is the highest ever written there."""
        pairs = zip(self._layout, [b[slot : slot + 1] for b in self.buffers], strict=True)
        cut = [b[:, :, :rows] if part.kind == FULL else mx.contiguous(b) for part, b in pairs]
        text = KVCache(self.spec, self.dtype)
        text.fill(cut, rows, newest)
        return text
