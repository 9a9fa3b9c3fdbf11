"""Matrices of a network, plain or quantized, and products with them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import mlx.core as mx

from mlxmtp.models.device import on_cpu
from mlxmtp.models.tensors import Quantization


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

    def rows(self, index: mx.array) -> mx.array:
        """Return the rows at ``index`` of the first axis in full width."""
        found = Matrix(tuple(array[index] for array in self.arrays), self.quantization)
        return mx.dequantize(found.arrays[0], **found.arguments) if self.quantization else found.arrays[0]

    def project(self, x: mx.array) -> mx.array:
        """x [.., in] -> [.., out]."""
        if self.quantization is None:
            return x @ self.arrays[0].T
        return mx.quantized_matmul(x, self.arrays[0], transpose=True, **self.arguments)


class Weights:
    """Parameters of a network by name, below ``prefix``.

    Each is handed out once, so that what is joined or derived from it replaces it in memory.
    """

    def __init__(self, parameters: dict[str, Matrix], prefix: str = "") -> None:
        self._parameters, self._prefix = parameters, prefix

    def below(self, name: str) -> Weights:
        """Return the parameters of the module ``name``."""
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
        # A plain weight is stored transposed: one node less per product and pass.
        self._parts = [m if m.quantization else _transposed(m.arrays[0]) for m in join(*matrices)]

    def __call__(self, x: mx.array) -> mx.array:
        outs = [x @ part if isinstance(part, mx.array) else part.project(x) for part in self._parts]
        return outs[0] if len(outs) == 1 else mx.concatenate(outs, axis=-1)


def join(*matrices: Matrix) -> list[Matrix]:
    """Return one matrix with all outputs, or the matrices as they are where they are quantized differently."""
    if len(matrices) == 1 or len({matrix.quantization for matrix in matrices}) > 1:
        return list(matrices)
    parts = zip(*(matrix.arrays for matrix in matrices), strict=True)
    return [Matrix(tuple(mx.concatenate(list(part), axis=-2) for part in parts), matrices[0].quantization)]


def _transposed(weight: mx.array) -> mx.array:
    """[out, in] -> [in, out]: a view, and on a CPU a copy.

    Into the 1 to 9 rows of a round OpenBLAS multiplies a matrix in that order up to three times as fast as a view.
    """
    return mx.contiguous(weight.T) if on_cpu() else weight.T


def gelu(x: mx.array) -> mx.array:
    """``gelu_pytorch_tanh``: x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))."""
    return 0.5 * x * (1 + mx.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
