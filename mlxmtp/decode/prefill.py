"""Chunked prefill: chunks of many rows, outside the compiled round.

Rows of a picture or a sound have negative ids, made of its content, so that equal ids mean equal rows wherever prompts
are compared. `SoftTokens` says what is read there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx

from mlxmtp.models.chunks import chunk_rows
from mlxmtp.models.kv_cache import KVCache, PromptView
from mlxmtp.models.target import Target

OnRows = Callable[[int], None]


@dataclass(frozen=True, slots=True, eq=False)
class SoftTokens:
    """Rows [count, H] from position ``start`` on, computed when they are read. ``block``: they see each other."""

    start: int
    count: int
    rows: Callable[[], mx.array]
    block: bool = False

    @property
    def end(self) -> int:
        return self.start + self.count


def block_start(tokens: Sequence[int], place: int) -> int:
    """Return ``place``, or where the picture or sound begins inside which it lies: none of them is read in part."""
    if 0 < place < len(tokens) and tokens[place] < 0:
        while place > 0 and tokens[place - 1] < 0:
            place -= 1
    return place


def read_prompt(
    target: Target,
    cache: KVCache,
    tokens: Sequence[int],
    start: int,
    on_written: OnRows = lambda _: None,
    on_read: OnRows = lambda _: None,
    chunk: int | None = None,
    media: Sequence[SoftTokens] = (),
) -> mx.array:
    """Read ``tokens[start:]`` into ``cache`` and return the post-norm hidden state [1, H] of the last one.

    A chunk (``chunk`` rows; None: as many as the memory for activations allows) is sent to the device while the one
    before it runs. ``on_written(n)``: n positions are in the cache from now on. ``on_read(n)``: they have been
    computed. What either raises ends the reading there.
    """
    hidden, running, begin = None, mx.array(0), start
    while begin < len(tokens):
        end = min(begin + (chunk or chunk_rows(target.config, begin, target.dtype.size)), len(tokens))
        end = _uncut(begin, end, media)
        here = [one for one in media if one.start < end and one.end > begin]
        part = mx.array([max(token, 0) for token in tokens[begin:end]], mx.int32)
        embeddings = _with_media(target.embed(part), begin, here) if here else None
        blocks = [(one.start - begin, one.end - begin) for one in here if one.block]
        cache.newest = max(cache.newest, end - 1)  # before the first write: Ctrl-C may come between two layers
        view = PromptView(target.cache_spec, cache.buffers, begin, len(part), blocks)
        hidden = target.hidden(part, view, last_only=True, embeddings=embeddings)
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


def _uncut(begin: int, end: int, media: Sequence[SoftTokens]) -> int:
    """Return the end of a chunk that cuts no block: before it, or where the chunk begins with it, behind it."""
    cut = next((one for one in media if one.block and one.start < end < one.end), None)
    if cut is None:
        return end
    return cut.start if cut.start > begin else cut.end


def _with_media(h: mx.array, begin: int, media: Sequence[SoftTokens]) -> mx.array:
    """Put the soft tokens of ``media`` into embeddings ``h`` [L, H] of positions from ``begin`` on."""
    for one in media:
        first, last = max(one.start, begin), min(one.end, begin + h.shape[0])
        h[first - begin : last - begin] = one.rows()[first - one.start : last - one.start].astype(h.dtype)
    return h
