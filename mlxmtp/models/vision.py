"""Soft tokens of a picture: the tower of E2B, E4B, 26B and 31B, and the patch embedder of 12B.

Formulas: transformers ``models/gemma4/modeling_gemma4.py`` and ``models/gemma4_unified/modeling_gemma4_unified.py``.
Pictures are not padded, and every token of one sees all others, so there is no mask.
"""

import mlx.core as mx

from mlxmtp.models import device
from mlxmtp.models.linear import Linear, Weights, gelu
from mlxmtp.models.towers import VISION_SCORES, VisionConfig

_LAYER_NORM_EPS = 1e-5  # PyTorch's default, which the configuration does not name; RMS norms have its 1e-6
_FUSED_HEADS = (64, 72, 80, 128)  # of MLX's attention on Metal, 72 from 0.32.2 on; others are filled up with zeros


def patches(pixels: mx.array, side: int) -> mx.array:
    """pixels [H, W, 3] -> [rows x columns, side * side * 3], inside a patch by row, column, channel."""
    height, width, channels = pixels.shape
    grid = pixels.reshape(height // side, side, width // side, side, channels)
    return grid.transpose(0, 2, 1, 3, 4).reshape(-1, side * side * channels)


class PatchEmbedder:
    """The 12B's way: patches of 48 x 48 pixels, two norms, one product and positions."""

    def __init__(self, weights: Weights, config: VisionConfig) -> None:
        self.config = config
        inner = weights.below("vision_embedder")
        self._norms = {
            name: (inner.vector(f"{name}.weight"), inner.vector(f"{name}.bias"))
            for name in ("patch_ln1", "patch_ln2", "pos_norm")
        }
        self._bias = inner.vector("patch_dense.bias")
        self._dense = Linear(inner.matrix("patch_dense"))
        self._positions = inner.vector("pos_embedding")
        self._project = Linear(weights.matrix("embed_vision.embedding_projection"))

    def __call__(self, pixels: mx.array) -> mx.array:
        """Return soft tokens [S, H] of ``pixels`` [height, width, 3], uint8, whose sides patches divide."""
        rows, columns = _grid(pixels, self.config.side, self.config.positions)
        x = (patches(pixels, self.config.side).astype(mx.float32) / 255).astype(self._bias.dtype)
        x = self._norm(self._dense(self._norm(x, "patch_ln1")) + self._bias, "patch_ln2")
        at = self._positions[:columns, 0][None] + self._positions[:rows, 1][:, None]  # [rows, columns, hidden]
        x = self._norm(x + at.reshape(x.shape), "pos_norm")
        return self._project(mx.fast.rms_norm(x, None, self.config.eps))

    def _norm(self, x: mx.array, name: str) -> mx.array:
        return mx.fast.layer_norm(x, *self._norms[name], _LAYER_NORM_EPS)


class VisionTower:
    """A transformer over patches of 16 x 16 pixels, of which 3 x 3 make a soft token."""

    def __init__(self, weights: Weights, config: VisionConfig) -> None:
        self.config = config
        inner = weights.below("vision_tower")
        self._embed = Linear(inner.matrix("patch_embedder.input_proj"))
        self._positions = inner.vector("patch_embedder.position_embedding_table")
        self.layers = [_Layer(inner.below(f"encoder.layers.{i}"), config) for i in range(config.layers)]
        self._standard = None
        if config.standardize:
            self._standard = inner.vector("std_bias"), inner.vector("std_scale")
        self._project = Linear(weights.matrix("embed_vision.embedding_projection"))
        pairs = config.head_dim // 4
        self._speeds = mx.array([config.theta ** (-i / pairs) for i in range(pairs)], mx.float32)

    def __call__(self, pixels: mx.array) -> mx.array:
        """Return soft tokens [S, H] of ``pixels`` [height, width, 3], uint8, whose sides soft tokens divide."""
        config = self.config
        rows, columns = _grid(pixels, config.patch, config.positions)
        x = 2 * (patches(pixels, config.patch).astype(mx.float32) / 255 - 0.5)
        at = self._positions[0, :columns][None] + self._positions[1, :rows][:, None]
        h = self._embed(x.astype(at.dtype)) + at.reshape(-1, config.hidden)
        turn = self._turn(rows, columns, h.dtype)
        for layer in self.layers:
            h = layer(h, turn)
            mx.eval(h)  # one layer's activations at a time, and Ctrl-C between two layers
        pool = config.pooling
        grid = h.reshape(rows // pool, pool, columns // pool, pool, config.hidden).astype(mx.float32)
        pooled = grid.mean(axis=(1, 3)).reshape(-1, config.hidden).astype(h.dtype)
        y = pooled.astype(mx.float32) * config.hidden**0.5  # beyond float16's range: cast when it is standardized
        if self._standard is not None:
            bias, scale = self._standard
            y = (y - bias.astype(mx.float32)) * scale.astype(mx.float32)
        return self._project(mx.fast.rms_norm(y.astype(h.dtype), None, config.eps))

    def _turn(self, rows: int, columns: int, dtype: mx.Dtype) -> tuple[mx.array, mx.array]:
        """Return cos and sin [P, 2, D/4]: the first half of a head is turned by the column, the second by the row."""
        x = mx.broadcast_to(mx.arange(columns)[None], (rows, columns))
        y = mx.broadcast_to(mx.arange(rows)[:, None], (rows, columns))
        places = mx.stack([x, y], axis=-1).reshape(-1, 2, 1).astype(mx.float32)
        angles = places * self._speeds
        return mx.cos(angles).astype(dtype), mx.sin(angles).astype(dtype)


class _Layer:
    """Sandwich norms around attention of all patches to all and a gated MLP."""

    def __init__(self, weights: Weights, config: VisionConfig) -> None:
        self._config = config
        names = ("input", "post_attention", "pre_feedforward", "post_feedforward")
        self._norms = [weights.vector(f"{name}_layernorm.weight") for name in names]
        self._projections = {
            name.rpartition(".")[2]: Clipped(weights.below(name), clipped=config.clipped)
            for name in (*(f"self_attn.{part}_proj" for part in "qkvo"), *(f"mlp.{part}_proj" for part in _GATED))
        }
        self._head_norms = [weights.vector(f"self_attn.{name}_norm.weight") for name in "qk"]

    def __call__(self, h: mx.array, turn: tuple[mx.array, mx.array]) -> mx.array:
        """h [P, hidden] -> the same."""
        before_attention, after_attention, before_mlp, after_mlp = self._norms
        h = h + self._norm(self._attend(self._norm(h, before_attention), turn), after_attention)
        x, apply = self._norm(h, before_mlp), self._projections
        return h + self._norm(apply["down_proj"](gelu(apply["gate_proj"](x)) * apply["up_proj"](x)), after_mlp)

    def _attend(self, x: mx.array, turn: tuple[mx.array, mx.array]) -> mx.array:
        count, dim = x.shape[0], self._config.head_dim

        def heads(name: str, weight: mx.array | None) -> mx.array:
            states = self._projections[name](x).reshape(count, self._config.heads, dim)
            return mx.fast.rms_norm(states, weight, self._config.eps).transpose(1, 0, 2)[None]

        queries = _turned(heads("q_proj", self._head_norms[0]), turn)
        keys = _turned(heads("k_proj", self._head_norms[1]), turn)
        y = _attention(queries, keys, heads("v_proj", None))
        return self._projections["o_proj"](y[0].transpose(1, 0, 2).reshape(count, -1))

    def _norm(self, x: mx.array, weight: mx.array) -> mx.array:
        return mx.fast.rms_norm(x, weight, self._config.eps)


_GATED = ("gate", "up", "down")


class Clipped:
    """A product whose input and output are held between bounds; E2B's and E4B's towers have them, others not."""

    def __init__(self, weights: Weights, *, clipped: bool) -> None:
        self._linear = Linear(weights.matrix("linear"))
        self._bounds = None
        if clipped:
            self._bounds = [weights.vector(f"{end}_{bound}") for end in ("input", "output") for bound in ("min", "max")]

    def __call__(self, x: mx.array) -> mx.array:
        """x [L, in] -> [L, out]."""
        if self._bounds is None:
            return self._linear(x)
        low, high, below, above = self._bounds
        return mx.clip(self._linear(mx.clip(x, low, high)), below, above)


def _grid(pixels: mx.array, side: int, positions: int) -> tuple[int, int]:
    """Return rows and columns of patches, for which the checkpoint must have positions."""
    rows, columns = pixels.shape[0] // side, pixels.shape[1] // side
    assert max(rows, columns) <= positions, "Media.prepare has refused it"
    return rows, columns


def _turned(states: mx.array, turn: tuple[mx.array, mx.array]) -> mx.array:
    """states [1, heads, P, D] turned by ``turn`` [P, 2, D/4] each: rotate-half within each half of a head."""
    cos, sin = turn
    a, b = mx.split(states.reshape(*states.shape[:3], 2, 2, -1), 2, axis=4)
    a, b = a.squeeze(4), b.squeeze(4)  # [1, heads, P, 2, D/4]
    return mx.stack([a * cos - b * sin, b * cos + a * sin], axis=4).reshape(states.shape)


def _attention(queries: mx.array, keys: mx.array, values: mx.array) -> mx.array:
    """[1, heads, P, D] each -> the same; Gemma 4 does not scale its scores."""
    _, heads, count, dim = queries.shape
    if not device.on_cpu() and dim <= max(_FUSED_HEADS):
        wide = next(size for size in _FUSED_HEADS if size >= dim)
        padded = [mx.pad(x, [(0, 0), (0, 0), (0, 0), (0, wide - dim)]) for x in (queries, keys, values)]
        return mx.fast.scaled_dot_product_attention(*padded, scale=1.0)[..., :dim]
    rows = max(1, VISION_SCORES // (4 * heads * count))
    parts = [
        mx.fast.scaled_dot_product_attention(queries[:, :, start : start + rows], keys, values, scale=1.0)
        for start in range(0, count, rows)
    ]
    return mx.concatenate(parts, axis=2)
