"""One decoder layer of Gemma 4, target's or drafter's, with as few operations as the formula allows."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import mlx.core as mx

from mlxmtp.models import device, metal
from mlxmtp.models.config import ModelConfig
from mlxmtp.models.fused import add_norm, choose_experts, chooses, usable
from mlxmtp.models.kv_quant import QuantizedRows, Rows, dequantized, scores, weighted_sum
from mlxmtp.models.linear import Linear, Matrix, Weights, gelu, join, softmax

KV = tuple[Rows, Rows]
"""Keys and values, each [slots, kv_heads, rows, D] or quantized; one slot for each text of the pass."""

_FEW = 16
"""Rows up to which the products are written out on a CPU; a chunk of the prompt is better off in MLX's own function."""

_SORTED, _SORTED_PER_EXPERT = 64, 4
"""From so many pairs of row and expert on they are sorted by expert, so that the weights of each are read once.

MLX's kernel for sorted quantized pairs on Metal takes over at four for each expert: before that, sorting is lost."""

_QUARTER = 2**30
_FINER = 12
"""Bits of a speed below 2^-32 turns; their product with a position must stay below 2^32."""


class Rotation(NamedTuple):
    """[cos, sin] and [-sin, cos] [1, L, heads or 1, 2, D/2] of the positions of a pass, for one kind of layer."""

    first: mx.array
    second: mx.array

    def last(self) -> "Rotation":
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
        # [heads, 1, 1, D/2]: in 2^-32 turns, and the bits below
        self._coarse = mx.array([[[[speed >> _FINER for speed in head]]] for head in by_head], mx.uint32)
        self._fine = mx.array([[[[speed & (2**_FINER - 1) for speed in head]]] for head in by_head], mx.uint32)
        # All four parts are cosines, a quarter of a turn apart: one kernel, and nothing to put together.
        self._quarters = mx.array([[0, 3 * _QUARTER], [_QUARTER, 0]], mx.uint32)[..., None]
        mx.eval(self._coarse, self._fine, self._quarters)

    def at(self, positions: mx.array) -> Rotation:
        """The rotation at ``positions`` [L], below 2^20."""
        p = positions.astype(mx.uint32)[None, :, None, None, None, None]
        turns = p * self._coarse + ((p * self._fine) >> _FINER) + self._quarters  # modulo one turn
        angles = turns.astype(mx.int32).astype(mx.float32) * (math.tau / 2**32)  # -pi .. pi
        first, second = mx.split(mx.cos(angles), 2, axis=3)
        return Rotation(first.squeeze(3), second.squeeze(3))


class View(Protocol):
    """The K/V buffers as a pass sees them, see ``kv_cache.py``."""

    positions: mx.array  # [L]
    masks: dict[str, Any]
    unused: int  # of the last rows, nobody reads so many

    def update(self, i: int, rows: mx.array) -> Rows: ...


class Residual(NamedTuple):
    """Values [L, H] that go from layer to layer, and normed as the next one reads them."""

    values: mx.array
    normed: mx.array

    def last(self) -> "Residual":
        return Residual(self.values[-1:], self.normed[-1:])


class Layer:
    """One decoder layer, number ``i`` of the network of ``config``; ``own``: it has keys and values of its own."""

    def __init__(self, weights: Weights, config: ModelConfig, i: int, *, own: bool) -> None:
        self.kind = config.layer_types[i]
        self.attention = Attention(weights.below("self_attn"), config, self.kind, own=own)
        self._i, self._eps = i, config.eps
        norms = ("input", "post_attention", "pre_feedforward", "post_feedforward")
        self._norms = [weights.vector(f"{name}_layernorm.weight") for name in norms]
        self._gate_up = Linear(weights.matrix("mlp.gate_proj"), weights.matrix("mlp.up_proj"))
        self._down = Linear(weights.matrix("mlp.down_proj"))
        has = {} if config.is_drafter else config.text
        self._experts = _Sparse(weights, config) if has.get("enable_moe_block") else None
        self._extra = None
        if has.get("hidden_size_per_layer_input"):
            self._extra = (
                Linear(weights.matrix("per_layer_input_gate")),
                Linear(weights.matrix("per_layer_projection")),
                weights.vector("post_per_layer_input_norm.weight"),
            )
        # A vector: mx.compile writes constants of one element into a kernel's source, a library for every layer.
        self._scalar = mx.contiguous(mx.broadcast_to(weights.vector("layer_scalar"), (config.hidden_size,)))
        usable(self._scalar.dtype, config.hidden_size, config.eps)  # tried out now, not inside of a trace

    def __call__(
        self,
        state: Residual,
        following: mx.array,
        mask: Any,
        turn: Rotation,
        *,
        kv: KV | None = None,
        view: View | None = None,
        extra: mx.array | None = None,
    ) -> tuple[Residual, KV]:
        """Return the next state and the K/V it attended to: ``kv`` where given, else its own, written through ``view``.

        ``following`` [H] is the weight of the norm that comes next, ``extra`` [L, P] the per-layer input.
        """
        _, after_attention, before_mlp, after_mlp = self._norms
        attended, kv = self.attention(state.normed, mask, turn, kv, view, self._i)
        before = (before_mlp, *(self._experts.norms if self._experts is not None else ()))
        h, (normed, *for_experts) = add_norm(state.values, attended, after_attention, self._eps, following=before)
        gate, up = mx.split(self._gate_up(normed), 2, axis=-1)
        dense = self._down(gelu(gate) * up)
        if self._experts is not None:
            dense = self._experts(for_experts, dense, 0 if view is None else view.unused)
        last: dict[str, Any] = {"scale": self._scalar, "following": (following,)}
        if extra is not None and self._extra is not None:
            h, _ = add_norm(h, dense, after_mlp, self._eps)
            narrow, widen, after_mlp = self._extra
            dense = widen(gelu(narrow(h)) * extra)
        h, (normed,) = add_norm(h, dense, after_mlp, self._eps, **last)
        return Residual(h, normed), kv

    @property
    def first_norm(self) -> mx.array:
        """The weight of the norm before the layer."""
        return self._norms[0]


def begin(h: mx.array, layers: Sequence[Layer], eps: float) -> Residual:
    """Return the state before the first of ``layers``."""
    return Residual(h, mx.fast.rms_norm(h, layers[0].first_norm, eps))


def following_norms(layers: Sequence[Layer], last: mx.array) -> list[mx.array]:
    """Return the weight of the norm behind each layer; ``last`` is that of the network's own."""
    return [*(layer.first_norm for layer in layers[1:]), last]


class Attention:
    """Attention of one layer of ``kind``; ``own``: it has keys and values of its own.

    q-norm, k-norm and v-norm are one RMS norm; their weights, the rotation of q and k and the cast are one elementwise
    expression with one result, which ``mx.compile`` turns into one kernel:

        a (v [cos, sin]) + b (w [-sin, cos])      [a, b] = states / rms(states), [v, w] = the norm's weight

    with v = w = 1, cos = 1, sin = 0 for the value heads. An expression for each half of a head would be a kernel, a
    cast and a copy, twice.
    """

    def __init__(self, weights: Weights, config: ModelConfig, kind: str, *, own: bool) -> None:
        self.heads, self.head_dim = config.heads, config.head_dim(kind)
        self.kv_heads = config.kv_heads(kind) if own else 0
        self._eps, self._k_is_v = config.eps, own and config.k_is_v(kind)
        names = ["q_proj"] + ["k_proj"] * own + ["v_proj"] * (own and not self._k_is_v)
        self._project = Linear(*(weights.matrix(name) for name in names))
        self._out = Linear(weights.matrix("o_proj"))
        q_norm = weights.vector("q_norm.weight")
        norms = [mx.broadcast_to(q_norm, (self.heads, self.head_dim))]
        if own:
            norms.append(mx.broadcast_to(weights.vector("k_norm.weight"), (self.kv_heads, self.head_dim)))
            norms.append(mx.ones((self.kv_heads, self.head_dim), q_norm.dtype))
        halved = mx.concatenate(norms).astype(mx.float32).reshape(-1, 2, self.head_dim // 2)
        self._norms = mx.split(halved, 2, axis=1)  # [heads, 1, D/2] each

    def __call__(
        self, x: mx.array, mask: Any, turn: Rotation, kv: KV | None, view: View | None, i: int
    ) -> tuple[mx.array, KV]:
        """x [L, H] -> [L, H], and the K/V it attended to: ``kv`` where given, else its own, those of layer ``i``.

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
            assert view is not None, "a layer with K/V of its own writes them"
            kv = halves(view.update(i, own.transpose(0, 2, 1, 3)))
        return self._out(attend(queries, kv, mask)), kv


def halves(rows: Rows) -> KV:
    """Split ``rows`` [1, 2 kv_heads, rows, D] into keys and values."""
    if isinstance(rows, QuantizedRows):
        return rows.halves()
    keys, values = mx.split(rows, 2, axis=1)
    return keys, values


def attend(queries: mx.array, kv: KV, mask: mx.array | str) -> mx.array:
    """queries [1, L, heads, D] and the K/V they look at -> [L, heads * D]; ``mask`` [L, rows] or "causal".

    Keys and values of several slots take the queries of one after the other, ``mask`` is [slots, L / slots, rows] then.
    A mask for more rows than there are queries has the last of them computed more than once (`FixedView`).
    Gemma 4 does not scale its scores. A chunk of the prompt, which dequantizes what is quantized, takes MLX's function,
    and so does a round on a GPU that has a kernel for it. Elsewhere that function would read keys and values once for
    every head of a group, and on a CPU be a dozen operations: here heads and rows of a group are the rows of one
    product. On a CPU they are its columns: K q^T takes OpenBLAS half as long as q K^T.
    """
    if not isinstance(mask, str) and (more := mask.shape[-2] - queries.shape[1]) > 0:
        last = mx.broadcast_to(queries[:, -1:], (1, more, *queries.shape[2:]))
        return attend(mx.concatenate([queries, last], axis=1), kv, mask)[:-more]
    _, all_rows, heads, dim = queries.shape
    keys, values = kv
    slots, groups = (keys.values if isinstance(keys, QuantizedRows) else keys).shape[:2]
    rows, each = all_rows // slots, heads // groups
    if not isinstance(mask, str) and mask.ndim == 3:
        mask = mask[:, None]  # [slots, 1, L, keys]
    many = isinstance(mask, str) or rows > _FEW
    if many:
        keys, values = dequantized(keys), dequantized(values)
    # Metal's kernel for few rows knows one stride for slots and heads: MLX would copy halves of several slots for it.
    in_place = slots == 1 or groups == 1
    fused = many or (in_place and not device.on_cpu() and metal.has_kernel(rows, each, dim))
    if fused and isinstance(keys, mx.array) and isinstance(values, mx.array):
        by_slot = queries.reshape(slots, rows, heads, dim).transpose(0, 2, 1, 3)
        y = mx.fast.scaled_dot_product_attention(by_slot, keys, values, scale=1.0, mask=mask)
        return y.transpose(0, 2, 1, 3).reshape(all_rows, heads * dim)
    assert not isinstance(mask, str), "many rows are dequantized"
    if groups > 1:
        queries = queries.reshape(slots, rows, groups, each, dim).transpose(0, 2, 1, 3, 4)
    queries = queries.reshape(slots, groups, -1, dim)
    if isinstance(keys, QuantizedRows) or not device.on_cpu():
        products = scores(queries, keys)  # [slots, groups, L * heads per group, keys]
        seen = mx.where(mask[..., None, :], products.reshape(slots, groups, rows, each, -1), -mx.inf)
        y = weighted_sum(mx.softmax(seen, axis=-1, precise=True).reshape(products.shape), values)
    else:
        products = dequantized(keys) @ queries.swapaxes(2, 3)  # [slots, groups, keys, L * heads per group]
        by_key = mask.swapaxes(-1, -2)[..., None]
        seen = mx.where(by_key, products.reshape(slots, groups, -1, rows, each), -mx.inf)
        y = softmax(seen, axis=2).reshape(products.shape).swapaxes(2, 3) @ dequantized(values)
    if groups > 1:
        y = y.reshape(slots, groups, rows, -1, dim).transpose(0, 2, 1, 3, 4)
    return y.reshape(all_rows, heads * dim)


class _Sparse:
    """The experts beside the dense MLP of a layer, each path with its norm."""

    def __init__(self, weights: Weights, config: ModelConfig) -> None:
        self._eps, self._k = config.eps, int(config.text["top_k_experts"])
        self._after_dense, before, self._after = (
            weights.vector(f"{name}.weight")
            for name in ("post_feedforward_layernorm_1", "pre_feedforward_layernorm_2", "post_feedforward_layernorm_2")
        )
        self._router = weights.matrix("router.proj")
        self.norms = weights.vector("router.scale") * config.hidden_size**-0.5, before
        """Of what the router reads, and the experts."""
        self._expert_scale = weights.vector("router.per_expert_scale")
        chooses(self._expert_scale.dtype, len(self._expert_scale), self._k)  # tried out now, not inside of a trace
        glu = weights.below("experts.switch_glu")
        self._experts = Experts(*(glu.matrix(name) for name in ("gate_proj", "up_proj", "down_proj")))

    def __call__(self, rows: Sequence[mx.array], dense: mx.array, unused: int) -> mx.array:
        """Rows [L, H] by each of ``norms``, and the dense MLP's result [L, H] -> [L, H]; weights are a softmax over the
        k highest scores.

        The last ``unused`` rows go through no expert, whose weights would be read for nothing.
        """
        routed, normed = rows
        scores = self._router.project(routed)
        indices, weights = choose_experts(scores, self._k, self._expert_scale)
        used = len(normed) - unused
        sparse = self._experts(normed[:used], indices[:used], weights[:used])
        if unused:
            sparse = mx.concatenate([sparse, normed[used:]])
        return add_norm(dense, sparse, self._after, self._eps, before=self._after_dense)[0]


class Experts:
    """Gated MLPs with weights [experts, out, in], of which each row goes through some."""

    def __init__(self, gate: Matrix, up: Matrix, down: Matrix) -> None:
        self._gate_up, self._down = join(gate, up), down
        grouped = down.quantization is not None and not device.on_cpu()
        self.sorted_from = max(_SORTED, _SORTED_PER_EXPERT * down.arrays[0].shape[0]) if grouped else _SORTED

    def __call__(self, x: mx.array, indices: mx.array, weights: mx.array) -> mx.array:
        """x [L, H], its experts and their weights [L, k] -> [L, H]."""
        rows, k = indices.shape
        pairs = rows * k
        experts = indices.reshape(pairs)
        if pairs < self.sorted_from:
            y = self._mlp(x[:, None], experts, [row for row in range(rows) for _ in range(k)])
        else:
            order = mx.argsort(experts)
            y = self._mlp(x[order // k][:, None], experts[order], None)[mx.argsort(order)]
        return (weights[..., None] * y.reshape(rows, k, -1)).sum(1)

    def _mlp(self, x: mx.array, experts: mx.array, rows: Sequence[int] | None) -> mx.array:
        """x [R, 1, H] -> [pairs, 1, H]: row ``rows[i]`` through ``experts[i]``; without rows the pairs are sorted, a
        row of ``x`` for each."""
        parts = [module.gathered(x, experts, rows) for module in self._gate_up]
        gate, up = mx.split(parts[0], 2, axis=-1) if len(parts) == 1 else parts
        return self._down.gathered(gelu(gate) * up, experts, None if rows is None else range(len(rows)))
