"""The experts of the 26B: k of them for each row, gate and up of an expert as one product.

    y = sum_e w_e down_e(gelu(gate_e x) * up_e x)      e: the k experts of the row

mlx-lm's own layer takes three products, and MLX makes a list of row numbers for each; here there are two, and the lists
are constants.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from mlxmtp.models.products import gelu, join, layout

_SORTED = 64
"""From so many pairs of row and expert on they are sorted by expert: the weights of each are read once."""


class Experts:
    """``source`` is mlx-lm's ``Experts``; its projections are taken out of it."""

    def __init__(self, source: Any) -> None:
        glu = source.switch_glu
        gate, up = glu.pop("gate_proj"), glu.pop("up_proj")
        self._gate_up = (join((gate, up), axis=1),) if layout(gate) == layout(up) else (gate, up)
        self._down = glu.pop("down_proj")

    def arrays(self) -> list[Any]:
        return [module.parameters() for module in (*self._gate_up, self._down)]

    def __call__(self, x: mx.array, indices: mx.array, weights: mx.array) -> mx.array:
        """x [L, H], its experts and their weights [L, k] -> [L, H]."""
        rows, k = indices.shape
        pairs = rows * k
        experts = indices.reshape(pairs)
        if pairs < _SORTED:
            y = self._mlp(x[:, None], experts, [row for row in range(rows) for _ in range(k)])
        else:
            order = mx.argsort(experts)
            y = self._mlp(x[order // k][:, None], experts[order], None)[mx.argsort(order)]
        return (weights[..., None] * y.reshape(rows, k, -1)).sum(1)

    def _mlp(self, x: mx.array, experts: mx.array, rows: Sequence[int] | None) -> mx.array:
        """x [R, 1, H] -> [pairs, 1, H]: row ``rows[i]`` through ``experts[i]``; without rows the pairs are sorted, a
        row of ``x`` for each."""
        parts = [_product(x, module, rows, experts) for module in self._gate_up]
        gate, up = mx.split(parts[0], 2, axis=-1) if len(parts) == 1 else parts
        return _product(gelu(gate) * up, self._down, None if rows is None else range(len(rows)), experts)


def _product(x: mx.array, module: Any, rows: Sequence[int] | None, experts: mx.array) -> mx.array:
    """x [R, 1, in] -> [pairs, 1, out] by the weights [experts, out, in] of each pair's expert."""
    which: dict[str, Any] = {"lhs_indices": None if rows is None else mx.array(list(rows), mx.uint32)}
    which |= {"rhs_indices": experts, "sorted_indices": rows is None}
    if "scales" not in module:
        return mx.gather_mm(x, module.weight.swapaxes(1, 2), **which)
    packing = {"group_size": module.group_size, "bits": module.bits, "mode": module.mode}
    return mx.gather_qmm(x, module.weight, module.scales, module.get("biases"), **which, **packing)
