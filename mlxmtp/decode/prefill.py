"""Chunked prefill: chunks of many rows, outside the compiled round."""

from collections.abc import Callable, Sequence

import mlx.core as mx

from mlxmtp.models.chunks import chunk_rows
from mlxmtp.models.kv_cache import KVCache, PromptView
from mlxmtp.models.target import Target

OnRows = Callable[[int], None]


def read_prompt(
    target: Target,
    cache: KVCache,
    tokens: Sequence[int],
    start: int,
    on_written: OnRows = lambda _: None,
    on_read: OnRows = lambda _: None,
    chunk: int | None = None,
) -> mx.array:
    """Read ``tokens[start:]`` into ``cache`` and return the post-norm hidden state [1, H] of the last one.

    A chunk (``chunk`` rows; None: as many as the memory for activations allows) is sent to the device while the one
    before it runs. ``on_written(n)``: n positions are in the cache from now on. ``on_read(n)``: they have been
    computed. What either raises ends the reading there.
    """
    hidden, running, begin = None, mx.array(0), start
    while begin < len(tokens):
        end = min(begin + (chunk or chunk_rows(target.config, begin, target.dtype.size)), len(tokens))
        part = mx.array(list(tokens[begin:end]), mx.int32)
        cache.newest = max(cache.newest, end - 1)  # before the first write: Ctrl-C may come between two layers
        view = PromptView(target.cache_spec, cache.buffers, begin, len(part))
        hidden = target.hidden(part, view, last_only=True)
        done = view.buffers[-1][0, 0, 0, :1] + 0  # the sum is a copy: the buffers stay without a second reference
        cache.buffers = view.buffers
        del view
        on_written(end)
        for layer in [*cache.buffers, done]:
            mx.async_eval(layer)
            mx.eval(running)
            running = layer
        if begin > start:
            on_read(begin)
        begin = end
    assert hidden is not None, "a prompt has at least one unread token"
    mx.eval(hidden, cache.buffers)
    on_read(len(tokens))
    return hidden
