"""Matrix products of a layer: linear layers on the same input as one, and the activation between them."""

import math
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlxmtp.models.device import on_cpu


def gelu(x: mx.array) -> mx.array:
    """``gelu_pytorch_tanh``: x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))."""
    return 0.5 * x * (1 + mx.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


class Product:
    """Linear layers on the same input as one product: outputs side by side, [L, in] -> [L, sum of outs].

    Modules that differ in quantization cannot be joined and stay one product each.
    """

    def __init__(self, *modules: Any) -> None:
        joined = [join(modules)] if len({layout(m) for m in modules}) == 1 else list(modules)
        # A plain weight is kept transposed: one node less per product and pass.
        self._parts = [m if hasattr(m, "scales") or "bias" in m else _transposed(m.weight) for m in joined]

    def __call__(self, x: mx.array) -> mx.array:
        outs = [x @ part if isinstance(part, mx.array) else part(x) for part in self._parts]
        return outs[0] if len(outs) == 1 else mx.concatenate(outs, axis=-1)

    def arrays(self) -> list[Any]:
        return [part if isinstance(part, mx.array) else part.parameters() for part in self._parts]


def _transposed(weight: mx.array) -> mx.array:
    """[out, in] -> [in, out]: a view, and on a CPU a copy.

    Into the 1 to 9 rows of a round OpenBLAS multiplies a matrix in that order up to three times as fast as a view.
    """
    return mx.contiguous(weight.T) if on_cpu() else weight.T


_PACKING = ("group_size", "bits", "mode")


def layout(module: Any) -> tuple[Any, ...]:
    """Class, packing and names of arrays: modules that agree in it can be joined."""
    return (type(module), *(vars(module).get(name) for name in _PACKING), *sorted(module))


def join(modules: tuple[Any, ...], axis: int = 0) -> Any:
    """A module of the same class whose arrays are the modules' arrays joined along their outputs, ``axis``."""
    first: Any = modules[0]
    if len(modules) == 1:
        return first
    kind: Any = type(first)
    joined = kind.__new__(kind)
    nn.Module.__init__(joined)
    for name in _PACKING:
        if name in vars(first):
            setattr(joined, name, getattr(first, name))
    for name in first:
        setattr(joined, name, mx.concatenate([module[name] for module in modules], axis=axis))
    return joined
