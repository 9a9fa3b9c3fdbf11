"""Soft tokens of a sound: the conformer of E2B and E4B, and the frame embedder of 12B.

Formulas: transformers ``models/gemma4/modeling_gemma4.py`` and ``models/gemma4_unified/modeling_gemma4_unified.py``;
the architecture is the Universal Speech Model's (arXiv 2303.01037).
"""

import math

import mlx.core as mx

from mlxmtp.models.linear import Linear, Weights
from mlxmtp.models.towers import AudioConfig
from mlxmtp.models.vision import Clipped

_KEY_SCALE = math.log(1 + math.e) / math.log(2)
_LONGEST = 10_000  # timescale of positions
_MASKED = -1e9


class FrameEmbedder:
    """The 12B's way: frames of 640 samples, a norm and one product."""

    def __init__(self, weights: Weights, config: AudioConfig) -> None:
        self.config = config
        self._project = Linear(weights.matrix("embed_audio.embedding_projection"))

    def __call__(self, frames: mx.array) -> mx.array:
        """Return soft tokens [S, H] of ``frames`` [S, 640] of samples."""
        return self._project(mx.fast.rms_norm(frames, None, self.config.eps))


class AudioTower:
    """Two convolutions that make one row of four frames, and a conformer over the rows."""

    def __init__(self, weights: Weights, config: AudioConfig) -> None:
        self.config = config
        inner = weights.below("audio_tower")
        convolutions = (inner.below(f"subsample_conv_projection.layer{i}") for i in range(2))
        self._convolutions = [(one.vector("conv.weight"), one.vector("norm.weight")) for one in convolutions]
        self._enter = Linear(inner.matrix("subsample_conv_projection.input_proj_linear"))
        self.layers = [_Layer(inner.below(f"layers.{i}"), config) for i in range(config.layers)]
        self._leave, self._bias = Linear(inner.matrix("output_proj")), inner.vector("output_proj.bias")
        self._project = Linear(weights.matrix("embed_audio.embedding_projection"))

    def __call__(self, mel: mx.array) -> mx.array:
        """Return soft tokens [S, H] of ``mel`` [frames, 128], one of four frames."""
        h = self._rows(mel)
        distances = self._distances(h.dtype)
        for layer in self.layers:
            h = layer(h, distances)
            mx.eval(h)  # one layer's activations at a time, and Ctrl-C between two layers
        return self._project(mx.fast.rms_norm(self._leave(h) + self._bias, None, self.config.eps))

    def _rows(self, mel: mx.array) -> mx.array:
        x = mel[None, :, :, None]  # [1, frames, mels, channels]
        for kernel, weight in self._convolutions:
            x = mx.conv2d(x.astype(kernel.dtype), kernel, stride=2, padding=1)
            x = mx.maximum(mx.fast.layer_norm(x, weight, None, self.config.eps), 0)
        return self._enter(x.reshape(x.shape[1], -1))

    def _distances(self, dtype: mx.Dtype) -> mx.array:
        """Return sinusoids [past + 1, hidden] of how far behind a key is, the farthest first."""
        count = self.config.hidden // 2
        speeds = mx.exp(mx.arange(count) * (-math.log(_LONGEST) / max(count - 1, 1)))
        angles = mx.arange(self.config.past, -1, -1)[:, None] * speeds
        return mx.concatenate([mx.sin(angles), mx.cos(angles)], axis=-1).astype(dtype)


class _Layer:
    """Half a feed-forward step, local attention, a convolution and the other half."""

    def __init__(self, weights: Weights, config: AudioConfig) -> None:
        self._config = config
        self._before, self._after = (_FeedForward(weights.below(f"feed_forward{i}"), config) for i in (1, 2))
        self._attention = _Attention(weights.below("self_attn"), config)
        self._convolution = _Convolution(weights.below("lconv1d"), config)
        self._norms = [weights.vector(f"{name}.weight") for name in ("norm_pre_attn", "norm_post_attn", "norm_out")]

    def __call__(self, h: mx.array, distances: mx.array) -> mx.array:
        """h [S, hidden] -> the same."""
        before, after, last = self._norms
        h = self._before(h)
        h = h + _norm(self._attention(_norm(h, before, self._config), distances), after, self._config)
        return _norm(self._after(self._convolution(h)), last, self._config)


class _FeedForward:
    def __init__(self, weights: Weights, config: AudioConfig) -> None:
        self._config = config
        self._up, self._down = (Clipped(weights.below(f"ffw_layer_{i}"), clipped=config.clipped) for i in (1, 2))
        self._norms = [weights.vector(f"{name}_layer_norm.weight") for name in ("pre", "post")]

    def __call__(self, h: mx.array) -> mx.array:
        before, after = self._norms
        x = self._down(_silu(self._up(_norm(h, before, self._config))))
        return h + _norm(x, after, self._config) * self._config.residual


class _Convolution:
    """A gated unit and a causal convolution of each channel."""

    def __init__(self, weights: Weights, config: AudioConfig) -> None:
        self._config = config
        self._enter = Clipped(weights.below("linear_start"), clipped=config.clipped)
        self._leave = Clipped(weights.below("linear_end"), clipped=config.clipped)
        self._norms = [weights.vector(f"{name}.weight") for name in ("pre_layer_norm", "conv_norm")]
        self._kernel = weights.vector("depthwise_conv1d.weight")  # [hidden, kernel, 1]

    def __call__(self, h: mx.array) -> mx.array:
        before, after = self._norms
        values, gates = mx.split(self._enter(mx.fast.rms_norm(h, before, self._config.eps)), 2, axis=-1)
        x = values * mx.sigmoid(gates)
        width, padded = self._config.kernel, mx.pad(x.astype(mx.float32), [(self._config.kernel - 1, 0), (0, 0)])
        taps = (padded[i : i + len(x)] * self._kernel[:, i, 0].astype(mx.float32) for i in range(width))
        return h + self._leave(_silu(_norm(sum(taps, mx.array(0.0)).astype(h.dtype), after, self._config)))


class _Attention:
    """Each row looks at itself and at rows close behind it; computed in chunks of queries, with float32 inside."""

    def __init__(self, weights: Weights, config: AudioConfig) -> None:
        self._config = config
        self._query, self._key, self._value, self._leave = (
            Clipped(weights.below(name), clipped=config.clipped) for name in ("q_proj", "k_proj", "v_proj", "post")
        )
        self._distance = Linear(weights.matrix("relative_k_proj"))
        self._scales = weights.vector("per_dim_scale")

    def __call__(self, x: mx.array, distances: mx.array) -> mx.array:
        """x [S, hidden], distances [past + 1, hidden] -> [S, hidden]."""
        config, count = self._config, x.shape[0]
        chunk, past = config.chunk, config.past
        chunks = -(-count // chunk)
        scale = mx.logaddexp(self._scales, mx.zeros_like(self._scales)) * (config.head_dim**-0.5 / math.log(2))
        queries = self._heads(mx.pad(self._query(x), [(0, chunks * chunk - count), (0, 0)])) * scale
        queries = queries.reshape(config.heads, chunks, chunk, config.head_dim)
        # Rows that the queries of a chunk see: its own, and `past` before it.
        seen = mx.arange(chunks)[:, None] * chunk + mx.arange(chunk + past) - past  # [chunks, context]
        around = [(past, chunks * chunk - count), (0, 0)]
        keys, values = (self._heads(mx.pad(one(x), around))[:, seen + past] for one in (self._key, self._value))
        far = self._heads(self._distance(distances))[:, None]  # [heads, 1, past + 1, D]
        scores = queries @ (keys * _KEY_SCALE).swapaxes(-1, -2) + _shifted(queries @ far.swapaxes(-1, -2))
        scores = mx.tanh(scores / config.cap) * config.cap
        behind = (mx.arange(chunks * chunk).reshape(chunks, chunk, 1)) - seen[:, None]  # [chunks, chunk, context]
        visible = (behind >= 0) & (behind < past) & (seen >= 0)[:, None]
        weights = mx.softmax(mx.where(visible, scores, _MASKED), axis=-1)
        y = (weights @ values).reshape(config.heads, chunks * chunk, config.head_dim)[:, :count]
        return self._leave(y.swapaxes(0, 1).reshape(count, -1).astype(x.dtype))

    def _heads(self, x: mx.array) -> mx.array:
        """x [L, hidden] -> [heads, L, D] in float32."""
        return x.astype(mx.float32).reshape(len(x), self._config.heads, -1).swapaxes(0, 1)


def _shifted(scores: mx.array) -> mx.array:
    """scores [.., chunk, past + 1] by distance -> [.., chunk, chunk + past] by key (arXiv 1901.02860, appendix B)."""
    *outer, chunk, distances = scores.shape
    context = chunk + distances - 1
    padded = mx.pad(scores, [(0, 0)] * (scores.ndim - 1) + [(0, context + 1 - distances)])
    return padded.reshape(*outer, -1)[..., : chunk * context].reshape(*outer, chunk, context)


def _norm(x: mx.array, weight: mx.array, config: AudioConfig) -> mx.array:
    """RMS norm of ``x``, which is held within the dtype before: rare values of the tower go beyond."""
    bound = min(config.bound, float(mx.finfo(x.dtype).max))
    return mx.fast.rms_norm(mx.clip(x, -bound, bound), weight, config.eps)


def _silu(x: mx.array) -> mx.array:
    return x * mx.sigmoid(x)
