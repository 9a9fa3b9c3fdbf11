"""Key/value storage: fixed-shape buffers that never need a rollback.

Two views show them to a network: ``FixedView`` for a compiled pass (offset on the device, fixed shapes) and
``PromptView`` for a chunk of the prompt (offset known to the host, shapes as they come).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx

from mlxmtp.limits import GROWN, GROWTH, SLACK, STEP
from mlxmtp.models.config import FULL, SLIDING
from mlxmtp.models.kv_quant import QuantizedRows, Rows, quantize, widths
from mlxmtp.models.tensors import Quantization


class Buffer(NamedTuple):
    """A buffer [1, heads, rows, width] of a layer of ``kind``; ``heads`` are those of keys and of values."""

    kind: str
    heads: int
    width: int
    dtype: mx.Dtype


@dataclass(frozen=True, slots=True)
class CacheSpec:
    """Shapes of the K/V buffers: one entry of ``kinds``, ``kv_heads`` and ``head_dims`` per layer with own K/V.

    Each such layer has one buffer ``[1, 2 * kv_heads, rows, head_dim]``, keys first, then values:

    * full attention: row p holds position p, ``rows = capacity``; with ``quantization`` there are three such buffers
      (``kv_quant.py``);
    * sliding attention: position p lies in row ``p mod rows`` with ``rows = min(capacity, window + SLACK)``. Row r
      therefore holds position ``last - ((last - r) mod rows)``, *last* being the newest position written.

    A pass writes its rows first and then attends under a mask by position. Rows of rejected draft tokens lie beyond
    the committed length: the mask hides them and the next pass writes over them. In a ring such a row decodes to a
    position before the window as long as at most SLACK rows lie beyond the oldest query, so the same mask hides it.
    """

    kinds: tuple[str, ...]
    kv_heads: tuple[int, ...]
    head_dims: tuple[int, ...]
    window: int
    quantization: Quantization | None = None

    def rows(self, kind: str, capacity: int) -> int:
        """Rows of a buffer of ``kind`` at ``capacity`` positions."""
        return capacity if kind == FULL else min(capacity, self.window + SLACK)

    def buffers(self, dtype: mx.Dtype) -> list[Buffer]:
        """All buffers, layer by layer, of a network that computes in ``dtype``."""
        found = []
        for kind, heads, dim in zip(self.kinds, self.kv_heads, self.head_dims, strict=True):
            how = self._quantization(kind)
            sizes = [(dim, dtype)] if how is None else widths(dim, how, dtype)
            found += [Buffer(kind, 2 * heads, *size) for size in sizes]
        return found

    def nbytes(self, dtype: mx.Dtype, capacity: int, kinds: Sequence[str] = (FULL, SLIDING)) -> int:
        """Bytes of all buffers, or those of some ``kinds``, of one text at ``capacity`` positions."""
        parts = [part for part in self.buffers(dtype) if part.kind in kinds]
        return sum(part.heads * part.width * self.rows(part.kind, capacity) * part.dtype.size for part in parts)

    def places(self, i: int) -> range:
        """Indices of layer ``i``'s buffers among all."""
        if self.quantization is None:
            return range(i, i + 1)
        start = i + 2 * self.kinds[:i].count(FULL)
        return range(start, start + (3 if self.kinds[i] == FULL else 1))

    def layer(self, buffers: Sequence[mx.array] | Mapping[int, mx.array], i: int) -> Rows:
        """The rows of layer ``i`` among all ``buffers``."""
        how = self._quantization(self.kinds[i])
        found = [buffers[place] for place in self.places(i)]
        return found[0] if how is None else QuantizedRows(how, *found)

    def stored(self, i: int, rows: mx.array) -> dict[int, mx.array]:
        """``rows`` [1, 2 heads, L, D] as layer ``i`` stores them, by the index of the buffer."""
        how = self._quantization(self.kinds[i])
        return dict(zip(self.places(i), [rows] if how is None else quantize(rows, how).parts(), strict=True))

    def _quantization(self, kind: str) -> Quantization | None:
        return self.quantization if kind == FULL else None


def aligned(rows: int) -> int:
    """Return the capacity that so many rows need."""
    return -(-rows // STEP) * STEP


def grown(capacity: int) -> int:
    """Return the next capacity."""
    return aligned(capacity + min(int(GROWTH * capacity), GROWN))


class KVCache:
    """The K/V buffers of one conversation, as the host holds them (of several in ``slots.py``).

    ``buffers`` is replaced as a whole by every pass; nobody may keep a second reference to it, or MLX copies the
    buffers instead of updating them in place.
    """

    def __init__(self, spec: CacheSpec, dtype: mx.Dtype, slots: int = 1) -> None:
        self.spec = spec
        self.dtype = dtype
        self.slots = slots
        self.capacity = 0
        self.buffers: list[mx.array] = []
        self.newest = -1  # highest position ever written, rejected rows included
        self._layout = spec.buffers(dtype)

    def reserve(self, rows: int) -> None:
        """Make room for ``rows`` positions: grow as ``grown`` says, at least STEP, one layer at a time."""
        if rows > self.capacity:
            self._resize(self.capacity_for(rows))

    def capacity_for(self, rows: int) -> int:
        """Return the capacity after ``reserve(rows)``."""
        if rows <= self.capacity:
            return self.capacity
        return aligned(max(rows, grown(self.capacity) or self.newest + 1))

    def shrink(self, rows: int) -> None:
        """Give rows of full layers back when the text needs no more than ``rows`` of them, less than half.

        A pass of fixed shape attends to all rows, empty or not. Rings keep their length and thereby what they hold.
        """
        if 2 * max(rows, STEP, self.spec.window + SLACK) < self.capacity:
            self._resize(max(rows, self.spec.window + SLACK))

    def resize(self, rows: int) -> None:
        """Make the capacity what ``rows`` positions need, at least the rings' length, whatever it was before."""
        if aligned(rows) != self.capacity:
            self._resize(rows)

    def _resize(self, rows: int) -> None:
        """Interrupted half way, it leaves a capacity of 0, so that the next ``reserve`` does it for all buffers."""
        self.capacity, capacity = 0, aligned(rows)
        if not self.buffers:
            self.buffers = [self._zeros(i, capacity) for i in range(len(self._layout))]
        else:
            for i in range(len(self.buffers)):
                self.buffers[i] = self._resized(i, capacity)
                mx.eval(self.buffers[i])  # so that old and new exist for one buffer only
        self.capacity = capacity

    def can_rewind(self, length: int) -> bool:
        """True if the rings still hold all that a pass at position ``length`` may attend to."""
        if SLIDING not in self.spec.kinds:
            return True
        rows = self.spec.rows(SLIDING, self.capacity)
        return self.newest < rows or self.newest - rows < length - self.spec.window

    def rings(self) -> list[mx.array]:
        """Copies of the sliding layers' buffers, not yet computed."""
        return [mx.array(self.buffers[i]) for i in self._ring_layers()]

    def restore(self, rings: Sequence[mx.array], newest: int) -> None:
        """Put copies of ``rings`` back, handed out when ``newest`` was the highest position ever written."""
        for i, ring in zip(self._ring_layers(), rings, strict=True):
            self.buffers[i] = mx.array(ring)
            self.buffers[i] = self._resized(i, self.capacity)
        self.newest = newest

    def cut(self, length: int, rings: Sequence[mx.array] | None = None) -> list[mx.array]:
        """Copies of the buffers with what positions 0 .. length - 1 left in them: rows of full layers, rings whole.

        ``rings``: what ``rings()`` gave when there were ``length`` positions (None: there are no more now).
        """
        past = iter(rings or ())
        pairs = zip(self._layout, self.buffers, strict=False)
        return [b[:, :, :length] if part.kind == FULL else mx.array(next(past, b)) for part, b in pairs]

    def fill(self, cut: Sequence[mx.array], length: int, newest: int, rings: Sequence[mx.array] | None = None) -> None:
        """Replace everything by copies of what ``cut`` gave for ``length`` positions.

        Raises ValueError if it does not fit, or ``restore`` could not take ``rings`` afterwards, and changes nothing.
        """
        fresh = KVCache(self.spec, self.dtype)
        if len(cut) != len(self._layout) or newest + 1 < length:
            raise ValueError(f"{len(cut)} buffers, not {len(self._layout)}")
        fresh.reserve(max(newest + 1, *(rows.shape[2] for rows in cut)))
        for i, (part, rows) in enumerate(zip(self._layout, cut, strict=True)):
            fresh._check(i, rows, length)
            if part.kind == FULL:
                fresh.buffers[i][:, :, :length] = rows
            else:
                fresh.buffers[i] = mx.array(rows)  # reading a prompt writes into it
                fresh.buffers[i] = fresh._resized(i, fresh.capacity)
        if rings is not None:
            layers = fresh._ring_layers()
            if len(rings) != len(layers):
                raise ValueError(f"{len(rings)} rings, not {len(layers)}")
            for i, ring in zip(layers, rings, strict=True):
                fresh._check(i, ring)
        mx.eval(fresh.buffers)
        self.capacity, self.buffers, self.newest = fresh.capacity, fresh.buffers, newest

    def _check(self, i: int, rows: mx.array, length: int = 0) -> None:
        """Raise ValueError unless ``rows`` are those of ``length`` positions in buffer ``i``."""
        part, buffer = self._layout[i], self.buffers[i]
        fits = rows.shape[2] == length if part.kind == FULL else rows.shape[2] <= self.spec.window + SLACK
        same = rows.dtype == part.dtype and [rows.shape[n] for n in (0, 1, 3)] == [buffer.shape[n] for n in (0, 1, 3)]
        if not (fits and same):
            raise ValueError(f"buffer {i} has keys and values of shape {rows.shape}, {rows.dtype}")

    def _ring_layers(self) -> list[int]:
        return [i for i, part in enumerate(self._layout) if part.kind == SLIDING]

    def _zeros(self, i: int, capacity: int) -> mx.array:
        part = self._layout[i]
        return mx.zeros((self.slots, part.heads, self.spec.rows(part.kind, capacity), part.width), part.dtype)

    def _resized(self, i: int, capacity: int) -> mx.array:
        old, new = self.buffers[i], self._zeros(i, capacity)
        if old.shape == new.shape:
            return old
        rows = min(old.shape[2], new.shape[2])
        new[:, :, :rows] = old[:, :, :rows]  # a ring grows only before it has wrapped: row p still holds position p
        return new


def ring_positions(last: mx.array, rows: int) -> mx.array:
    """Position in each row of a ring whose newest written position is ``last``: [rows], < 0 where empty."""
    return last - (last - mx.arange(rows)) % rows


def visible(query: mx.array, key: mx.array, window: int | None) -> mx.array:
    """Mask [.., L, rows]: key positions [.., rows] that each query position [.., L] attends to.

    ``window`` None: all before it.
    """
    q, k = query[..., None], key[..., None, :]
    seen = (k <= q) & (k >= 0)
    return seen if window is None else seen & (k > q - window)


def with_blocks(seen: mx.array, blocks: Sequence[tuple[int, int]], before: int, window: int) -> mx.array:
    """The mask ``seen`` [L, before + L] of a sliding layer, in which rows of a block attend to each other.

    ``blocks``: first and last row + 1 of each picture. The window holds for what lies behind a row, not for what lies
    ahead: so transformers does it (Google's own mask ends at both sides; they differ in blocks longer than the window).
    """
    rows = seen.shape[0]
    number = [0] * rows
    for i, (start, end) in enumerate(blocks, 1):
        number[start:end] = [i] * (end - start)
    query = mx.array(number)
    key = mx.concatenate([mx.full((before,), -1, query.dtype), query])
    near = mx.arange(before + rows)[None] > mx.arange(before, before + rows)[:, None] - window
    return seen | ((query[:, None] == key[None]) & (query[:, None] > 0) & near)


class FixedView:
    """The buffers during a pass of fixed shape over positions ``offset .. offset + length - 1``.

    ``offset`` [1] int32 stays on the device. ``masks[kind]`` is [length, rows]. ``buffers`` holds the result.
    ``queries``: full layers attend with so many rows, with more of the last kind than there are (0: with those there
    are). ``unused``: nobody reads so many of the last rows.
    """

    def __init__(
        self,
        spec: CacheSpec,
        buffers: Sequence[mx.array],
        offset: mx.array,
        length: int,
        *,
        queries: int = 0,
        unused: int = 0,
    ) -> None:
        self.buffers, self.unused = list(buffers), unused
        self.positions = offset + mx.arange(length)  # [L]
        self._spec, self._offset = spec, offset
        rows = {kind: buffers[spec.places(spec.kinds.index(kind))[0]].shape[2] for kind in spec.kinds}
        self.masks: dict[str, mx.array] = {}
        for kind, n in rows.items():
            if kind == FULL:
                wanted = offset + mx.arange(queries) if queries > length else self.positions
                self.masks[kind] = visible(wanted, mx.arange(n), None)
            else:
                self.masks[kind] = visible(self.positions, ring_positions(self.positions[-1:], n), spec.window)
        self._ring = (self.positions % rows.get(SLIDING, 1))[None, None, :, None]

    def update(self, i: int, rows: mx.array) -> Rows:
        """Write the K/V rows [1, 2 heads, L, D] of layer ``i`` and return what its queries attend to."""
        for place, new in self._spec.stored(i, rows).items():
            buffer = self.buffers[place]
            if self._spec.kinds[i] == FULL:
                buffer = mx.slice_update(buffer, new, self._offset, axes=(2,))
            else:
                buffer = mx.put_along_axis(buffer, mx.broadcast_to(self._ring, new.shape), new, axis=2)
            self.buffers[place] = buffer
        return self._spec.layer(self.buffers, i)


class PromptView:
    """The buffers while a chunk of the prompt is read: positions ``start .. start + length - 1``.

    Sliding layers attend to the last ``window - 1`` rows before the chunk and to the chunk itself, so a chunk may
    be longer than the ring; only its last rows are stored.
    """

    unused = 0

    def __init__(
        self,
        spec: CacheSpec,
        buffers: Sequence[mx.array],
        start: int,
        length: int,
        blocks: Sequence[tuple[int, int]] = (),
    ) -> None:
        """``blocks``: rows of the chunk that attend to each other, see `with_blocks`."""
        self.buffers = list(buffers)
        self.positions = mx.arange(start, start + length)
        self._spec, self._start, self._end = spec, start, start + length
        self._before = min(start, spec.window - 1)  # rows before the chunk that a sliding layer may see
        sliding = visible(self.positions, mx.arange(start - self._before, self._end), spec.window)
        if blocks:  # full layers stay causal
            sliding = with_blocks(sliding, blocks, self._before, spec.window)
        self.masks: dict[str, mx.array | str] = {FULL: "causal", SLIDING: sliding}

    def update(self, i: int, rows: mx.array) -> Rows:
        """Write the K/V rows [1, 2 heads, L, D] of layer ``i`` and return what its queries attend to."""
        if self._spec.kinds[i] == FULL:
            parts = {}
            for place, new in self._spec.stored(i, rows).items():
                self.buffers[place][:, :, self._start : self._end] = new
                parts[place] = self.buffers[place][:, :, : self._end]
            return self._spec.layer(parts, i)
        buffer = self.buffers[self._spec.places(i)[0]]
        size = buffer.shape[2]
        seen = rows
        if self._before:
            before = mx.arange(self._start - self._before, self._start) % size
            seen = mx.concatenate([buffer[:, :, before], rows], axis=2)
        n = min(rows.shape[2], size)
        buffer[:, :, mx.arange(self._end - n, self._end) % size] = rows[:, :, -n:]
        return seen
