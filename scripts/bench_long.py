#!/usr/bin/env python3
"""Measure long prompts beside mlx-lm and mlx-vlm: reading them, and decoding after them, plain and with the drafter.

The same token ids for everybody (this repository's own documents, a question at the end), one checkpoint, a process per
library, arms in turn, medians. Environments as for bench_peers.py. On a machine that does nothing else:

    python3 scripts/bench_long.py --write docs/benchmarks.md --json build/long.json

A length beyond the model's context is measured on a copy whose configuration allows it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from bench.drive import Worker, WorkerError  # noqa: E402
from bench.options import comparison  # noqa: E402
from bench.report import machine  # noqa: E402
from bench.section import write_section  # noqa: E402

QUESTIONS = ("What is a drafter?", "Why is drafting lossless?")
FAR = 40_000
"""Tokens from which on a prompt is read once, by the arms of `FAR_ARMS` only: everybody would take half an hour."""
SKIPPED = 8  # tokens after the first whose time does not count: a new buffer size is traced there


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to answer: label, engine of `bench.worker`, draft tokens."""

    label: str
    engine: str
    draft: int | str = 0


ARMS = {
    "ours": Arm("mlxmtp plain", "ours"),
    "ours-mtp": Arm("mlxmtp MTP", "ours", "auto"),
    "lm": Arm("mlx-lm plain", "mlx_lm"),
    "vlm": Arm("mlx-vlm plain", "mlx_vlm"),
    "vlm-mtp": Arm("mlx-vlm MTP", "mlx_vlm", "auto"),
}
FAR_ARMS = ("ours", "ours-mtp", "lm")


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer: seconds to its first token, and seconds per token later on; `same`: the text of the first arm."""

    length: int
    repetition: int
    arm: str
    first: float
    per_token: float
    same: bool


def main() -> None:
    """Measure and report."""
    options = _arguments()
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory() as temporary:
        pair = _pair(options.pair, max(options.lengths) + options.tokens, Path(temporary))
        workers = _start(options, pair)
        try:
            for length, repetition in _plan(options):
                samples += _measure(workers, options, length, repetition)
        finally:
            for worker in workers.values():
                worker.close()
    text = _report(samples, options)
    print(text)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        record = {"schema": "mlxmtp-bench-long-1", "machine": machine(), "samples": [asdict(one) for one in samples]}
        options.json.write_text(json.dumps(record) + "\n", encoding="utf-8")
    if options.write:
        write_section(options.write, "long", text, script="bench_long.py", heading="Long prompts")


def _start(options: argparse.Namespace, pair: Path) -> dict[str, Worker]:
    """A worker for every engine that is wanted and there; kernels are built before anything is measured."""
    workers: dict[str, Worker] = {}
    for engine in dict.fromkeys(["ours", *(ARMS[arm].engine for arm in options.arms)]):
        say(f"loading {engine}")
        try:
            python = options.ours if engine == "ours" else options.peers
            workers[engine] = Worker(python, engine, pair / "target", pair / "drafter")
        except (WorkerError, OSError) as error:
            if engine == "ours":
                raise SystemExit(f"mlxmtp does not start: {error}") from error
            say(f"{engine} is left out: {error}")
    options.arms = [arm for arm in options.arms if ARMS[arm].engine in workers]
    prompt = _prompt(workers["ours"], 600)
    for arm in options.arms:
        say(f"building the kernels of {ARMS[arm].label}")
        job = {"prompt": prompt, "tokens": 24, "draft": ARMS[arm].draft}
        workers[ARMS[arm].engine].ask("warm", jobs=[job])
    return workers


def _plan(options: argparse.Namespace) -> Iterator[tuple[int, int]]:
    """Every length once, then again, so that what the machine does meanwhile falls on all; until the time is over."""
    begin = time.monotonic()
    took: dict[int, float] = {}
    for repetition in range(options.repetitions):
        for length in (length for length in options.lengths if length < FAR or not repetition):
            now = time.monotonic()
            if (now - begin + took.get(length, 0.0)) / 60 < options.minutes:
                yield length, repetition
                took[length] = time.monotonic() - now
            else:
                say(f"no time for {length:,} tokens, repetition {repetition + 1}")


def _measure(workers: dict[str, Worker], options: argparse.Namespace, length: int, repetition: int) -> list[Sample]:
    prompt = _prompt(workers["ours"], length)
    samples, text = [], None
    arms = [arm for arm in options.arms if length < FAR or arm in FAR_ARMS]
    arms = arms if repetition % 2 == 0 else arms[::-1]
    for arm in arms:
        begin = time.monotonic()
        job = {"prompt": prompt, "tokens": options.tokens, "draft": ARMS[arm].draft}
        done = workers[ARMS[arm].engine].ask("run", **job)
        text = done["tokens"] if text is None else text
        counted = [mark for mark in done["marks"] if mark[0] > SKIPPED]
        (n, start), (m, end) = counted[0], counted[-1]
        sample = Sample(length, repetition, arm, done["marks"][0][1], (end - start) / (m - n), text == done["tokens"])
        say(f"{length:6} {ARMS[arm].label:14} {length / sample.first:8.0f} tok/s {1000 * sample.per_token:7.1f} ms/tok "
            f"({time.monotonic() - begin:.0f} s)")  # fmt: skip
        samples.append(sample)
    return samples


def _prompt(ours: Worker, length: int) -> list[int]:
    """`length` token ids: a question after as much of the documents as fits."""
    documents = "\n\n".join(path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("docs/*.md")))
    asked, other, material = ours.ask(
        "prompts", prompts=[{"text": text} for text in (*QUESTIONS, documents)]
    )["answer"]  # fmt: skip
    same = next(i for i, (a, b) in enumerate(zip(asked, other, strict=False)) if a != b)
    material = material[same : -(len(asked) - same)]
    fill = length - len(asked)
    return [*asked[:same], *(material * (fill // len(material) + 1))[:fill], *asked[same:]]


def _pair(pair: Path, context: int, temporary: Path) -> Path:
    """The pair, or a copy of it that allows `context` tokens."""
    found = json.loads((pair / "target/config.json").read_text(encoding="utf-8"))
    if found["text_config"]["max_position_embeddings"] >= context:
        return pair
    for part in ("target", "drafter"):
        (temporary / part).mkdir()
        for file in (pair / part).iterdir():
            (temporary / part / file.name).symlink_to(file.resolve())
        config = json.loads((pair / part / "config.json").read_text(encoding="utf-8"))
        config["text_config"]["max_position_embeddings"] = context
        (temporary / part / "config.json").unlink()
        (temporary / part / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return temporary


def _report(samples: Sequence[Sample], options: argparse.Namespace) -> str:
    lengths = sorted({sample.length for sample in samples})
    counts = ", ".join(f"{len({s.repetition for s in samples if s.length == n})} of {n:,}" for n in lengths)
    pair = options.pair.resolve()
    name = pair.relative_to(ROOT) if pair.is_relative_to(ROOT) else pair.name
    same = sum(sample.same for sample in samples)
    parts = [
        f"One run of `scripts/bench_long.py`, {datetime.now(UTC):%Y-%m-%d}, {machine()}. Checkpoint `{name}`, "
        f"{options.tokens} tokens after each prompt, greedy. Medians of repetitions ({counts} tokens); {same} of "
        f"{len(samples)} texts are the first arm's.",
        "Reading, tokens per second:",
        _table(samples, options.arms, lengths, lambda s: s.length / s.first, "{:,.0f}", higher=True),
        "Decoding after it, milliseconds per token:",
        _table(samples, options.arms, lengths, lambda s: 1000 * s.per_token, "{:.1f}", higher=False),
    ]
    return "\n\n".join(parts)


def _table(
    samples: Sequence[Sample],
    arms: Sequence[str],
    lengths: Sequence[int],
    value: Callable[[Sample], float],
    form: str,
    *,
    higher: bool,
) -> str:
    """Arms by lengths; `×` is how much better mlxmtp's own arm of the kind is, the median over repetitions."""
    rows = [f"| | {' | '.join(f'{n:,}' for n in lengths)} |", f"|---|{'---:|' * len(lengths)}"]
    for arm in arms:
        own = "ours-mtp" if arm.endswith("mtp") else "ours"
        cells = []
        for length in lengths:
            mine = {s.repetition: value(s) for s in samples if (s.length, s.arm) == (length, own)}
            them = {s.repetition: value(s) for s in samples if (s.length, s.arm) == (length, arm)}
            cell = form.format(median(them.values())) if them else ""
            both = [(mine[r], them[r]) for r in them if r in mine]
            if both and arm != own:
                cell += f" (×{median(a / b if higher else b / a for a, b in both):.2f})"
            cells.append(cell)
        rows.append(f"| {ARMS[arm].label} | {' | '.join(cells)} |")
    return "\n".join(rows)


def say(text: str) -> None:
    """One line of progress."""
    print(f"bench_long: {text}", file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = comparison(__doc__, ROOT)
    add = parser.add_argument
    add("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), metavar="ARM", help=f"of {' '.join(ARMS)}")
    add("--lengths", nargs="+", type=int, default=[512, 4096, 16384, 65536], metavar="N",
        help="tokens of the prompts")  # fmt: skip
    add("-n", "--tokens", type=int, default=96, help="new tokens (default: 96)")
    add("-r", "--repetitions", type=int, default=2, help="(default: 2)")
    add("--minutes", type=float, default=40.0, help="start nothing that would end later (default: 40)")
    add("--json", type=Path, metavar="FILE", help="every sample")
    add("--write", type=Path, metavar="FILE.md", help="replace the section “Long prompts” there")
    return parser.parse_args()


if __name__ == "__main__":
    main()
