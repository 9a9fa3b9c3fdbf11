"""The traced functions: a compiled round of ours, and a compiled pass over mlx-lm's own layers."""

from __future__ import annotations

from collections import Counter
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from mlxmtp.decode.round import State, make_parts
from mlxmtp.decode.sampling import Filters
from mlxmtp.models.kv_cache import FixedView, KVCache
from mlxmtp.models.layer import halves
from scripts.benchmarks.graphs.launches import Count, count
from scripts.benchmarks.graphs.narrow import WIDTH, Pair

_ROWS = 1024  # capacity: more than a ring holds
_AT = 700  # position of the bonus token


def count_round(pair: Pair, k: int, filters: Filters) -> Count:
    """A round with `k` draft tokens, part by part, as `mlxmtp.decode` compiles it."""
    (bonus, hidden, offset), buffers = _begin(pair)
    parts, key = make_parts(pair.target, pair.drafter, filters, compiled=True), mx.zeros((2,), mx.uint32)

    def check() -> list[mx.array]:
        after, written, report, *_ = parts.check(mx.zeros((k + 1,), mx.int32), offset, buffers, key)
        return [report, *after, *written]

    total = count(check, k + 1)
    if not k:
        return total
    context = parts.begin(buffers, offset)
    mx.eval(context)
    begin = count(lambda: [one for _, one in tree_flatten(parts.begin(buffers, offset))], 1)
    step = count(lambda: list(parts.draft(bonus, hidden, offset, buffers, context, key)), 1)
    joined = Counter({"Concatenate": k + 1, "Add": 1})  # tokens to check, positions
    for name in ("nodes", "launches"):
        counter = getattr(total, name)
        for one in [getattr(begin, name), *[getattr(step, name)] * k, joined]:
            counter.update(one)
    return total


def count_stock_pass(pair: Pair) -> Count:
    """A greedy pass over one token through mlx-lm's layers, compiled, with K/V buffers of ours."""
    state, buffers = _begin(pair)

    def step(token: mx.array, offset: mx.array, held: list[mx.array]) -> tuple[mx.array, list[mx.array]]:
        view = FixedView(pair.target.cache_spec, held, offset, 1)
        logits = pair.stock(token[None], cache=[_StockCache(view, i) for i in range(len(held))])
        return mx.argmax(logits[0], axis=-1), view.buffers

    def run() -> list[mx.array]:
        chosen, written = mx.compile(step)(state.bonus, state.offset, buffers)
        return [chosen, *written]

    return count(run, 1)


def _begin(pair: Pair) -> tuple[State, list[mx.array]]:
    cache = KVCache(pair.target.cache_spec, pair.target.dtype)
    cache.reserve(_ROWS)
    state = State(mx.zeros((1,), mx.int32), mx.zeros((1, WIDTH), pair.target.dtype), mx.full((1,), _AT, mx.int32))
    mx.eval(state, cache.buffers)
    return state, cache.buffers


class _StockCache:
    """What mlx-lm's layers ask of a cache, over one of our buffers."""

    def __init__(self, view: FixedView, i: int) -> None:
        self._view, self._i = view, i
        self.offset = view.positions

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        return halves(self._view.update(self._i, mx.concatenate([keys, values], axis=1)))

    def make_mask(self, *_: Any, window_size: int | None = None, **__: Any) -> mx.array:
        kind = "full_attention" if window_size is None else "sliding_attention"
        return self._view.masks[kind]
