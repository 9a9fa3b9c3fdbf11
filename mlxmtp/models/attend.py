"""softmax(q k + mask) v for the rows of a pass."""

import mlx.core as mx

from mlxmtp.models.device import on_cpu
from mlxmtp.models.packed import Packed, Rows, mixed, scores, unpacked
from mlxmtp.models.softmax import softmax

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
