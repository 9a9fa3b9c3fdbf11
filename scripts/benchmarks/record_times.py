"""Measure a round of the built-in pair by draft length: what `simulate_depth.py` takes for this machine.

    .venv/bin/python -m scripts.benchmarks.record_times scripts/benchmarks/simulation/traces/times.json

On a machine that does nothing else, about a minute. Lengths take turns; the median of their rounds is kept.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import mlxmtp.models  # noqa: F401  (OpenBLAS before the first product)
from mlxmtp.decode.decoder import Decoder
from mlxmtp.engine.tokenizer import Tokenizer
from mlxmtp.limits import MAX_DRAFT
from mlxmtp.models.load import load_drafter, load_target
from scripts.benchmarks.harness.arms import TEXTS
from scripts.benchmarks.harness.report import machine

ROOT = Path(__file__).resolve().parents[2]
POCKET = ROOT / "assets" / "pocket"
TURNS = 6
ROUNDS = 12


def main(arguments: Sequence[str]) -> None:
    """Measure and write."""
    target = load_target(POCKET / "target")
    decoder = Decoder(target, load_drafter(POCKET / "drafter", target), compiled="always")
    prompt = Tokenizer.load(POCKET / "target").prompt_ids([{"role": "user", "content": TEXTS["code"][0]}])
    seconds: dict[int, list[float]] = {k: [] for k in range(MAX_DRAFT + 1)}
    for turn in range(TURNS + 1):  # the first one builds and traces
        for k in seconds:
            times = _rounds(decoder, prompt, k)
            seconds[k] += times if turn else []
    source = f"measured: {machine()}, built-in pair, {datetime.now(UTC).date().isoformat()}"
    table = {"source": source, "seconds": {str(k): round(median(found), 6) for k, found in seconds.items()}}
    Path(arguments[0]).write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(table, indent=1))


def _rounds(decoder: Decoder, prompt: list[int], k: int) -> list[float]:
    """Seconds of a few rounds with `k` drafts; the first two of them settle buffers and are left out."""
    decoder.tokens, decoder.rows = [], 0
    steps = decoder.rounds(prompt, max_tokens=ROUNDS * (k + 1), num_draft_tokens=k)
    next(steps)
    found, before = [], time.perf_counter()
    for _ in steps:
        now = time.perf_counter()
        found.append(now - before)
        before = now
    return found[2:]


if __name__ == "__main__":
    main(sys.argv[1:])
