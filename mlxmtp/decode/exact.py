"""Exact text: passes in which the bits of a row do not depend on the number of rows, so that no draft can change them.

Kernels sum in another order for one row than for several, and in 16 bits that decides between near tokens. They do not
from some number of rows on (read in MLX's source; for this network on this machine it is tried out). So where every
pass that writes keys and values or chooses a token stays within such limits, and attends to as many rows as its
position says, a text is the same bit for bit with any drafts and with none.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import mlx.core as mx

from mlxmtp.errors import LoadError
from mlxmtp.limits import EXACT_DRAFT, SLACK, STEP, Exact
from mlxmtp.models.device import on_cpu
from mlxmtp.models.kv_cache import FixedView, KVCache, aligned, grown
from mlxmtp.models.target import Target

MOST = EXACT_DRAFT + 1
"""Rows of the longest pass that is tried: up to so many, MLX's products for few rows read the weights once."""

_LEAST = 4  # rows of the longest pass below which all passes are rather padded
_FREE = 1.15  # time of the shortest pass allowed, in passes of one row: up to here exact text costs nothing
_POSITIONS = (7, 61)  # beside one behind the window
_MARGIN = 2 * MOST  # rows behind the newest position: two rounds in flight


@dataclass(frozen=True, slots=True)
class Passes:
    """Limits of passes with equal bits: at least ``fewest`` rows, the last of which are of no use, at most ``most``.

    Attention of full layers always takes ``most`` queries. ``cost``: the shortest pass in units of one over one row.
    """

    fewest: int
    most: int
    cost: float = field(default=1.0, compare=False, repr=False)

    @property
    def longest(self) -> int:
        """The most draft tokens of a round."""
        return self.most - 1

    def unused(self, rows: int) -> int:
        """Rows that a pass over ``rows`` tokens needs besides."""
        return max(self.fewest - rows, 0)


class Room(NamedTuple):
    """Buffers of ``capacity`` rows serve the positions below ``end``: a pass must not lie on both sides of it."""

    capacity: int
    end: int


def room_for(window: int, least: int, position: int) -> Room:
    """Return the room for a pass at ``position``, with ``least`` rows from the beginning of an answer on.

    Sums over keys depend on how many rows there are, empty ones included: so that depends on the position alone.
    """
    wanted = max(least, position) + _MARGIN
    capacity = aligned(max(window + SLACK, STEP))  # rings are never shorter
    while capacity < wanted:
        capacity = grown(capacity)
    return Room(capacity, capacity - _MARGIN + 1)


def find_passes(target: Target, wanted: Exact) -> Passes | None:
    """Return the passes of exact text; None where it is off. Raises LoadError where it is wanted and cannot be had.

    "auto" is on where it costs nothing on a GPU. Numbers on a CPU are float32, where near tokens are next to none.
    """
    if wanted == "off" or (wanted == "auto" and on_cpu()):
        return None
    found = probe(target)
    if wanted == "auto":
        return found if isinstance(found, Passes) and found.cost <= _FREE else None
    if isinstance(found, str):
        raise LoadError(f"Exact text cannot be had with this model on this machine: {found}. Leave --exact out.")
    return found


def probe(target: Target) -> Passes | str:
    """Return the widest limits that hold here, or why there are none; some twenty passes, nothing is compiled."""
    cache, positions = _filled(target)
    bits: list[dict[int, mx.array]] = []
    seconds: dict[int, float] = {}
    for offset in positions:
        bits.append({})
        for rows in range(1, MOST + 1):
            begin = time.perf_counter()
            bits[-1][rows] = _scores(target, cache, offset, rows, Passes(1, MOST))
            took = time.perf_counter() - begin
            if offset != positions[0]:  # the first ones build kernels
                seconds[rows] = min(took, seconds.get(rows, took))
    alike = [all(bool(mx.array_equal(one[a][0], one[b][0])) for one in bits) for a, b in pairwise(range(1, MOST + 1))]
    for passes in _candidates(alike, seconds):
        rows, same = passes.most, True
        for offset in positions:
            whole = _scores(target, cache, offset, rows, passes)  # the cache holds the keys of its first row then
            later = _scores(target, cache, offset + 1, rows, passes)
            same = same and bool(mx.array_equal(whole[1:], later[: rows - 1]))
        if same:
            return passes
    return "the last bits of its numbers depend on where a token stands in a pass"


def _candidates(alike: Sequence[bool], seconds: dict[int, float]) -> Iterator[Passes]:
    """Yield limits by worth; ``alike[i]``: passes of i + 1 and i + 2 rows have equal bits."""
    for most in range(MOST, _LEAST - 1, -1):
        for fewest in (1, 2):
            if all(alike[fewest - 1 : most - 1]):
                yield Passes(fewest, most, seconds[fewest] / seconds[1])
    for rows in range(MOST, _LEAST - 1, -1):
        yield Passes(rows, rows, seconds[rows] / seconds[1])  # by construction, if a row may stand anywhere


def _filled(target: Target) -> tuple[KVCache, list[int]]:
    """Return a cache of random keys and values, and positions in it of which the last lies behind the window."""
    spec = target.cache_spec
    cache = KVCache(spec, target.dtype)
    cache.reserve(room_for(spec.window, 0, 0).capacity)
    key = mx.random.key(3)
    for i, (heads, dim) in enumerate(zip(spec.kv_heads, spec.head_dims, strict=True)):
        key, own = mx.random.split(key)
        rows = cache.buffers[spec.places(i)[0]].shape[2]
        for place, new in spec.stored(i, mx.random.normal((1, 2 * heads, rows, dim), target.dtype, key=own)).items():
            cache.buffers[place] = new
            mx.eval(new)
    return cache, [*_POSITIONS, spec.window + _POSITIONS[0]]


def _scores(target: Target, cache: KVCache, offset: int, rows: int, passes: Passes) -> mx.array:
    """Return the logits [rows, V] of a pass at ``offset``; tokens depend on their positions."""
    tokens = mx.array([(17 * (offset + i)) % target.config.vocab_size for i in range(rows)], mx.int32)
    view = FixedView(target.cache_spec, cache.buffers, mx.array([offset], mx.int32), rows, queries=passes.most)
    logits = target.logits(target.hidden(tokens, view))
    cache.buffers = view.buffers
    mx.eval(logits, cache.buffers)
    return logits
