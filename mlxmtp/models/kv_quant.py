"""Keys and values in 4 or 8 bits: three buffers with the same rows instead of one, and products with them.

MLX's affine packing along a head: in every group of a row's entries, entry = scale * packed + bias. A row is packed
once, when it is written, and nothing else of it is kept. So whatever reads it, the chunk of the prompt that wrote it
included, sees the same numbers, and neither chunks nor draft lengths nor growing change a text.
"""

from dataclasses import dataclass

import mlx.core as mx

from mlxmtp.models.tensors import Packing


@dataclass(frozen=True, slots=True)
class Packed:
    """Rows of keys, values or both: ``entries`` [1, heads, rows, D * bits / 32] uint32, ``scales`` and ``biases``
    [1, heads, rows, D / group]."""

    packing: Packing
    entries: mx.array
    scales: mx.array
    biases: mx.array

    def halves(self) -> tuple["Packed", "Packed"]:
        """Keys and values, where both are here, keys first."""
        first, second = zip(*(mx.split(part, 2, axis=1) for part in self.parts()), strict=True)
        return Packed(self.packing, *first), Packed(self.packing, *second)

    def parts(self) -> tuple[mx.array, mx.array, mx.array]:
        """The arrays, as buffers hold them."""
        return self.entries, self.scales, self.biases

    def unpack(self) -> mx.array:
        """The rows [1, heads, rows, D] in full width."""
        group, bits = self.packing.group_size, self.packing.bits
        return mx.dequantize(self.entries, self.scales, self.biases, group_size=group, bits=bits)


Rows = mx.array | Packed
"""Rows of keys, values or both: [1, heads, rows, D], or packed."""


def unpacked(rows: Rows) -> mx.array:
    """``rows`` [1, heads, rows, D] as everybody sees them."""
    return rows if isinstance(rows, mx.array) else rows.unpack()


def widths(dim: int, packing: Packing, dtype: mx.Dtype) -> list[tuple[int, mx.Dtype]]:
    """Width and dtype of the three buffers for heads of ``dim`` entries of ``dtype``."""
    groups = dim // packing.group_size
    return [(dim * packing.bits // 32, mx.uint32), (groups, dtype), (groups, dtype)]


def pack(rows: mx.array, packing: Packing) -> Packed:
    """``rows`` [1, heads, rows, D] in groups along their last axis."""
    return Packed(packing, *mx.quantize(rows, group_size=packing.group_size, bits=packing.bits))


def scores(queries: mx.array, keys: Packed) -> mx.array:
    """queries [1, heads, L, D] times keys [1, heads, rows, D] -> [1, heads, L, rows]."""
    return _product(queries, keys, transpose=True)


def mixed(weights: mx.array, values: Packed) -> mx.array:
    """weights [1, heads, L, rows] times values [1, heads, rows, D] -> [1, heads, L, D]."""
    return _product(weights, values, transpose=False)


def _product(x: mx.array, rows: Packed, *, transpose: bool) -> mx.array:
    group, bits = rows.packing.group_size, rows.packing.bits
    return mx.quantized_matmul(x, *rows.parts(), transpose=transpose, group_size=group, bits=bits)
