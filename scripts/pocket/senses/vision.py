"""The vision tower of E2B's kind for training: parameters have the published names, numbers are the product's.

Formulas as in `mlxmtp/models/vision.py`. Bounds of clipped products are written when it is published, so wide that
nothing is clipped.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from scripts.pocket import kernels
from scripts.pocket.network import Norm, linear
from scripts.pocket.sizes import TARGET, VISION, VisionSizes


def patches(pixels: NDArray[np.uint8]) -> Tensor:
    """pixels [H, W, 3] -> patches [P, 768] between -1 and 1."""
    height, width, _ = pixels.shape
    grid = torch.from_numpy(pixels.copy()).view(height // 16, 16, width // 16, 16, 3)
    return 2 * (grid.permute(0, 2, 1, 3, 4).reshape(-1, 768).float() / 255 - 0.5)


@lru_cache(maxsize=64)
def _turn(rows: int, columns: int, dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Return cos and sin [P, 1, 2, D/4]: halves of a head are turned by column and by row."""
    pairs = dim // 4
    speeds = theta ** (-torch.arange(pairs) / pairs)
    x = torch.arange(columns).repeat(rows)
    y = torch.arange(rows).repeat_interleave(columns)
    angles = torch.stack((x, y), -1)[:, None, :, None] * speeds
    return angles.cos(), angles.sin()


def _turned(states: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """states [B, P, heads, D]."""
    cos, sin = turn
    a, b = states.unflatten(-1, (2, 2, -1)).unbind(-2)
    return torch.stack((a * cos - b * sin, b * cos + a * sin), -2).flatten(-3)


class Clippable(nn.Module):
    """A product by its published name."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.linear = linear(into, out)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.linear.weight)


class _Attention(nn.Module):
    def __init__(self, sizes: VisionSizes) -> None:
        super().__init__()
        self.heads, self.dim = sizes.heads, sizes.hidden // sizes.heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (Clippable(sizes.hidden, sizes.hidden) for _ in range(4))
        self.q_norm, self.k_norm = Norm(self.dim), Norm(self.dim)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        """x [B, P, hidden] -> the same; scores are not scaled."""
        shape = (*x.shape[:2], self.heads, self.dim)
        queries = _turned(_normed(self.q_proj(x).view(shape), self.q_norm.weight), turn)
        keys = _turned(_normed(self.k_proj(x).view(shape), self.k_norm.weight), turn)
        values = _normed(self.v_proj(x).view(shape), torch.ones(self.dim))
        heads = (states.transpose(1, 2) for states in (queries, keys, values))
        y = F.scaled_dot_product_attention(*heads, scale=1.0)
        return self.o_proj(y.transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = Clippable(hidden, width), Clippable(hidden, width)
        self.down_proj = Clippable(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(kernels.gelu_times(self.gate_proj(x), self.up_proj(x)))


class _Layer(nn.Module):
    def __init__(self, sizes: VisionSizes) -> None:
        super().__init__()
        self.self_attn, self.mlp = _Attention(sizes), _Mlp(sizes.hidden, sizes.inner)
        self.input_layernorm, self.pre_feedforward_layernorm = Norm(sizes.hidden), Norm(sizes.hidden)
        self.post_attention_layernorm, self.post_feedforward_layernorm = (
            Norm(sizes.hidden, 0.5),
            Norm(sizes.hidden, 0.5),
        )

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        """x [B, P, hidden] -> the same."""
        y = self.self_attn(_normed(x, self.input_layernorm.weight), turn)
        x = x + _normed(y, self.post_attention_layernorm.weight)
        y = self.mlp(_normed(x, self.pre_feedforward_layernorm.weight))
        return x + _normed(y, self.post_feedforward_layernorm.weight)


class _Tower(nn.Module):
    def __init__(self, sizes: VisionSizes) -> None:
        super().__init__()
        self.patch_embedder = nn.Module()
        self.patch_embedder.input_proj = linear(768, sizes.hidden)
        table = torch.randn(2, sizes.positions, sizes.hidden) * 0.02
        self.patch_embedder.position_embedding_table = nn.Parameter(table)
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(_Layer(sizes) for _ in range(sizes.layers))


class Vision(nn.Module):
    """Tower and projector; names match `model.*` of a published checkpoint."""

    def __init__(self, sizes: VisionSizes = VISION) -> None:
        super().__init__()
        self.sizes = sizes
        self.vision_tower = _Tower(sizes)
        self.embed_vision = nn.Module()
        self.embed_vision.embedding_projection = linear(sizes.hidden, TARGET.hidden)

    def forward(self, pieces: Tensor, rows: int, columns: int) -> Tensor:
        """pieces [B, P, 768] of rows x columns patches -> soft tokens [B, S, H]."""
        sizes, embedder = self.sizes, self.vision_tower.patch_embedder
        table = embedder.position_embedding_table
        at = (table[0, :columns][None] + table[1, :rows][:, None]).reshape(-1, sizes.hidden)
        x = F.linear(pieces, embedder.input_proj.weight) + at
        turn = _turn(rows, columns, sizes.hidden // sizes.heads, sizes.theta)
        for layer in self.vision_tower.encoder.layers:
            x = layer(x, turn)
        pooled = x.view(len(x), rows // 3, 3, columns // 3, 3, -1).mean((2, 4)).flatten(1, 2) * sizes.hidden**0.5
        weight = self.embed_vision.embedding_projection.weight
        return F.linear(_normed(pooled, torch.ones(sizes.hidden)), weight)


def _normed(x: Tensor, weight: Tensor) -> Tensor:
    return kernels.norm(x.reshape(-1, x.shape[-1]), weight).view(x.shape)
