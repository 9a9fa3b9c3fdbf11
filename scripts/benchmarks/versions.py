"""Compare the time of a round in two checkouts, in turn, as ratios.

    .venv/bin/python -m scripts.benchmarks.versions OTHER_CHECKOUT [--turns 15] [--lengths 0 3 8]

Each has a process of its own that keeps the built-in pair in memory and writes the same text; they take turns, so that
a busy machine is busy for both. A time is the median of the rounds of an answer. About a minute.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import IO

HERE = Path(__file__).resolve().parents[2]
_TOKENS = 64
_WORKER = f"""
import sys, time
import mlxmtp
model = mlxmtp.load("pocket")
prompt = [5 + (17 * i + i * i // 3) % 900 for i in range(150)]
for line in sys.stdin:
    k, times, begin = int(line), [], time.perf_counter()
    for one in model.rounds(prompt, max_tokens={_TOKENS}, num_draft_tokens=k, stop=()):
        now = time.perf_counter()
        times.append(now - begin)
        begin = now
    print(sorted(times[1:])[len(times) // 2], flush=True)
"""


class _Checkout:
    """The worker of one checkout."""

    def __init__(self, folder: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(folder), "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-c", _WORKER]
        self._process = subprocess.Popen(
            command, env=environment, cwd=folder, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def seconds(self, k: int) -> float:
        """The median round of an answer with `k` drafts."""
        print(k, file=_open(self._process.stdin), flush=True)
        line = _open(self._process.stdout).readline()
        if not line:
            raise SystemExit("a worker ended")
        return float(line)

    def close(self) -> None:
        _open(self._process.stdin).close()
        self._process.wait()


def _open(stream: IO[str] | None) -> IO[str]:
    assert stream is not None, "the worker has pipes"
    return stream


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="the checkout to compare this one with")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--lengths", nargs="+", type=int, default=[0, 3, 8], metavar="K")
    options = parser.parse_args()
    here, other = _Checkout(HERE), _Checkout(options.other.resolve())
    for k in options.lengths:
        for _ in range(3):  # kernels are built, lengths traced
            here.seconds(k)
            other.seconds(k)
        pairs = []
        for turn in range(options.turns):
            both = (here, other) if turn % 2 else (other, here)
            times = {one: one.seconds(k) for one in both}
            pairs.append((times[here], times[other]))
        ratios = sorted(ours / theirs for ours, theirs in pairs)
        low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
        ours, theirs = (1e3 * median(column) for column in zip(*pairs, strict=True))
        print(
            f"{k} drafts: {ours:.2f} ms here, {theirs:.2f} there; {median(ratios):.3f} ({low:.3f} to {high:.3f})",
            flush=True,
        )
    here.close()
    other.close()


if __name__ == "__main__":
    main()
