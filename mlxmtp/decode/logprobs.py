"""Likelihood of tokens by the model's own distribution: before temperature, filters, penalties and constraints."""

from collections.abc import Sequence
from typing import NamedTuple, cast

import mlx.core as mx

from mlxmtp.decode.sampling import largest

_LEAST = -9999.0  # for tokens that a model never writes: JSON has no infinity


class Logprob(NamedTuple):
    """The natural logarithm of a token's probability, and the likeliest tokens of its place with theirs."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def logprobs(logits: mx.array, tokens: Sequence[int], top: int) -> tuple[Logprob, ...]:
    """Return those of ``tokens``, which the leading rows of ``logits`` [L, V] predicted, each with the ``top`` best."""
    rows = logits[: len(tokens)].astype(mx.float32)
    rows = mx.maximum(rows - mx.logsumexp(rows, axis=-1, keepdims=True), _LEAST)
    own = mx.take_along_axis(rows, mx.array([*tokens], mx.int32)[:, None], axis=-1)[:, 0]
    best = largest(rows, min(top, rows.shape[-1])) if top else mx.zeros((len(tokens), 0), mx.int32)
    values = mx.take_along_axis(rows, best, axis=-1)
    mx.eval(own, best, values)
    chosen = cast("list[float]", own.tolist())
    others = zip(cast("list[list[int]]", best.tolist()), cast("list[list[float]]", values.tolist()), strict=True)
    tops = (tuple(zip(ids, numbers, strict=True)) for ids, numbers in others)
    return tuple(Logprob(*one) for one in zip(tokens, chosen, tops, strict=True))
