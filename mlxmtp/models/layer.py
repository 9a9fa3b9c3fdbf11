"""One decoder layer of Gemma 4, target's or drafter's, with as few operations as the formula allows.

* q, k and v are one product, gate and up another (``Product``);
* q-norm, k-norm and v-norm are one RMS norm; their weights, the rotation of q and k and the cast are one
  elementwise expression with one result, which ``mx.compile`` turns into one kernel:

      a (v [cos, sin]) + b (w [-sin, cos])      [a, b] = states / rms(states), [v, w] = the norm's weight

  with v = w = 1, cos = 1, sin = 0 for the value heads. Each half of a head on its own would be a kernel, a cast (those
  of two results are not fused) and a copy, twice;
* K and V are one buffer, so a layer writes once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from mlxmtp.models.config import ModelConfig
from mlxmtp.models.cpu import softmax
from mlxmtp.models.device import on_cpu
from mlxmtp.models.kv_quant import Packed, Rows, mixed, scores, unpacked
from mlxmtp.models.linear import Product, gelu, join, layout

_FEW = 16
"""Rows up to which the products are written out on a CPU; a chunk of the prompt is better off in MLX's own function."""


KV = tuple[Rows, Rows]
"""Keys and values, each [1, kv_heads, rows, D] or packed."""


def halves(rows: Rows) -> KV:
    """Keys and values of ``rows`` [1, 2 kv_heads, rows, D]."""
    if isinstance(rows, mx.array):
        keys, values = mx.split(rows, 2, axis=1)
        return keys, values
    return rows.halves()


def attend(queries: mx.array, kv: KV, mask: mx.array | str) -> mx.array:
    """queries [1, L, heads, D] and the K/V they look at -> [L, heads * D]; ``mask`` [L, rows] or "causal".

    Gemma 4 does not scale its scores. On a GPU this is MLX's fused kernel. On a CPU that function is put together of a
    dozen operations, one of them a multiplication by a scale of 1. Here the heads of a group are further columns of one
    product K q^T, which OpenBLAS takes half as long for as for q K^T, and the exponentials of long contexts are
    `softmax`'s. Packed keys and values have no fused kernel anywhere. A chunk of the prompt unpacks them for itself,
    keys before values.
    """
    _, rows, heads, dim = queries.shape
    keys, values = kv
    many = isinstance(mask, str) or rows > _FEW
    if many:
        keys, values = unpacked(keys), unpacked(values)
    if isinstance(keys, mx.array) and isinstance(values, mx.array) and (many or not on_cpu()):
        y = mx.fast.scaled_dot_product_attention(queries.transpose(0, 2, 1, 3), keys, values, scale=1.0, mask=mask)
        return y.transpose(0, 2, 1, 3).reshape(rows, heads * dim)
    assert not isinstance(mask, str), "many rows are unpacked"
    groups = (keys if isinstance(keys, mx.array) else keys.entries).shape[1]
    if groups > 1:
        queries = queries.reshape(rows, groups, heads // groups, dim).transpose(1, 0, 2, 3)
    queries = queries.reshape(1, groups, -1, dim)
    if isinstance(keys, Packed) and isinstance(values, Packed):
        found = scores(queries, keys)  # [1, groups, L * heads per group, keys]
        seen = mx.where(mask[:, None], found.reshape(groups, rows, heads // groups, -1), -mx.inf)
        y = mixed(mx.softmax(seen, axis=-1, precise=True).reshape(found.shape), values)
    else:
        found = unpacked(keys) @ queries.swapaxes(2, 3)  # [1, groups, keys, L * heads per group]
        seen = mx.where(mask.T[..., None], found.reshape(groups, -1, rows, heads // groups), -mx.inf)
        y = softmax(seen, axis=1).reshape(found.shape).swapaxes(2, 3) @ unpacked(values)
    if groups > 1:
        y = y.reshape(groups, rows, -1, dim).transpose(1, 0, 2, 3)
    return y.reshape(rows, heads * dim)


class Rotation(NamedTuple):
    """[cos, sin] and [-sin, cos] [1, L, heads or 1, 2, D/2] of the positions of a pass, for one kind of layer."""

    first: mx.array
    second: mx.array

    def last(self) -> Rotation:
        return Rotation(self.first[:, -1:], self.second[:, -1:])


class Rotary:
    """Rotary embedding of one layer kind: angle_i = position * theta^(-2i / D) for the first part of a head.

    ``partial_rotary_factor`` f of the "proportional" type rotates the first f D/2 pairs and leaves the others
    still; the exponent keeps the full D. ``heads`` (turned, still) is for q and k followed by v, whose angles are 0.

    In float32 the product is off by up to 1/64 of a radian at position 262,143, and sines of large numbers differ
    between devices. So angles are counted in turns, in fixed point: whole turns fall out of the 32-bit product by
    themselves, and what is left is right to 1e-6 of a radian below position 2^20.
    """

    def __init__(self, config: ModelConfig, kind: str, heads: tuple[int, int] = (1, 0)) -> None:
        rope = config.rope(kind)
        dim, theta = config.head_dim(kind), float(rope.get("rope_theta", 10000.0))
        pairs = int(rope.get("partial_rotary_factor", 1.0) * dim // 2)
        speeds = [theta ** (-2 * i / dim) / math.tau if i < pairs else 0.0 for i in range(dim // 2)]  # turns
        fixed = [round(speed * 2 ** (32 + _FINER)) for speed in speeds]
        turned, still = heads
        by_head = [fixed] * turned + [[0] * len(fixed)] * still
        # [heads, 1, D/2]: in 2^-32 turns, and the bits below
        self._coarse = mx.array([[speed >> _FINER for speed in head] for head in by_head], mx.uint32)[:, None]
        self._fine = mx.array([[speed & (2**_FINER - 1) for speed in head] for head in by_head], mx.uint32)[:, None]
        mx.eval(self._coarse, self._fine)

    def at(self, positions: mx.array) -> Rotation:
        """The rotation at ``positions`` [L], below 2^20."""
        p = positions.astype(mx.uint32)[None, :, None, None, None]
        turns = p * self._coarse + ((p * self._fine) >> _FINER)  # modulo one turn
        angles = turns.astype(mx.int32).astype(mx.float32) * (math.tau / 2**32)  # -pi .. pi
        cos, sin = mx.cos(angles), mx.sin(angles)
        return Rotation(mx.concatenate([cos, sin], axis=3), mx.concatenate([-sin, cos], axis=3))


_FINER = 12
"""Bits of a speed below 2^-32 turns; their product with a position must stay below 2^32."""


class Attention:
    """Attention of one layer. ``source`` is mlx-lm's module; its projections are taken out of it and joined."""

    def __init__(self, source: Any, eps: float) -> None:
        self.heads, self.head_dim = source.n_heads, source.head_dim
        self.kv_heads = source.n_kv_heads if source.has_kv else 0
        self._eps, self._k_is_v = eps, source.has_kv and source.use_k_eq_v
        names = ["q_proj"] + ["k_proj"] * source.has_kv + ["v_proj"] * (source.has_kv and not self._k_is_v)
        self._project = Product(*(source.pop(name) for name in names))
        self._out = Product(source.pop("o_proj"))
        norms = [mx.broadcast_to(source.q_norm.weight, (self.heads, self.head_dim))]
        if source.has_kv:
            norms.append(mx.broadcast_to(source.k_norm.weight, (self.kv_heads, self.head_dim)))
            norms.append(mx.ones((self.kv_heads, self.head_dim), source.q_norm.weight.dtype))
        halved = mx.concatenate(norms).astype(mx.float32).reshape(-1, 2, self.head_dim // 2)
        self._norms = mx.split(halved, 2, axis=1)  # [heads, 1, D/2] each

    def arrays(self) -> list[Any]:
        return [self._project.arrays(), self._out.arrays(), self._norms]

    def __call__(self, x: mx.array, mask: Any, turn: Rotation, kv: KV | None, view: Any, i: int) -> tuple[mx.array, KV]:
        """x [L, H] -> [L, H], and the K/V it attended to: ``kv`` where given, else its own.

        ``turn`` must cover ``heads + 2 kv_heads`` heads.
        """
        rows = x.shape[0]
        states = self._project(x).reshape(1, rows, -1, self.head_dim)
        if self._k_is_v:  # V is K before its norm: the same product, used twice
            states = mx.concatenate([states, states[:, :, self.heads :]], axis=2)
        heads = states.shape[2]
        normed = mx.fast.rms_norm(states, None, self._eps).reshape(1, rows, heads, 2, -1)
        a, b = mx.split(normed, 2, axis=3)  # [1, L, heads, 1, D/2], each spread over both halves of the result
        y = a * (self._norms[0] * turn.first) + b * (self._norms[1] * turn.second)  # float32 until the cast
        y = y.astype(x.dtype).reshape(states.shape)
        queries = y
        if kv is None:
            queries, own = mx.split(y, [self.heads], axis=2)
            kv = halves(view.update(i, own.transpose(0, 2, 1, 3)))
        return self._out(attend(queries, kv, mask)), kv


class Block:
    """One decoder layer. ``source`` is mlx-lm's ``DecoderLayer``; what is joined here is taken out of it."""

    def __init__(self, source: Any, eps: float) -> None:
        self.kind: str = source.layer_type
        self.has_kv: bool = source.self_attn.has_kv
        self.attention = Attention(source.self_attn, eps)
        self._source = source
        self._gate_up = Product(source.mlp.pop("gate_proj"), source.mlp.pop("up_proj"))
        self._down = Product(source.mlp.pop("down_proj"))
        self._extra_gate = self._extra_out = None
        if source.hidden_size_per_layer_input:
            self._extra_gate = Product(source.pop("per_layer_input_gate"))
            self._extra_out = Product(source.pop("per_layer_projection"))
        self._router_scale = source.router.pop("scale") * source.router._root_size if source.enable_moe else None
        self._experts = Experts(source.experts) if source.enable_moe else None

    def arrays(self) -> list[Any]:
        products = [self._gate_up, self._down, self._extra_gate, self._extra_out]
        own = [self.attention.arrays(), *(p.arrays() for p in products if p is not None)]
        return own if self._experts is None else [*own, self._router_scale, self._experts.arrays()]

    def _mlp(self, x: mx.array) -> mx.array:
        gate, up = mx.split(self._gate_up(x), 2, axis=-1)
        return self._down(gelu(gate) * up)

    def _feed_forward(self, h: mx.array) -> mx.array:
        s = self._source
        if self._experts is None:
            return s.post_feedforward_layernorm(self._mlp(s.pre_feedforward_layernorm(h)))
        dense = s.post_feedforward_layernorm_1(self._mlp(s.pre_feedforward_layernorm(h)))
        indices, weights = self._route(h)
        sparse = s.post_feedforward_layernorm_2(self._experts(s.pre_feedforward_layernorm_2(h), indices, weights))
        return s.post_feedforward_layernorm(dense + sparse)

    def _route(self, h: mx.array) -> tuple[mx.array, mx.array]:
        """The experts of each row and their weights, both [L, k]: softmax over the k highest scores, times a scale."""
        router = self._source.router
        scores = router.proj(mx.fast.rms_norm(h, self._router_scale, router.eps))
        k = router.config.top_k_experts
        indices = mx.argpartition(scores, kth=-k, axis=-1)[..., -k:]
        weights = mx.softmax(mx.take_along_axis(scores, indices, axis=-1), axis=-1)
        return indices, weights * router.per_expert_scale[indices]

    def __call__(
        self,
        h: mx.array,
        mask: Any,
        turn: Rotation,
        *,
        kv: KV | None = None,
        view: Any = None,
        i: int = 0,
        extra: mx.array | None = None,
    ) -> tuple[mx.array, KV]:
        """h [L, H] -> [L, H] and the K/V of the layer; ``extra`` [L, P] is the per-layer input."""
        s = self._source
        attended, kv = self.attention(s.input_layernorm(h), mask, turn, kv, view, i)
        h = h + s.post_attention_layernorm(attended)
        h = h + self._feed_forward(h)
        if extra is not None and self._extra_gate is not None and self._extra_out is not None:
            h = h + s.post_per_layer_input_norm(self._extra_out(gelu(self._extra_gate(h)) * extra))
        return h * s.layer_scalar, kv


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
