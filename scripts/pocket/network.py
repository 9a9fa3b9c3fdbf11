"""Gemma 4's text network for training: same parameter names and numbers as transformers'.

Written anew because the reference classes spend two thirds of a training step in elementwise
operations on this size; `check_parity.py` compares the two. One key/value head is assumed.
Weights are float32; `dtype` is what matrix products run in.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.pocket import kernels
from scripts.pocket.sizes import CENTROIDS, DRAFTER, TARGET, Sizes

KV = Mapping[str, tuple[Tensor, Tensor]]


class Soft(NamedTuple):
    """Soft tokens of pictures and sounds: `rows` [N, H], and `at` [N], where they stand among the flat positions."""

    at: Tensor
    rows: Tensor


class Norm(nn.Module):
    """Only the weight; the arithmetic is in kernels."""

    def __init__(self, dim: int, value: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((dim,), value))


def linear(into: int, out: int) -> nn.Linear:
    """Return a product without bias, its weights drawn for rows of size one."""
    layer = nn.Linear(into, out, bias=False)
    nn.init.normal_(layer.weight, std=0.7 * into**-0.5)
    return layer


def _apply(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight.to(x.dtype))


@lru_cache(maxsize=512)
def rotation(length: int, dim: int, *, sliding: bool) -> tuple[Tensor, Tensor]:
    """cos and sin [L, 1, D]. Full layers turn a quarter of the dimensions only ("proportional")."""
    theta, part = (1e4, 1.0) if sliding else (1e6, 0.25)
    turned = int(part * dim) // 2
    exponents = torch.arange(turned, dtype=torch.float32) * 2 / dim
    frequencies = torch.cat((theta**-exponents, torch.zeros(dim // 2 - turned)))
    angles = torch.arange(length, dtype=torch.float32)[:, None] * frequencies
    angles = torch.cat((angles, angles), -1)[:, None]
    return angles.cos(), angles.sin()


@lru_cache(maxsize=512)
def mask(length: int, window: int | None) -> Tensor:
    """What to add to the scores [L, 1, L]: 0 where a row may look, else -1e30."""
    row, column = torch.arange(length)[:, None], torch.arange(length)[None]
    seen = column <= row
    if window is not None:
        seen &= column > row - window
    return torch.where(seen, 0.0, -1e30)[:, None]


@lru_cache(maxsize=512)
def near_mask(length: int, window: int) -> Tensor:
    """The same for `length` rows in pieces of a window, each before the keys of its own piece and of the one before."""
    row, column = torch.arange(length)[:, None], torch.arange(2 * window)[None]
    key = row // window * window - window + column
    return torch.where((key >= 0) & (key <= row) & (key > row - window), 0.0, -1e30)[:, None]


def _pieces(states: Tensor, window: int) -> Tensor:
    """[B, L, D], L a multiple of the window -> [B * pieces, 2 * window, D]: each piece behind the one before it."""
    own = states.unflatten(1, (-1, window))
    return torch.cat((F.pad(own[:, :-1], (0, 0, 0, 0, 1, 0)), own), 2).flatten(0, 1)


class Attention(nn.Module):
    """Queries over one key/value head, own or shared."""

    def __init__(self, sizes: Sizes, layer: int) -> None:
        super().__init__()
        self.dim, self.heads = sizes.dim(layer), sizes.heads
        self.kind = sizes.layer_types[layer]
        self.window = sizes.window if sizes.sliding(layer) else None
        self.q_proj = linear(sizes.hidden, self.heads * self.dim)
        self.q_norm = Norm(self.dim)
        self.owns_kv = layer < sizes.own_kv
        if self.owns_kv:
            self.k_proj = linear(sizes.hidden, self.dim)
            self.v_proj = linear(sizes.hidden, self.dim)
            self.k_norm = Norm(self.dim)
        self.o_proj = linear(self.heads * self.dim, sizes.hidden)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Rotated keys and normed values, each [B, L, D]."""
        batch, length, _ = x.shape
        cos, sin = rotation(length, self.dim, sliding=self.window is not None)
        k = _apply(self.k_proj, x).view(batch, length, 1, self.dim)
        k = kernels.norm_rope(k, self.k_norm.weight, cos, sin)[:, :, 0]
        v = _apply(self.v_proj, x).view(batch * length, self.dim)
        return k, kernels.norm(v, torch.ones(self.dim)).view(batch, length, self.dim)

    def forward(self, x: Tensor, kv: tuple[Tensor, Tensor]) -> Tensor:
        """x: [B, L, H]; row t sees the keys 0..t (of its window)."""
        batch, length, _ = x.shape
        cos, sin = rotation(length, self.dim, sliding=self.window is not None)
        q = _apply(self.q_proj, x).view(batch, length, self.heads, self.dim)
        q = kernels.norm_rope(q, self.q_norm.weight, cos, sin)
        k, v = kv
        if self.window is not None and length > 2 * self.window:
            y = self._near(q, k, v, self.window)
        else:
            flat = (batch, length * self.heads, -1)
            scores = torch.bmm(q.view(flat), k.transpose(1, 2)).view(batch, length, self.heads, length)
            y = torch.bmm(kernels.masked_softmax(scores, mask(length, self.window)).view(flat), v)
        return _apply(self.o_proj, y.reshape(batch, length, -1))

    def _near(self, q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        """q [B, L, heads, D]; keys, values [B, L, D] -> [B, L, heads * D], without the scores of what is far away."""
        batch, length = q.shape[:2]
        more = -length % window
        q = F.pad(q, (0, 0, 0, 0, 0, more))
        k, v = (_pieces(F.pad(one, (0, 0, 0, more)), window) for one in (k, v))
        flat = (len(k), window * self.heads, -1)
        scores = torch.bmm(q.view(flat), k.transpose(1, 2)).view(batch, length + more, self.heads, 2 * window)
        weights = kernels.masked_softmax(scores, near_mask(length + more, window))
        return torch.bmm(weights.view(flat), v).view(batch, length + more, -1)[:, :length]


class Mlp(nn.Module):
    """Gated MLP."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = linear(hidden, width), linear(hidden, width)
        self.down_proj = linear(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, H]."""
        return _apply(self.down_proj, kernels.gelu_times(_apply(self.gate_proj, x), _apply(self.up_proj, x)))


class Layer(nn.Module):
    """Attention, MLP and, in a target, the layer's own embedding of the token."""

    def __init__(self, sizes: Sizes, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(sizes, layer)
        self.mlp = Mlp(sizes.hidden, sizes.mlp(layer))
        self.input_layernorm = Norm(sizes.hidden)
        self.post_attention_layernorm = Norm(sizes.hidden, 0.4)
        self.pre_feedforward_layernorm = Norm(sizes.hidden)
        self.post_feedforward_layernorm = Norm(sizes.hidden, 0.4)
        self.register_buffer("layer_scalar", torch.ones(1))
        if sizes.ple:
            self.per_layer_input_gate = linear(sizes.hidden, sizes.ple)
            self.per_layer_projection = linear(sizes.ple, sizes.hidden)
            self.post_per_layer_input_norm = Norm(sizes.hidden, 0.2)

    def forward(self, x: Tensor, ple: Tensor | None, shared: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
        """x: [B, L, H]; ple: [B*L, P]; a layer with own keys and values leaves them in `shared`."""
        shape = x.shape
        flat = x.view(-1, shape[-1])
        y = kernels.norm(flat, self.input_layernorm.weight).view(shape)
        if self.self_attn.owns_kv:
            shared[self.self_attn.kind] = self.self_attn.keys_values(y)
        y = self.self_attn(y, shared[self.self_attn.kind]).view(flat.shape)
        flat = kernels.add_norm(flat, y, self.post_attention_layernorm.weight)
        y = self.mlp(kernels.norm(flat, self.pre_feedforward_layernorm.weight))
        flat = kernels.add_norm(flat, y, self.post_feedforward_layernorm.weight)
        if ple is not None:
            y = kernels.gelu_times(_apply(self.per_layer_input_gate, flat), ple)
            y = _apply(self.per_layer_projection, y)
            flat = kernels.add_norm(flat, y, self.post_per_layer_input_norm.weight)
        return flat.view(shape)


class Target(nn.Module):
    """The text network; names match `model.language_model.*` of a published checkpoint."""

    def __init__(self, sizes: Sizes = TARGET, dtype: torch.dtype = kernels.PRODUCTS) -> None:
        super().__init__()
        self.sizes, self.dtype = sizes, dtype
        count = len(sizes.layer_types)
        self.embed_tokens = nn.Embedding(sizes.vocab, sizes.hidden)
        self.embed_tokens_per_layer = nn.Embedding(sizes.vocab, count * sizes.ple)
        nn.init.normal_(self.embed_tokens.weight, std=0.04)
        nn.init.normal_(self.embed_tokens_per_layer.weight, std=0.1)
        self.per_layer_model_projection = linear(sizes.hidden, count * sizes.ple)
        self.per_layer_projection_norm = Norm(sizes.ple)
        self.layers = nn.ModuleList(Layer(sizes, i) for i in range(count))
        self.norm = Norm(sizes.hidden)

    def embed(self, ids: Tensor) -> Tensor:
        """Scaled embeddings [B, L, H]."""
        return F.embedding(ids, self.embed_tokens.weight).to(self.dtype) * self.sizes.hidden**0.5

    def forward(self, ids: Tensor, soft: Soft | None = None) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """ids [B, L] -> hidden states after the final norm [B, L, H], keys and values of the store layers.

        Where `soft` tokens stand, `ids` has <pad>, whose row of the per-layer embeddings counts, and no other.
        """
        sizes, count = self.sizes, len(self.sizes.layer_types)
        x = self.embed(ids)
        if soft is not None:
            x = x.view(-1, sizes.hidden).index_copy(0, soft.at, soft.rows.to(x.dtype)).view(x.shape)
        context = _apply(self.per_layer_model_projection, x) * sizes.hidden**-0.5
        context = kernels.norm(context.view(-1, sizes.ple), self.per_layer_projection_norm.weight)
        own = F.embedding(ids, self.embed_tokens_per_layer.weight).to(self.dtype) * sizes.ple**0.5
        ple = (context.view(-1, count, sizes.ple) + own.view(-1, count, sizes.ple)) * 2**-0.5
        shared: dict[str, tuple[Tensor, Tensor]] = {}
        for layer, layer_ple in zip(self.layers, ple.unbind(1), strict=True):
            x = layer(x, layer_ple, shared)
        return kernels.norm(x.view(-1, sizes.hidden), self.norm.weight).view(x.shape), shared

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits before the soft cap; hidden: [N, H]."""
        return F.linear(hidden, self.embed_tokens.weight.to(hidden.dtype))


class Body(nn.Module):
    """The drafter's inner model; names match `model.*`."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(sizes.vocab, sizes.hidden)
        nn.init.normal_(self.embed_tokens.weight, std=0.04)
        self.layers = nn.ModuleList(Layer(sizes, i) for i in range(len(sizes.layer_types)))
        self.norm = Norm(sizes.hidden)


class Masked(nn.Module):
    """Centroid head: scores of the groups of tokens, and which tokens are in a group."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.centroids = linear(sizes.hidden, CENTROIDS)
        self.register_buffer("token_ordering", torch.arange(sizes.vocab))


class Drafter(nn.Module):
    """Gemma4Assistant: reads the target's keys, values and hidden state."""

    def __init__(self, backbone: int = TARGET.hidden, sizes: Sizes = DRAFTER) -> None:
        super().__init__()
        self.sizes = sizes
        self.pre_projection = linear(2 * backbone, sizes.hidden)
        self.post_projection = linear(sizes.hidden, backbone)
        self.model = Body(sizes)
        self.masked_embedding = Masked(sizes)

    def forward(self, embedded: Tensor, hidden: Tensor, shared: KV) -> tuple[Tensor, Tensor]:
        """One draft step for every row: (state before the head [B, L, H], projected state [B, L, B])."""
        x = _apply(self.pre_projection, torch.cat((embedded, hidden), -1))
        for layer in self.model.layers:
            x = layer(x, None, dict(shared))
        x = kernels.norm(x.view(-1, self.sizes.hidden), self.model.norm.weight).view(x.shape)
        return x, _apply(self.post_projection, x)
