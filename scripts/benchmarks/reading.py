"""Measure how fast prompts are read beside mlx-lm: the built-in pair and the five tiny networks of the tests.

The same token ids for both, one checkpoint, a process per library and checkpoint, in turn. The tiny networks have the
layer patterns of E2B, E4B, 12B, 26B-A4B and 31B at a hidden size of 32, so what counts there is the number of
operations and not arithmetic. Environments as for peers.py. On a machine that does nothing else:

    python3 -m scripts.benchmarks.reading --write docs/benchmarks.md --json build/reading.json
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from scripts.benchmarks.harness.drive import Worker
from scripts.benchmarks.harness.options import comparison, say
from scripts.benchmarks.harness.pair import allowing
from scripts.benchmarks.harness.report import machine
from scripts.benchmarks.harness.section import write_section

ROOT = Path(__file__).resolve().parents[2]
PAIRS = {"pocket": "assets/pocket", **{name: f"tests/goldens/{name}" for name in ("e2b", "e4b", "12b", "26b", "31b")}}


@dataclass(frozen=True, slots=True)
class Sample:
    """Seconds to the first token after a prompt of `length` tokens, and whether both chose the same one."""

    pair: str
    length: int
    repetition: int
    ours: float
    theirs: float
    same: bool


def main() -> None:
    """Measure and report."""
    options = _arguments()
    samples: list[Sample] = []
    for pair in options.pairs:
        with tempfile.TemporaryDirectory() as temporary:
            samples += _measure(pair, options, Path(temporary))
    text = _report(samples, options)
    print(text)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        record = {"schema": "mlxmtp-bench-reading-1", "machine": machine(), "samples": [asdict(s) for s in samples]}
        options.json.write_text(json.dumps(record) + "\n", encoding="utf-8")
    if options.write:
        write_section(options.write, "reading", text, script="reading.py", heading="Reading prompts")


def _measure(name: str, options: argparse.Namespace, temporary: Path) -> list[Sample]:
    """Every length of one pair; the longest once, the others as often as asked."""
    pair = allowing(ROOT / PAIRS[name], max(options.lengths) + 8, temporary)
    vocabulary = json.loads((pair / "target/config.json").read_text(encoding="utf-8"))["text_config"]["vocab_size"]
    both = [Worker(options.ours, "ours", pair / "target", pair / "drafter")]
    samples = []
    try:
        both.append(Worker(options.peers, "mlx_lm", pair / "target", pair / "drafter"))
        for worker in both:
            worker.ask("warm", jobs=[{"prompt": _prompt(vocabulary, 600, seed=0), "tokens": 2}])
        for repetition in range(options.repetitions):
            lengths = options.lengths if not repetition else sorted(options.lengths)[:-1]
            samples += [_sample(name, both, _prompt(vocabulary, length, seed=1), repetition) for length in lengths]
    finally:
        for worker in both:
            worker.close()
    return samples


def _sample(name: str, both: Sequence[Worker], prompt: list[int], repetition: int) -> Sample:
    done = {}
    for i in (0, 1) if repetition % 2 == 0 else (1, 0):
        done[i] = both[i].ask("run", prompt=prompt, tokens=1)
    ours, theirs = (done[i]["marks"][0][1] for i in (0, 1))
    speeds = f"{len(prompt) / ours:9,.0f} {len(prompt) / theirs:9,.0f} tok/s"
    say(f"{name:7} {len(prompt):6} {speeds}, x {theirs / ours:.2f}")
    return Sample(name, len(prompt), repetition, ours, theirs, done[0]["tokens"] == done[1]["tokens"])


def _prompt(vocabulary: int, length: int, seed: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(vocabulary) for _ in range(length)]


def _report(samples: Sequence[Sample], options: argparse.Namespace) -> str:
    lengths = sorted({sample.length for sample in samples})
    parts = [
        f"One run of `scripts/benchmarks/reading.py`, {datetime.now(UTC):%Y-%m-%d}, {machine()}. Random tokens, in "
        f"turn with mlx-lm; {options.repetitions} repetitions, of {lengths[-1]:,} tokens one. Tokens per second up to "
        f"the first new token, medians, and how much faster than mlx-lm. {sum(s.same for s in samples)} of "
        f"{len(samples)} first tokens are the same.",
        f"| | {' | '.join(f'{n:,}' for n in lengths)} |\n|---|{'---:|' * len(lengths)}",
    ]
    for name in dict.fromkeys(sample.pair for sample in samples):
        cells = []
        for length in lengths:
            found = [s for s in samples if (s.pair, s.length) == (name, length)]
            ratios = [s.theirs / s.ours for s in found]
            cells.append(f"{length / median(s.ours for s in found):,.0f} (×{median(ratios):.2f})")
        label = "pocket" if name == "pocket" else f"shape of {name.upper()}"
        parts[-1] += f"\n| {label} | {' | '.join(cells)} |"
    return "\n\n".join(parts)


def _arguments() -> argparse.Namespace:
    parser = comparison(__doc__, ROOT)
    add = parser.add_argument
    add("--pairs", nargs="+", default=list(PAIRS), choices=list(PAIRS), metavar="PAIR", help=f"of {' '.join(PAIRS)}")
    add("--lengths", nargs="+", type=int, default=[2048, 8192, 32768], metavar="N", help="tokens of the prompts")
    add("-r", "--repetitions", type=int, default=3, help="(default: 3)")
    add("--json", type=Path, metavar="FILE", help="every sample")
    add("--write", type=Path, metavar="FILE.md", help="replace the section “Reading prompts” there")
    return parser.parse_args()


if __name__ == "__main__":
    main()
