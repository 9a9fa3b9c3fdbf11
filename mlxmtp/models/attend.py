"""softmax(q k + mask) v for the rows of a pass."""

import mlx.core as mx

from mlxmtp.models.device import on_cpu

_FEW = 16
"""Rows up to which the products are written out on a CPU; a chunk of the prompt is better off in MLX's own function."""


KV = tuple[mx.array, mx.array]
"""Keys and values, each [1, kv_heads, rows, D]."""


def halves(buffer: mx.array) -> KV:
    """Keys and values of a buffer [1, 2 kv_heads, rows, D]."""
    keys, values = mx.split(buffer, 2, axis=1)
    return keys, values


def attend(queries: mx.array, kv: KV, mask: mx.array | str) -> mx.array:
    """queries [1, L, heads, D] and the K/V they look at -> [L, heads * D]; ``mask`` [L, rows] or "causal".

    Gemma 4 does not scale its scores. On a GPU this is MLX's fused kernel. On a CPU that function is put together of a
    dozen operations, one of them a multiplication by a scale of 1. Without it, and with the heads of a group as further
    rows of one product, it takes seven; on a few rows each costs more than its arithmetic.
    """
    _, rows, heads, dim = queries.shape
    keys, values = kv
    if isinstance(mask, str) or rows > _FEW or not on_cpu():
        y = mx.fast.scaled_dot_product_attention(queries.transpose(0, 2, 1, 3), keys, values, scale=1.0, mask=mask)
        return y.transpose(0, 2, 1, 3).reshape(rows, heads * dim)
    groups = keys.shape[1]
    if groups > 1:
        queries = queries.reshape(rows, groups, heads // groups, dim).transpose(1, 0, 2, 3)
    scores = queries.reshape(1, groups, -1, dim) @ keys.swapaxes(2, 3)  # [1, groups, L * heads per group, rows]
    split = (groups, rows, heads // groups, keys.shape[2])
    weights = mx.softmax(mx.where(mask[:, None], scores.reshape(split), -mx.inf), axis=-1).reshape(scores.shape)
    y = weights @ values
    if groups > 1:
        y = y.reshape(groups, rows, -1, dim).transpose(1, 0, 2, 3)
    return y.reshape(rows, heads * dim)
