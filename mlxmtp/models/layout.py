"""Which buffers a network's keys and values need, from its layers' kinds, heads and packing (see ``cache.py``)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx

from mlxmtp.models.config import FULL
from mlxmtp.models.packed import Packed, Rows, pack, widths
from mlxmtp.models.shapes import Packing

SLACK = 64
"""Ring rows beyond the window: what two rounds in flight write (2 * 9) and what a small rewind may take back."""


class Part(NamedTuple):
    """A buffer [1, heads, rows, width] of a layer of ``kind``; ``heads`` are those of keys and of values."""

    kind: str
    heads: int
    width: int
    dtype: mx.Dtype


@dataclass(frozen=True, slots=True)
class CacheSpec:
    """Shapes of the K/V buffers: one entry of ``kinds``, ``kv_heads`` and ``head_dims`` per layer with own K/V.

    ``packing`` is that of full layers (None: as computed); sliding ones are never packed.
    """

    kinds: tuple[str, ...]
    kv_heads: tuple[int, ...]
    head_dims: tuple[int, ...]
    window: int
    packing: Packing | None = None

    def rows(self, kind: str, capacity: int) -> int:
        """Rows of a buffer of ``kind`` at ``capacity`` positions."""
        return capacity if kind == FULL else min(capacity, self.window + SLACK)

    def nbytes(self, capacity: int, dtype: mx.Dtype) -> int:
        """Bytes of all buffers at ``capacity`` positions."""
        parts = self.parts(dtype)
        return sum(part.heads * self.rows(part.kind, capacity) * part.width * part.dtype.size for part in parts)

    def parts(self, dtype: mx.Dtype) -> list[Part]:
        """All buffers, layer by layer, of a network that computes in ``dtype``."""
        found = []
        for kind, heads, dim in zip(self.kinds, self.kv_heads, self.head_dims, strict=True):
            packing = self._packing(kind)
            sizes = [(dim, dtype)] if packing is None else widths(dim, packing, dtype)
            found += [Part(kind, 2 * heads, *size) for size in sizes]
        return found

    def places(self, i: int) -> range:
        """Indices of layer ``i``'s buffers among all."""
        if self.packing is None:
            return range(i, i + 1)
        start = i + 2 * self.kinds[:i].count(FULL)
        return range(start, start + (3 if self.kinds[i] == FULL else 1))

    def layer(self, buffers: Sequence[mx.array] | Mapping[int, mx.array], i: int) -> Rows:
        """The rows of layer ``i`` among all ``buffers``."""
        packing = self._packing(self.kinds[i])
        found = [buffers[place] for place in self.places(i)]
        return found[0] if packing is None else Packed(packing, *found)

    def stored(self, i: int, rows: mx.array) -> dict[int, mx.array]:
        """What layer ``i`` keeps of ``rows`` [1, 2 heads, L, D], by the index of the buffer."""
        packing = self._packing(self.kinds[i])
        return dict(zip(self.places(i), [rows] if packing is None else pack(rows, packing).parts(), strict=True))

    def _packing(self, kind: str) -> Packing | None:
        return self.packing if kind == FULL else None
