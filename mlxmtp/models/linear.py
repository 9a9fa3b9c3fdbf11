"""Matrices of a network, plain or quantized, products with them, and functions of single numbers."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from mlxmtp.models import device
from mlxmtp.models.tensors import Quantization

_SQUARINGS, _DEGREE, _NOTHING = 5, 7, -30.0
_MANY = 2048
"""Scores in a slice from which on this pays in rounds that are not compiled, too: there each step is an operation."""


class Matrix(NamedTuple):
    """Weights [.., out, in]: one array, or quantized values, scales and (affine) biases."""

    arrays: tuple[mx.array, ...]
    quantization: Quantization | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of MLX's functions for quantized values; empty for plain ones."""
        if self.quantization is None:
            return {}
        return {**dict(zip(("scales", "biases"), self.arrays[1:], strict=False)), **self.quantization.arguments}

    def rows(self, index: mx.array, dtype: mx.Dtype) -> mx.array:
        """Return the rows at ``index`` of the first axis in full width; quantized ones do not tell their ``dtype``."""
        found = Matrix(tuple(array[index] for array in self.arrays), self.quantization)
        return mx.dequantize(found.arrays[0], **found.arguments, dtype=dtype) if self.quantization else found.arrays[0]

    def project(self, x: mx.array) -> mx.array:
        """x [.., in] -> [.., out]."""
        if self.quantization is None:
            return x @ self.arrays[0].T
        return mx.quantized_matmul(x, self.arrays[0], transpose=True, **self.arguments)

    def gathered(self, x: mx.array, index: mx.array, rows: Sequence[int] | None) -> mx.array:
        """x [R, 1, in] -> [pairs, 1, out] by some of several matrices: row ``rows[i]`` by matrix ``index[i]``.

        Without rows the pairs are sorted by matrix, and x has a row for each.
        """
        pairs: dict[str, Any] = {"lhs_indices": None if rows is None else mx.array(list(rows), mx.uint32)}
        pairs |= {"rhs_indices": index, "sorted_indices": rows is None}
        if self.quantization is not None:
            return mx.gather_qmm(x, self.arrays[0], **pairs, **self.arguments)
        weights, dtype = self.arrays[0].swapaxes(1, 2), x.dtype
        if device.on_cpu() and dtype != mx.float32:  # the only one that MLX's CPU backend takes here
            return mx.gather_mm(x.astype(mx.float32), weights.astype(mx.float32), **pairs).astype(dtype)
        return mx.gather_mm(x, weights, **pairs)


class Weights:
    """Parameters of a network by name, below ``prefix``.

    Each is handed out once, so that what is joined or derived from it replaces it in memory.
    """

    def __init__(self, parameters: dict[str, Matrix], prefix: str = "") -> None:
        self._parameters, self._prefix = parameters, prefix

    def below(self, name: str) -> "Weights":
        """Return the parameters below the module ``name``."""
        return Weights(self._parameters, f"{self._prefix}{name}.")

    def matrix(self, module: str) -> Matrix:
        """Hand out the weight of ``module``."""
        return self._parameters.pop(f"{self._prefix}{module}.weight")

    def vector(self, name: str) -> mx.array:
        """Hand out a parameter that is never quantized."""
        return self._parameters.pop(f"{self._prefix}{name}").arrays[0]


class Linear:
    """Matrices with the same input as one product: outputs side by side, [L, in] -> [L, sum of outs].

    Those that are quantized differently stay one product each.
    """

    def __init__(self, *matrices: Matrix) -> None:
        # A plain weight is stored transposed: one node less per product and pass. A view, and on a CPU a copy: into the
        # 1 to 9 rows of a round OpenBLAS multiplies a matrix in that order up to three times as fast.
        stored = mx.contiguous if device.on_cpu() else mx.array
        self._parts = [m if m.quantization else stored(m.arrays[0].T) for m in join(*matrices)]

    def __call__(self, x: mx.array) -> mx.array:
        outs = [x @ part if isinstance(part, mx.array) else part.project(x) for part in self._parts]
        return outs[0] if len(outs) == 1 else mx.concatenate(outs, axis=-1)


def join(*matrices: Matrix) -> list[Matrix]:
    """Return one matrix with all outputs, or the matrices as they are where they are quantized differently."""
    if len(matrices) == 1 or len({matrix.quantization for matrix in matrices}) > 1:
        return list(matrices)
    parts = zip(*(matrix.arrays for matrix in matrices), strict=True)
    return [Matrix(tuple(mx.concatenate(list(part), axis=-2) for part in parts), matrices[0].quantization)]


def gelu(x: mx.array) -> mx.array:
    """``gelu_pytorch_tanh``: x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))."""
    return 0.5 * x * (1 + mx.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def softmax(x: mx.array, axis: int) -> mx.array:
    """x of any shape and floating type -> the same; -inf becomes 0. In every slice something must be finite."""
    if x.shape[axis] >= _MANY:
        return multiplied(x, axis)
    return mx.softmax(x, axis=axis, precise=True)


def multiplied(x: mx.array, axis: int) -> mx.array:
    """`softmax` out of multiplications, the same bits compiled or not.

    MLX's CPU backend asks the C library for one exponential after the other, 13 ns each on an x86 server: with 16,000
    keys that is half of what attention costs a round. Multiplications go four or eight at a time,

        e^d = (1 + y + y^2/2! + ... + y^7/7!)^32      y = d / 32,  -30 < d <= 0

    to 4e-6 of e^d down to e^-10. Below e^-30 (1e-13) the weight is 0, which is what float32 leaves of it beside 1.
    """
    below = x.astype(mx.float32) - mx.max(x, axis=axis, keepdims=True)
    y = below * 2.0**-_SQUARINGS
    power = y / math.factorial(_DEGREE) + 1 / math.factorial(_DEGREE - 1)
    for i in reversed(range(_DEGREE - 1)):
        power = power * y + 1 / math.factorial(i)
    for _ in range(_SQUARINGS):
        power = power * power
    weights = mx.where(below > _NOTHING, power, 0.0)
    return (weights / mx.sum(weights, axis=axis, keepdims=True)).astype(x.dtype)
