"""Sampling for texts with different settings in one pass: the settings are data, only their kinds shape the trace."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx

from mlxmtp.decode.sampling import Filters, Sampling, gumbel, largest

GREEDY, FEW, WHOLE, SORTED = range(4)
"""Kinds of settings: the likeliest token; top-k up to FEW_COLUMNS; the whole vocabulary; its tokens in order."""

FEW_COLUMNS = 64  # Gemma's own top-k


class Choices(NamedTuple):
    """Settings of texts, a row each: ``key`` uint32 [B, 2], ``kind`` int32 [B], and ``filters`` float32 [B, 4] = 1 /
    temperature, top-p, top-k, log min-p. Filters that are off let everything through."""

    key: mx.array
    kind: mx.array
    filters: mx.array

    def repeated(self, times: int) -> "Choices":
        """Return every row so often, one after the other."""
        return self if times == 1 else Choices(*(mx.repeat(part, times, axis=0) for part in self))


def kind_of(filters: Filters) -> int:
    """Return the kind that settings are of."""
    temp, top_p, top_k, _ = filters
    if temp == 0:
        return GREEDY
    if 0 < top_k <= FEW_COLUMNS:
        return FEW
    return SORTED if top_k or top_p < 1 else WHOLE


def choices(samplings: Sequence[Sampling]) -> Choices:
    """Return the settings of texts as arrays."""
    filters = [
        (
            1 / temp if temp else 1.0,
            top_p if top_p < 1 else math.inf,
            float(top_k) or math.inf,
            math.log(min_p) if min_p else -math.inf,
        )
        for temp, top_p, top_k, min_p in (one.filters for one in samplings)
    ]
    kinds = [kind_of(one.filters) for one in samplings]
    return Choices(mx.stack([one.key() for one in samplings]), mx.array(kinds, mx.int32), mx.array(filters))


def choose_each(
    logits: mx.array,
    rows: Choices,
    positions: mx.array,
    kinds: Sequence[int],
    ids: mx.array | None = None,
) -> mx.array:
    """Tokens [L] int32 for ``logits`` [L, C] at ``positions`` [L], each by its own row of settings, as ``choose`` has
    them; ``kinds`` are all that occur. ``ids`` [C] or [L, C] are the tokens' ids (None: 0 .. C - 1)."""
    found = None
    for kind in sorted(kinds):
        one = _greedy(logits, ids) if kind == GREEDY else _sampled(logits, rows, positions, kind, ids)
        found = one if found is None else mx.where(rows.kind == kind, one, found)
    assert found is not None, "there is a kind for every text"
    return found


def _greedy(logits: mx.array, ids: mx.array | None) -> mx.array:
    best = mx.argmax(logits, axis=-1, keepdims=True)
    return (best if ids is None else _taken(ids, best))[:, 0].astype(mx.int32)


def _sampled(logits: mx.array, rows: Choices, positions: mx.array, kind: int, ids: mx.array | None) -> mx.array:
    inverse, top_p, top_k, log_min_p = mx.split(rows.filters, 4, axis=1)  # [L, 1] each
    scores = logits * inverse
    columns = mx.arange(logits.shape[-1])[None] if ids is None else ids if ids.ndim == 2 else ids[None]
    if kind != WHOLE:
        size = scores.shape[-1]
        order = largest(scores, min(FEW_COLUMNS, size) if kind == FEW else size)
        scores = mx.take_along_axis(scores, order, axis=-1)
        columns = order if ids is None else _taken(ids, order)
        scores = mx.where(mx.arange(order.shape[1]) < top_k, scores, -mx.inf)
        before = mx.cumsum(mx.softmax(scores, axis=-1), axis=-1, inclusive=False)
        scores = mx.where(before < top_p, scores, -mx.inf)
    scores = mx.where(scores >= scores.max(axis=-1, keepdims=True) + log_min_p, scores, -mx.inf)
    best = mx.argmax(scores + gumbel(rows.key, positions, columns), axis=-1, keepdims=True)
    return mx.take_along_axis(mx.broadcast_to(columns, scores.shape), best, axis=-1)[:, 0].astype(mx.int32)


def _taken(ids: mx.array, columns: mx.array) -> mx.array:
    """Return the ids [L, k] in ``columns`` [L, k] of ``ids`` [C] or [L, C]."""
    return ids[columns] if ids.ndim == 1 else mx.take_along_axis(ids, columns, axis=-1)
