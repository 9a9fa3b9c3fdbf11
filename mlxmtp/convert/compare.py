"""How far a conversion's target has moved from its source: both read one text, and their logits are compared.

The two are in memory one after the other, never together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from mlxmtp.errors import LoadError
from mlxmtp.models.kv_cache import KVCache, PromptView
from mlxmtp.models.load import load_drafter, load_target

_ROWS = 16  # positions compared at a time: a row of the full vocabulary is a megabyte


@dataclass(frozen=True, slots=True)
class Agreement:
    """Mean divergence KL(source || result) in nats and the share of positions with the same likeliest token."""

    kl: float
    top1: float
    tokens: int


def compare(source: Path, result: Path, ids: Sequence[int]) -> Agreement:
    """Reads ``ids`` with the targets in both folders, and loads the result's drafter where it has one.

    Raises LoadError if the result cannot be used.
    """
    wanted = text_logits(source, ids)
    mx.clear_cache()  # what the source took is free for the result
    got = text_logits(result, ids, drafter=result / "drafter")
    if not mx.isfinite(got).all().item():
        raise LoadError(f"The conversion in {result} computes values that are no numbers. Choose other --q-* flags.")
    divergence, same = 0.0, 0
    for start in range(0, len(ids), _ROWS):
        rows = slice(start, start + _ROWS)
        p, q = (logits[rows] - mx.logsumexp(logits[rows], axis=-1, keepdims=True) for logits in (wanted, got))
        divergence += float(mx.sum(mx.exp(p) * (p - q)))
        same += int(mx.sum(mx.argmax(p, axis=-1) == mx.argmax(q, axis=-1)))
    return Agreement(max(0.0, divergence / len(ids)), same / len(ids), len(ids))


def text_logits(folder: Path, ids: Sequence[int], *, drafter: Path | None = None) -> mx.array:
    """Logits [L, V] in float32 of ``ids`` [L]. ``drafter``, where there is one, is loaded to see that it can be."""
    network = load_target(folder)
    if drafter is not None and (drafter / "config.json").is_file():
        load_drafter(drafter, network)
    cache = KVCache(network.cache_spec, network.dtype)
    cache.reserve(len(ids))
    view = PromptView(network.cache_spec, cache.buffers, 0, len(ids))
    logits = network.logits(network.hidden(mx.array(list(ids)), view))
    mx.eval(logits)
    return logits
