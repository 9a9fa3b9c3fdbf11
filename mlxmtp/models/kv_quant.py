"""Keys and values in 4 or 8 bits: three buffers with the same rows instead of one, and products with them.

A row is quantized once, when it is written. Whatever reads it, the chunk of the prompt that wrote it included, sees the
same numbers, so neither chunks nor draft lengths nor growing change a text.
"""

from dataclasses import dataclass
from typing import Self

import mlx.core as mx

from mlxmtp.models import device
from mlxmtp.models.tensors import Quantization

APART = 4096
"""Rows from which values are multiplied head by head: MLX's Metal backend divides the sum over so many rows among its
cores in a single product only, not in a batch, which leaves most of them idle (read in its source)."""


@dataclass(frozen=True, slots=True)
class QuantizedRows:
    """Rows of keys, values or both: ``values`` [1, heads, rows, D * bits / 32] uint32, ``scales`` and ``biases``
    [1, heads, rows, D / group]."""

    quantization: Quantization
    values: mx.array
    scales: mx.array
    biases: mx.array

    def halves(self) -> tuple[Self, Self]:
        """Return keys and values of rows that hold both, keys first."""
        first, second = zip(*(mx.split(part, 2, axis=1) for part in self.parts()), strict=True)
        return type(self)(self.quantization, *first), type(self)(self.quantization, *second)

    def parts(self) -> tuple[mx.array, mx.array, mx.array]:
        """Return the arrays in the order of the buffers."""
        return self.values, self.scales, self.biases


Rows = mx.array | QuantizedRows
"""Rows of keys, values or both: [1, heads, rows, D], or quantized."""


def quantize(rows: mx.array, quantization: Quantization) -> QuantizedRows:
    """Quantize ``rows`` [1, heads, rows, D] along their last axis."""
    return QuantizedRows(quantization, *mx.quantize(rows, **quantization.arguments))


def dequantized(rows: Rows) -> mx.array:
    """Return ``rows`` [1, heads, rows, D] in full width."""
    if isinstance(rows, mx.array):
        return rows
    return mx.dequantize(*rows.parts(), **rows.quantization.arguments)


def widths(dim: int, quantization: Quantization, dtype: mx.Dtype) -> list[tuple[int, mx.Dtype]]:
    """Return width and dtype of the three buffers for heads of ``dim`` entries of ``dtype``."""
    groups = dim // quantization.group_size
    return [(dim * quantization.bits // 32, mx.uint32), (groups, dtype), (groups, dtype)]


def scores(queries: mx.array, keys: Rows) -> mx.array:
    """queries [1, heads, L, D] times keys [1, heads, rows, D] -> [1, heads, L, rows]."""
    if isinstance(keys, mx.array):
        return queries @ keys.swapaxes(2, 3)
    return mx.quantized_matmul(queries, *keys.parts(), transpose=True, **keys.quantization.arguments)


def weighted_sum(weights: mx.array, values: Rows) -> mx.array:
    """weights [1, heads, L, rows] times values [1, heads, rows, D] -> [1, heads, L, D]."""
    if isinstance(values, mx.array):
        slots, heads, rows, _ = values.shape
        if slots == 1 < heads and rows >= APART:
            return mx.concatenate([weights[:, i : i + 1] @ values[:, i : i + 1] for i in range(heads)], axis=1)
        return weights @ values
    parts, how = values.parts(), values.quantization.arguments
    slots, heads, rows, _ = parts[0].shape
    if device.on_cpu() or rows < APART:
        return mx.quantized_matmul(weights, *parts, transpose=False, **how)
    # Metal divides no long sum over quantized rows by itself (`qmm` splits transposed ones only): pieces, added.
    pieces = next(count for count in (32, 16, 8, 4, 2, 1) if rows % count == 0)
    by_piece = weights.reshape(slots, heads, -1, pieces, rows // pieces).swapaxes(2, 3)
    packed, scales, biases = (part.reshape(slots, heads, pieces, rows // pieces, -1) for part in parts)
    sums = mx.quantized_matmul(by_piece, packed, scales, biases, transpose=False, **how)
    return sums.astype(mx.float32).sum(axis=2).astype(weights.dtype)
