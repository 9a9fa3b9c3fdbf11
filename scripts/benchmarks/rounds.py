"""Measure what rounds cost after short and long texts in the full shapes of a published pair, with random weights.

    .venv/bin/python -m scripts.benchmarks.rounds --write docs/benchmarks.md

The built-in pair is so small that after 16,000 tokens a pass reads more keys and values than weights, which is not so
for any Gemma. Here widths, layers, heads and the drafter are E2B's (`--model` for others), so weights, keys and values
have their real proportions. What is written is random, and so are the keys and values: rounds of a fixed shape take as
long. Only the table of per-layer inputs, of which a round reads a row for each token, is one row for all of them.

Weights are float32 on a CPU, bfloat16 elsewhere: E2B needs 11 GB of memory here. Takes about ten minutes on two cores,
most of it reading memory; on a machine that does nothing else.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import median

import mlxmtp.models  # noqa: F401  (puts OpenBLAS under mlx, so it comes before mlx)

# isort: split
import mlx.core as mx

from mlxmtp.decode.round import RoundFunction, State, make_parts, make_round
from mlxmtp.hub.registry import find_entry
from mlxmtp.machine.speed import expected_tokens
from mlxmtp.models.config import ModelConfig
from mlxmtp.models.device import bound_memory, compute_dtype, tune_threads
from mlxmtp.models.drafter import Drafter
from mlxmtp.models.kv_cache import KVCache
from mlxmtp.models.linear import Weights
from mlxmtp.models.load import assemble, evaluate
from mlxmtp.models.target import Target
from mlxmtp.models.tensors import Tensor, tensors
from scripts.benchmarks.graphs.narrow import complete
from scripts.benchmarks.harness.options import repeated, say
from scripts.benchmarks.harness.report import machine
from scripts.benchmarks.harness.section import write_section

DRAFTS = (0, 1, 3, 7)
ACCEPTANCE = 0.8
_GREEDY = (0.0, 1.0, 0, 0.0)
_SIZE = 0.02  # standard deviation of a weight


@dataclass
class Text:
    """A text of `length` tokens that has been read: its keys and values, and where decoding stands."""

    length: int
    cache: KVCache
    state: State


def main() -> None:
    """Measure and report."""
    parser = repeated(__doc__, 5)
    parser.add_argument("--model", default="e2b", help="name of the registry (default: e2b)")
    parser.add_argument("--lengths", nargs="+", type=int, default=[512, 4096, 16384, 65536], metavar="N")
    options = parser.parse_args()
    target, drafter = _build(options.model)
    texts = [_text(target, length) for length in options.lengths]
    parts = make_parts(target, drafter, _GREEDY, compiled=True)
    rounds = {k: make_round(parts, k) for k in DRAFTS}
    seconds: dict[tuple[int, int], list[float]] = {(text.length, k): [] for text in texts for k in DRAFTS}
    for repetition in range(-1, options.repetitions):  # the first builds kernels and traces
        for text in texts:
            for k in DRAFTS:
                took = _measure(rounds[k], text)
                say(f"{text.length:6} tokens, {k} drafts: {1000 * took:8.1f} ms{'' if repetition >= 0 else ', first'}")
                if repetition >= 0:
                    seconds[text.length, k].append(took)
    report = _report(options.model, seconds, options.repetitions)
    print(report)
    if options.json:
        figures = [{"length": length, "draft": k, "seconds": took} for (length, k), took in seconds.items()]
        options.json.write_text(json.dumps(figures) + "\n", encoding="utf-8")
    if options.write:
        write_section(options.write, "rounds", report, script="rounds.py", heading="Rounds in full shapes")


def _build(name: str) -> tuple[Target, Drafter]:
    entry = find_entry(name)
    if entry is None:
        raise SystemExit(f"there is no model {name}")
    config, drafter_config = complete(entry.target_config()), complete(entry.drafter_config())
    tune_threads(config.hidden_size)
    bound_memory()
    target = Target(_random(config), config)
    evaluate(target)
    drafter = Drafter(_random(drafter_config), drafter_config, target)
    evaluate(drafter)
    return target, drafter


def _random(config: ModelConfig) -> Weights:
    dtype = compute_dtype(mx.bfloat16)

    def values(tensor: Tensor) -> mx.array:
        if tensor.kind == "per-layer embedding":
            return mx.broadcast_to(mx.random.normal((1, tensor.shape[1]), dtype), tensor.shape)
        if tensor.name.endswith("token_ordering"):
            return mx.arange(tensor.size, dtype=mx.int64)
        return _SIZE * mx.random.normal(tensor.shape, dtype) if tensor.quantizable else mx.ones(tensor.shape, dtype)

    return assemble(config, {tensor.name: values(tensor) for tensor in tensors(config)})


def _text(target: Target, length: int) -> Text:
    cache = KVCache(target.cache_spec, target.dtype)
    cache.reserve(length + max(DRAFTS) + 1)
    cache.buffers = [mx.random.normal(buffer.shape, buffer.dtype) for buffer in cache.buffers]
    hidden = mx.random.normal((1, target.config.hidden_size), target.dtype)
    state = State(mx.array([7], mx.int32), hidden, mx.array([length], mx.int32))
    mx.eval(cache.buffers, *state)
    return Text(length, cache, state)


def _measure(function: RoundFunction, text: Text) -> float:
    """Seconds of one round, always at the same place."""
    key = mx.zeros((2,), mx.uint32)
    begin = time.perf_counter()
    state, text.cache.buffers, report, _ = function(text.state, text.cache.buffers, key)
    mx.eval(report, *state, *text.cache.buffers)
    return time.perf_counter() - begin


def _report(model: str, seconds: dict[tuple[int, int], list[float]], repetitions: int) -> str:
    lengths = list(dict.fromkeys(length for length, _ in seconds))
    dtype = str(compute_dtype(mx.bfloat16)).removeprefix("mlx.core.")
    rows = [
        f"One run of `scripts/benchmarks/rounds.py`, {datetime.now(UTC):%Y-%m-%d}, {machine()}. Random weights in the "
        f"shapes of {model.upper()} and its drafter, {dtype}; {repetitions} repetitions in turn, medians in "
        "milliseconds, and how many plain rounds that is. Gain: tokens in a plain round's time at the best of these "
        f"lengths, if a draft token after accepted ones is accepted in {ACCEPTANCE:.0%} of cases.",
        "",
        f"| tokens before | {' | '.join(['plain', '1 draft', *(f'{k} drafts' for k in DRAFTS[2:])])} | gain |",
        f"|---:|{'---:|' * (len(DRAFTS) + 1)}",
    ]
    for length in lengths:
        ratios = {k: median(_ratios(seconds[length, k], seconds[length, 0])) for k in DRAFTS}
        cells = [f"{1000 * median(seconds[length, k]):,.0f}{f' ({ratios[k]:.2f})' if k else ''}" for k in DRAFTS]
        gain = max(expected_tokens(k, ACCEPTANCE) / ratios[k] for k in DRAFTS)
        rows.append(f"| {length:,} | {' | '.join(cells)} | ×{gain:.2f} |")
    return "\n".join(rows)


def _ratios(these: Sequence[float], plain: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(these, plain, strict=True)]


if __name__ == "__main__":
    main()
