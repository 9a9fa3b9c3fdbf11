"""Choosing tokens: noise keyed by seed, position and token, so that drafting cannot change a sampled text."""

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from mlxmtp.decode.penalties import Penalties
from mlxmtp.limits import SAMPLING

Filters = tuple[float, float, int, float]  # temperature, top-p, top-k and min-p
_COLDEST = 1e-30  # below, a logit divided by it leaves float32, and only the likeliest token is left anyway
NEAR = 0.25
"""Distance of two logits below which the last bits of 16-bit numbers may decide."""

_SORT_BLOCK = 128  # tokens per block in `largest`


@dataclass(frozen=True, slots=True)
class Sampling:
    """Settings of sampling. ``temp`` 0 is greedy; ``top_k`` 0, ``top_p`` 1 and ``min_p`` 0 switch a filter off.

    ``penalties`` come first, then, in the order of transformers, temperature, top-k, top-p, min-p. Raises ValueError
    out of range.
    """

    temp: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    penalties: Penalties = Penalties()  # noqa: RUF009  (frozen)

    def __post_init__(self) -> None:
        for name, allowed in SAMPLING.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name} must be {allowed}, not {value}")

    @property
    def greedy(self) -> bool:
        return self.temp < _COLDEST

    @property
    def filters(self) -> Filters:
        """The settings that shape the traced computation; the seed is data."""
        return (0.0, 1.0, 0, 0.0) if self.greedy else (self.temp, self.top_p, self.top_k, self.min_p)

    def key(self) -> mx.array:
        """The seed as two unrelated words, uint32 [2]: hashed, so that seeds 1 and 2 share no noise."""
        digest = hashlib.blake2b(int(self.seed).to_bytes(8, "little"), digest_size=8).digest()
        return mx.array([int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")], mx.uint32)


def _mix(x: mx.array) -> mx.array:
    """A bijective 32-bit hash (Chris Wellons' lowbias32, public domain): every input bit flips half the output."""
    x = (x ^ (x >> 16)) * mx.array(0x7FEB352D, mx.uint32)
    x = (x ^ (x >> 15)) * mx.array(0x846CA68B, mx.uint32)
    return x ^ (x >> 16)


def gumbel(key: mx.array, positions: mx.array, ids: mx.array) -> mx.array:
    """Noise for token ``ids`` [.., C] at ``positions`` [L] (broadcast to [L, C]): float32, standard Gumbel.

    ``key`` is [2], or [L, 2] for rows of several texts.

    ``-log(-log1p(-u))``: with the usual ``-log(-log(u))``, float32 gives +inf once in 2^25 draws, that is every
    hundred tokens with this vocabulary.
    """
    row = _mix(positions.astype(mx.uint32) ^ key[..., 0])[:, None]
    bits = _mix(_mix(ids.astype(mx.uint32) ^ row) + key[..., 1:])
    u = (bits.astype(mx.float32) + 0.5) * 2.0**-32
    return -mx.log(-mx.log1p(-u))


def largest(values: mx.array, k: int) -> mx.array:
    """Indices [L, k] of the k largest of ``values`` [L, V] in descending order.

    Over a large vocabulary in two steps, because a full partition is the slowest thing in a round: the k largest
    lie in the k blocks with the largest maxima.
    """
    rows, size = values.shape
    if size % _SORT_BLOCK == 0 and size >= 4 * k * _SORT_BLOCK:
        blocks = values.reshape(rows, -1, _SORT_BLOCK)
        best = mx.argpartition(-blocks.max(axis=-1), k - 1, axis=-1)[:, :k]  # [L, k]
        columns = (best[:, :, None] * _SORT_BLOCK + mx.arange(_SORT_BLOCK)).reshape(rows, -1)
        inner = mx.take_along_axis(blocks, best[:, :, None], axis=1).reshape(rows, -1)
        return mx.take_along_axis(columns, largest(inner, k), axis=-1)
    found = (
        mx.argpartition(-values, k - 1, axis=-1)[:, :k] if k < size else mx.broadcast_to(mx.arange(size), values.shape)
    )
    order = mx.argsort(-mx.take_along_axis(values, found, axis=-1), axis=-1)
    return mx.take_along_axis(found, order, axis=-1)


def choose(
    logits: mx.array,
    key: mx.array,
    positions: mx.array,
    filters: Filters,
    ids: mx.array | None = None,
) -> mx.array:
    """Tokens [L] for ``logits`` [L, C] at ``positions`` [L]; ``ids`` [C] are the tokens' ids (None: 0 .. C - 1).

    The token at position p is the argmax over v of log P(v) + g(seed, p, v), g = -log(-log(u)), u uniform in (0, 1):
    exactly a draw from P (the Gumbel-max trick; Maddison, Tarlow, Minka, "A* Sampling", 2014).
    """
    if filters[0] == 0:
        best = mx.argmax(logits, axis=-1)
        return best if ids is None else ids[best]
    scores, columns = _noisy(logits, key, positions, filters, ids)
    best = mx.argmax(scores, axis=-1, keepdims=True)
    return mx.take_along_axis(mx.broadcast_to(columns, scores.shape), best, axis=-1)[:, 0]


def near_ties(logits: mx.array, key: mx.array, positions: mx.array, filters: Filters) -> mx.array:
    """Return how many of the rows of ``logits`` [L, V] have a second token within NEAR of the one that is chosen."""
    temp = filters[0]
    scores = logits if temp == 0 else _noisy(logits, key, positions, filters, None)[0]
    near = scores >= scores.max(axis=-1, keepdims=True) - NEAR / (temp or 1.0)
    return (near.sum(axis=-1) > 1).sum()


def _noisy(
    logits: mx.array, key: mx.array, positions: mx.array, filters: Filters, ids: mx.array | None
) -> tuple[mx.array, Any]:
    """Return the scores [L, C] of which the largest is chosen, and the tokens' ids, [L, C] or [1, C]."""
    temp, top_p, top_k, min_p = filters
    scores = logits * (1 / temp)
    columns: Any = mx.arange(logits.shape[-1])[None] if ids is None else ids[None]  # [1, C], later [L, k]
    if top_k or top_p < 1:
        found = largest(scores, min(top_k, scores.shape[-1]) if top_k else scores.shape[-1])
        scores = mx.take_along_axis(scores, found, axis=-1)
        columns = found if ids is None else ids[found]
    if top_p < 1:  # scores descend: keep a token while less than top_p lies before it
        p = mx.softmax(scores, axis=-1)
        before = mx.cumsum(p, axis=-1, inclusive=False)
        scores = mx.where(before < top_p, scores, -mx.inf)
    if min_p > 0:
        scores = mx.where(scores >= scores.max(axis=-1, keepdims=True) + math.log(min_p), scores, -mx.inf)
    return scores + gumbel(key, positions, columns), columns
