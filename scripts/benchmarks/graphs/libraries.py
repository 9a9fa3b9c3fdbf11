"""Count the kernel libraries that the rounds of a pair need on a GPU: one for every distinct graph that MLX fuses.

    .venv/bin/python -m scripts.benchmarks.graphs.libraries e2b          # needs g++; about a minute

Metal builds each when it is first used, and the first rounds of a new model wait for that. The graphs are those that
MLX's CPU backend fuses where norms, attention and dequantizing are one operation, as they are on Metal. It writes every
one into a file below TMPDIR; a graph has the same name with other strides, and another one with other constants.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx

from mlxmtp.decode.compile import Rounds
from mlxmtp.decode.draft_length import LENGTHS
from mlxmtp.decode.round import State
from mlxmtp.models.kv_cache import KVCache
from scripts.benchmarks.graphs.launches import as_on_a_gpu
from scripts.benchmarks.graphs.narrow import WIDTH, Pair, build

GREEDY, SAMPLED = (0.0, 1.0, 0, 0.0), (1.0, 0.95, 64, 0.0)
_LAYOUT = re.compile(r"_(contiguous|strided_\w+)$")  # of arguments: further functions of the same library on Metal


def evaluate_rounds(pair: Pair, lengths: Sequence[int]) -> None:
    """Run a round of every length, greedy and sampled."""
    cache = KVCache(pair.target.cache_spec, pair.target.dtype)
    cache.reserve(1)
    rounds = Rounds(pair.target, pair.drafter, "always")
    for filters in (GREEDY, SAMPLED):
        for k in lengths:
            state = State(mx.zeros((1,), mx.int32), mx.zeros((1, WIDTH), pair.target.dtype), mx.ones((1,), mx.int32))
            function, _ = rounds.get(k, filters)
            mx.eval(function(state, cache.buffers, mx.zeros((2,), mx.uint32)))


def libraries() -> set[str]:
    """Return the graphs that have been built below TMPDIR."""
    files = Path(tempfile.gettempdir()).glob("mlx/*/cpu/*.cpp")
    return {_LAYOUT.sub("", file.stem) for file in files}


def main() -> None:
    """Count for one family, in a folder of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", help="e2b, e4b, 12b, 26b or 31b")
    parser.add_argument("--lengths", nargs="+", type=int, default=list(LENGTHS), metavar="K")
    parser.add_argument("--layers", type=int, help="only so many of its layers; what is there is counted as well")
    chosen = parser.parse_args()
    pair = build(chosen.family, chosen.layers)
    with as_on_a_gpu():
        setattr(mx, "dequantize", _dequantized)  # noqa: B010  (this process ends with it)
        setattr(mx, "gather_mm", _gathered)  # noqa: B010  (a CPU has none for 16 bits)
        evaluate_rounds(pair, chosen.lengths)
    print(len(libraries()))


def _dequantized(values: mx.array, scales: mx.array, *_: mx.array, group_size: int, **__: object) -> mx.array:
    """Zeros of the right shape by an operation that nothing is fused with."""
    shape = (*values.shape[:-1], scales.shape[-1] * group_size)
    return mx.depends([mx.zeros(shape, scales.dtype)], [values])[0]


def _gathered(x: mx.array, weights: mx.array, *, rhs_indices: mx.array, **__: object) -> mx.array:
    """Zeros of the right shape, likewise."""
    shape = (rhs_indices.size, x.shape[-2], weights.shape[-1])
    return mx.depends([mx.zeros(shape, x.dtype)], [x, weights, rhs_indices])[0]


if __name__ == "__main__":
    main()
