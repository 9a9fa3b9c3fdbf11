"""Reading the prompt: chunks of many rows, outside the compiled round."""

from collections.abc import Callable, Sequence

import mlx.core as mx

from mlxmtp.models.cache import KVCache, PromptView
from mlxmtp.models.target import Target

CHUNK = 512
"""Rows per chunk: enough to keep the products busy, small enough that a chunk's activations stay in the tens of MB."""


def read_prompt(
    target: Target,
    cache: KVCache,
    tokens: Sequence[int],
    start: int,
    on_rows: Callable[[int], None],
    chunk: int = CHUNK,
) -> mx.array:
    """Reads ``tokens[start:]`` into ``cache`` and returns the post-norm hidden state [1, H] of the last one.

    ``on_rows(n)`` is called after each chunk, when the first n positions are in the cache; what it raises ends the
    reading there. Only the last chunk's last row leaves the network: MLX is lazy, so what only feeds the other rows
    of the upper layers is never computed.
    """
    hidden = None
    for begin in range(start, len(tokens), chunk):
        part = mx.array(list(tokens[begin : begin + chunk]), mx.int32)
        end = begin + len(part)
        cache.newest = max(cache.newest, end - 1)  # before the first write: Ctrl-C may come between two layers
        view = PromptView(target.cache_spec, cache.buffers, begin, len(part))
        hidden = target.hidden(part, view, last_only=True)
        cache.buffers = view.buffers
        del view  # a second reference to the buffers would cost a copy
        mx.eval(cache.buffers if end < len(tokens) else [hidden, *cache.buffers])
        on_rows(end)
    assert hidden is not None, "a prompt has at least one unread token"
    return hidden
