"""What a plain pass costs before it has anything to compute: the built-in model's layers with and without their width.

    .venv/bin/python -m scripts.benchmarks.overhead [--write docs/benchmarks.md]

The same graph of operations is run with the real widths and with next to none, by mlxmtp and by mlx-lm. What is left
without width is the price of the operations themselves; the rest is arithmetic and memory, which both share. A minute,
on a machine that does nothing else. Weights are zeros: neither cares.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map

from mlxmtp.decode.decoder import Decoder
from mlxmtp.models.config import ModelConfig, read_config
from mlxmtp.models.load import assemble, evaluate
from mlxmtp.models.target import Target
from mlxmtp.models.tensors import tensors
from scripts.benchmarks.harness.report import machine
from scripts.benchmarks.harness.section import write_section

ROOT = Path(__file__).resolve().parents[2]
POCKET = ROOT / "assets" / "pocket" / "target"
NARROW = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "head_dim": 8,
    "global_head_dim": 16,
    "hidden_size_per_layer_input": 8,
    "vocab_size": 64,
    "vocab_size_per_layer_input": 64,
}
TURNS, TOKENS = 7, 60
PROMPT = list(range(5, 25))


def network(config: ModelConfig) -> Any:
    """mlx-lm's network of that shape, all zeros."""
    from mlx_lm.models import gemma4

    args = gemma4.ModelArgs(text_config=dict(config.text), vocab_size=config.vocab_size)
    built = gemma4.Model(args).language_model
    built.update(tree_map(lambda a: mx.zeros(a.shape, mx.float32), built.parameters()))
    mx.eval(built.parameters())
    return built


def ours(config: ModelConfig) -> Callable[[], Iterator[Any]]:
    """Plain decoding by mlxmtp, compiled."""
    zeros = {tensor.name: mx.zeros(tensor.shape, mx.float32) for tensor in tensors(config)}
    target = Target(assemble(config, zeros), config)
    evaluate(target)
    decoder = Decoder(target, compiled="always")

    def begin() -> Iterator[Any]:
        decoder.tokens, decoder.rows = [], 0
        return decoder.rounds(PROMPT, max_tokens=TOKENS + 1, num_draft_tokens=0, stop=())

    return begin


def stock(config: ModelConfig) -> Callable[[], Iterator[Any]]:
    """Plain decoding by mlx-lm's own generator."""
    from mlx_lm.generate import generate_step

    model = network(config)
    return lambda: generate_step(mx.array(PROMPT), model, max_tokens=TOKENS + 1)


def seconds(begin: Callable[[], Iterator[Any]]) -> float:
    """Of one pass: from the first token to the last."""
    steps = begin()
    next(steps)
    started = time.perf_counter()
    count = sum(1 for _ in islice(steps, TOKENS))
    return (time.perf_counter() - started) / count


def main(arguments: Sequence[str]) -> None:
    """Measure in turn, print, and write where told to."""
    real = read_config(POCKET)
    widths = {"pocket's widths": real, "next to no width": replace(real, text={**real.text, **NARROW})}
    ways = {(name, width): make(config) for name, make in (("mlxmtp", ours), ("mlx-lm", stock))
            for width, config in widths.items()}  # fmt: skip
    times: dict[tuple[str, str], list[float]] = {way: [] for way in ways}
    for turn in range(TURNS + 1):
        for way, begin in ways.items():
            times[way] += [seconds(begin)] if turn else []  # the first one builds and traces
            if not turn:
                seconds(begin)
    rows = [
        f"| {name} | {' | '.join(f'{1000 * median(times[name, width]):.2f}' for width in widths)} |"
        for name in ("mlxmtp", "mlx-lm")
    ]
    text = "\n".join([
        f"Milliseconds of a plain pass, medians of {TURNS} interleaved runs of `scripts/benchmarks/overhead.py`,",
        f"{datetime.now(UTC).date().isoformat()}, on {machine()}.",
        "",
        f"| | {' | '.join(widths)} |",
        "|---|---:|---:|",
        *rows,
    ])  # fmt: skip
    print(text)
    if arguments:
        write_section(Path(arguments[-1]), "overhead", text, script="overhead.py", heading="What operations cost")


if __name__ == "__main__":
    main(sys.argv[1:])
