"""The elementwise parts of the network as plain functions that can be compiled.

On two CPU cores they, not the matrix products, cost most: uncompiled, one norm with its
gradient takes seven times as long. `use_compiled` swaps in fused versions; without a C++
compiler the plain ones give the same numbers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-6
_BFLOAT16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
PRODUCTS = torch.bfloat16 if _BFLOAT16 else torch.float32
"""What matrix products run in: a CPU that has no such instructions takes four to sixteen times as long in bfloat16."""


def norm(x: Tensor, weight: Tensor) -> Tensor:
    """RMS norm over the last axis, computed in float32. x: [N, D]."""
    y = x.float()
    y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + EPS)
    return (y * weight).to(x.dtype)


def add_norm(residual: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """residual + norm(x). Both [N, D]."""
    y = x.float()
    y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + EPS)
    return (residual.float() + y * weight).to(residual.dtype)


def layer_norm_relu(x: Tensor, weight: Tensor) -> Tensor:
    """Layer norm over the last axis without a bias, and what is positive of it. x: [N, D]."""
    y = x - x.mean(-1, keepdim=True)
    return F.relu(y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + EPS) * weight)


def norm_rope(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Norm of each head, then the rotation of its position. x: [B, L, H, D]; cos, sin: [L, 1, D]."""
    y = x.float()
    y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + EPS) * weight
    half = x.shape[-1] // 2
    turned = torch.cat((-y[..., half:], y[..., :half]), -1)
    return (y * cos + turned * sin).to(x.dtype)


def gelu_times(gate: Tensor, up: Tensor) -> Tensor:
    """gelu(gate) * up with the tanh approximation."""
    return F.gelu(gate, approximate="tanh") * up


def masked_softmax(scores: Tensor, bias: Tensor) -> Tensor:
    """Softmax over the last axis. scores: [B, L, H, S]; bias: [L, 1, S], 0 or -inf-like."""
    return torch.softmax(scores.float() + bias, -1).to(scores.dtype)


def capped_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood per row behind the soft cap of 30. logits: [N, V]; labels: [N]."""
    capped = torch.tanh(logits.float() / 30.0) * 30.0
    picked = capped.gather(1, labels[:, None])[:, 0]
    return torch.logsumexp(capped, -1) - picked


def soft_nll(logits: Tensor, wanted: Tensor) -> Tensor:
    """Cross-entropy per row against a distribution. Both [N, V]."""
    values = logits.float()
    return torch.logsumexp(values, -1) - (values * wanted).sum(-1)


_NAMES = ("norm", "layer_norm_relu", "add_norm", "norm_rope", "gelu_times", "masked_softmax", "capped_nll", "soft_nll")


def use_compiled() -> None:
    """Replace the functions of this module by compiled ones (about a minute, once)."""
    torch._dynamo.config.recompile_limit = 64  # one version per width, with and without gradients
    for name in _NAMES:
        globals()[name] = torch.compile(globals()[name], dynamic=True)
