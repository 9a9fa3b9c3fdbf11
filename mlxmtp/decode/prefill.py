"""Chunked prefill: chunks of many rows, outside the compiled round.

Rows of a picture or a sound have negative ids, made of its content, so that equal ids mean equal rows wherever prompts
are compared. `SoftTokens` says what is read there.
"""

from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar, cast

import mlx.core as mx

from mlxmtp.errors import ContextOverflow, LoadError
from mlxmtp.models.chunks import chunk_rows
from mlxmtp.models.config import ModelConfig
from mlxmtp.models.kv_cache import KVCache, PromptView
from mlxmtp.models.target import Target

T = TypeVar("T")
OnRows = Callable[[int], None]


class Beginning(NamedTuple):
    """A prompt that was read: the token after it, the hidden state [1, H] that predicted that, keys and values."""

    token: int
    hidden: mx.array
    cache: KVCache


def checked_prompt(
    config: ModelConfig, prompt_ids: Sequence[int], max_tokens: int, media: Sequence["SoftTokens"] = ()
) -> tuple[list[int], int]:
    """Return a prompt as a list and how many tokens may follow it.

    Raises ValueError for an empty one, strange tokens or no tokens wanted, ContextOverflow without room for an answer.
    """
    prompt, limit = list(prompt_ids), config.max_positions - len(prompt_ids)
    if not prompt or max_tokens < 1:
        raise ValueError("a prompt needs at least one token and an answer room for one")
    soft = {place for one in media for place in range(one.start, one.end)}
    known = min(prompt) >= 0 or all(place in soft for place, token in enumerate(prompt) if token < 0)
    if not known or max(prompt) >= config.vocab_size:
        raise ValueError(f"prompt ids must lie in 0 .. {config.vocab_size - 1}")
    if limit < 1:
        told = f"The prompt has {len(prompt)} tokens, the model takes {config.max_positions}"
        raise ContextOverflow(f"{told}: shorten it.")
    return prompt, min(max_tokens, limit)


def first_logits(target: Target, hidden: mx.array) -> mx.array:
    """Return the logits [1, V] of a prompt's last state. Raises LoadError for infinities, NaN and mere zeros."""
    logits = target.logits(hidden)
    if not (mx.isfinite(logits.sum()) & mx.isfinite(hidden).all() & mx.any(hidden != 0)).item():
        said = f"The network in {target.config.folder} computes no numbers: weights are damaged, or overflow."
        raise LoadError(f"{said} Pull it again, which checks every file, or take another checkpoint.")
    return logits


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
    """Return ``place``, or where the image or audio begins inside which it lies: none of them is read in part."""
    if 0 < place < len(tokens) and tokens[place] < 0:
        while place > 0 and tokens[place - 1] < 0:
            place -= 1
    return place


def marks_of(prompt: Sequence[int], places: Collection[int]) -> list[int]:
    """Return where snapshots are to be taken in a prompt: at ``places``, or before what is read as a whole there."""
    return sorted({block_start(prompt, min(place, len(prompt))) for place in places} - {0})


def read_prompt(target: Target, cache: KVCache, tokens: Sequence[int], start: int) -> mx.array:
    """Read ``tokens[start:]`` into ``cache`` and return the post-norm hidden state [1, H] of the last one."""
    return drained(read_in_chunks(target, cache, tokens, start))


def drained(reading: Generator[int, None, T]) -> T:
    """Read to the end without a pause and return the result."""
    while True:
        try:
            next(reading)
        except StopIteration as over:
            return cast("T", over.value)


def read_in_chunks(
    target: Target,
    cache: KVCache,
    tokens: Sequence[int],
    start: int,
    on_written: OnRows = lambda _: None,
    on_read: OnRows = lambda _: None,
    chunk: Callable[[], int | None] = lambda: None,
    media: Sequence[SoftTokens] = (),
) -> Generator[int, None, mx.array]:
    """Do what ``read_prompt`` does, with a pause after every chunk: yield the number of tokens sent to the device.

    A chunk (``chunk()`` rows, asked for each; None: as many as the memory for activations allows) is sent to the device
    while the one before it runs. ``on_written(n)``: n positions are in the cache from now on. ``on_read(n)``: they have
    been computed; called after every layer, so what it raises ends the reading within one. The layers of its chunk that
    are left then are computed when somebody goes on from there, and only then.
    """
    hidden, running, begin = None, mx.array(0), start
    while begin < len(tokens):
        end = _chunk_end(target, begin, len(tokens), chunk(), media)
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
            on_read(begin)
        begin = end
        yield end
    assert hidden is not None, "a prompt has at least one unread token"
    mx.eval(hidden, cache.buffers)
    on_read(len(tokens))
    return hidden


def _chunk_end(target: Target, begin: int, end: int, rows: int | None, media: Sequence[SoftTokens]) -> int:
    """Return where a chunk ends that begins at ``begin``: after ``rows``, or as many as the memory allows."""
    left = end - begin
    while True:
        wanted = min(rows or chunk_rows(target.config, begin, target.dtype.size, left), end - begin)
        uncut = _uncut(begin, begin + wanted, media)
        if rows or uncut - begin >= wanted or left < end - begin:
            return uncut
        left = uncut - begin  # cut before a picture: a shorter chunk may keep scores that the longer one does not


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
