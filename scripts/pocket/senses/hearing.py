"""The audio tower of E2B's kind for training: parameters have the published names, numbers are the product's.

Formulas as in `mlxmtp/models/audio.py`. Sounds of a batch are filled up behind; no row
looks ahead, so that changes nothing.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.pocket import kernels
from scripts.pocket.network import Norm, linear
from scripts.pocket.senses.vision import Clippable
from scripts.pocket.sizes import HEARING, MELS, TARGET, HearingSizes

_KEY_SCALE = math.log(1 + math.e) / math.log(2)


def rows_of(frames: int) -> int:
    """Return the soft tokens of that many frames."""
    return ((frames + 1) // 2 + 1) // 2


class _Convolution(nn.Module):
    """3 x 3, step 2: a product with all nine taps at once, or with unfolded windows where there is one channel.

    Both are several times as fast as torch's own on a CPU.
    """

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Module()
        self.conv.weight = nn.Parameter(torch.randn(channels, inputs, 3, 3) * 0.7 / (9 * inputs) ** 0.5)
        self.norm = Norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, M, C] -> [B, T/2, M/2, channels], rounded up."""
        channels, inputs = self.conv.weight.shape[:2]
        padded = F.pad(x, (0, 0, 1, 1, 1, 1))
        if inputs == 1:
            y = F.linear(padded.unfold(1, 3, 2).unfold(2, 3, 2).flatten(3), self.conv.weight.flatten(1))
        else:
            length, width = (x.shape[1] + 1) // 2, (x.shape[2] + 1) // 2
            taps = F.linear(padded, self.conv.weight.permute(2, 3, 0, 1).reshape(-1, inputs)).unflatten(-1, (3, 3, -1))
            y = sum(
                taps[:, i : i + 2 * length - 1 : 2, j : j + 2 * width - 1 : 2, i, j] for i in range(3) for j in range(3)
            )
        return kernels.layer_norm_relu(y.reshape(-1, channels), self.norm.weight).view(y.shape)


class _FeedForward(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.pre_layer_norm, self.post_layer_norm = Norm(hidden), Norm(hidden)
        self.ffw_layer_1, self.ffw_layer_2 = Clippable(hidden, 4 * hidden), Clippable(4 * hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        y = self.ffw_layer_2(F.silu(self.ffw_layer_1(_normed(x, self.pre_layer_norm))))
        return x + 0.5 * _normed(y, self.post_layer_norm)


class _Attention(nn.Module):
    """Each row looks at itself and at the rows close behind it."""

    def __init__(self, sizes: HearingSizes) -> None:
        super().__init__()
        hidden = sizes.hidden
        self.heads, self.dim, self.past = sizes.heads, hidden // sizes.heads, sizes.past
        self.q_proj, self.k_proj, self.v_proj, self.post = (Clippable(hidden, hidden) for _ in range(4))
        self.relative_k_proj = linear(hidden, hidden)
        self.per_dim_scale = nn.Parameter(torch.zeros(self.dim))
        count = hidden // 2
        speeds = torch.exp(torch.arange(count) * (-math.log(1e4) / max(count - 1, 1)))
        angles = torch.arange(self.past)[:, None] * speeds
        self.register_buffer("distances", torch.cat((angles.sin(), angles.cos()), -1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, S, hidden] -> the same."""
        length = x.shape[1]
        scale = F.softplus(self.per_dim_scale) * (self.dim**-0.5 / math.log(2))
        queries = self._split(self.q_proj(x)) * scale
        keys, values = self._split(self.k_proj(x)) * _KEY_SCALE, self._split(self.v_proj(x))
        far = self._split(F.linear(self.distances, self.relative_k_proj.weight)[None])  # [1, heads, past, D]
        behind = torch.arange(length)[:, None] - torch.arange(length)[None]
        near = behind.clamp(0, self.past - 1).expand(len(x), self.heads, -1, -1)
        scores = queries @ keys.transpose(-1, -2) + (queries @ far.transpose(-1, -2)).gather(-1, near)
        scores = torch.tanh(scores / 50) * 50
        scores = scores.masked_fill((behind < 0) | (behind >= self.past), -1e9)
        y = torch.softmax(scores, -1) @ values
        return self.post(y.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, self.dim)).transpose(1, 2)


class _Depthwise(nn.Module):
    """A gated unit and a causal convolution of each channel."""

    def __init__(self, sizes: HearingSizes) -> None:
        super().__init__()
        hidden, self.width = sizes.hidden, sizes.kernel
        self.pre_layer_norm, self.conv_norm = Norm(hidden), Norm(hidden)
        self.linear_start, self.linear_end = Clippable(hidden, 2 * hidden), Clippable(hidden, hidden)
        self.depthwise_conv1d = nn.Module()
        self.depthwise_conv1d.weight = nn.Parameter(torch.randn(hidden, 1, self.width) * 0.4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.glu(self.linear_start(_normed(x, self.pre_layer_norm)))
        y = F.pad(y, (0, 0, self.width - 1, 0))
        length, kernel = x.shape[1], self.depthwise_conv1d.weight
        y = sum(y[:, i : i + length] * kernel[:, 0, i] for i in range(self.width))
        return x + self.linear_end(F.silu(_normed(y, self.conv_norm)))


class _Layer(nn.Module):
    def __init__(self, sizes: HearingSizes) -> None:
        super().__init__()
        self.feed_forward1, self.feed_forward2 = _FeedForward(sizes.hidden), _FeedForward(sizes.hidden)
        self.self_attn, self.lconv1d = _Attention(sizes), _Depthwise(sizes)
        self.norm_pre_attn, self.norm_post_attn, self.norm_out = (Norm(sizes.hidden) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, S, hidden] -> the same."""
        x = self.feed_forward1(x)
        x = x + _normed(self.self_attn(_normed(x, self.norm_pre_attn)), self.norm_post_attn)
        return _normed(self.feed_forward2(self.lconv1d(x)), self.norm_out)


class _Subsample(nn.Module):
    def __init__(self, sizes: HearingSizes) -> None:
        super().__init__()
        first, second = sizes.channels
        self.layer0, self.layer1 = _Convolution(1, first), _Convolution(first, second)
        self.input_proj_linear = linear(MELS // 4 * second, sizes.hidden)

    def forward(self, mel: Tensor, frames: Tensor) -> Tensor:
        """mel [B, T, 128] with `frames` [B] frames each -> [B, T/4, hidden]."""
        x = mel[..., None] * _inside(mel.shape[1], frames)[..., None, None]
        for layer in (self.layer0, self.layer1):
            frames = (frames + 1) // 2
            x = layer(x)
            x = x * _inside(x.shape[1], frames)[..., None, None]  # alone, a sound has zeros behind it
        return F.linear(x.flatten(2), self.input_proj_linear.weight)


def _inside(length: int, frames: Tensor) -> Tensor:
    return (torch.arange(length)[None] < frames[:, None]).float()


class _Tower(nn.Module):
    def __init__(self, sizes: HearingSizes) -> None:
        super().__init__()
        self.subsample_conv_projection = _Subsample(sizes)
        self.layers = nn.ModuleList(_Layer(sizes) for _ in range(sizes.layers))
        self.output_proj = nn.Linear(sizes.hidden, sizes.out)


class Hearing(nn.Module):
    """Tower and projector; names match `model.*` of a published checkpoint."""

    def __init__(self, sizes: HearingSizes = HEARING) -> None:
        super().__init__()
        self.audio_tower = _Tower(sizes)
        self.embed_audio = nn.Module()
        self.embed_audio.embedding_projection = linear(sizes.out, TARGET.hidden)

    def forward(self, mel: Tensor, frames: Tensor) -> Tensor:
        """mel [B, T, 128] with `frames` [B] frames each -> soft tokens [B, T/4, H]."""
        x = self.audio_tower.subsample_conv_projection(mel, frames)
        for layer in self.audio_tower.layers:
            x = layer(x)
        x = self.audio_tower.output_proj(x)
        x = kernels.norm(x.reshape(-1, x.shape[-1]), torch.ones(x.shape[-1])).view(x.shape)
        return F.linear(x, self.embed_audio.embedding_projection.weight)


def _normed(x: Tensor, norm: Norm) -> Tensor:
    return kernels.norm(x.reshape(-1, x.shape[-1]), norm.weight).view(x.shape)
