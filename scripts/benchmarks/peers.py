"""Measure mlxmtp beside mlx-lm, mlx-vlm and transformers: one checkpoint, the same token ids, arms in turn.

Each library runs in an environment of its own (a worker process that loads the pair once); what is not there is left
out with a note. This program needs nothing but Python. Once:

    scripts/check                                                  # makes .venv with mlxmtp
    python3 -m venv .venv-peers && .venv-peers/bin/pip install mlx-lm==0.32.2 mlx-vlm==0.7.10 'mlx[cpu]==0.32.4'
    python3 -m venv .venv-reference && .venv-reference/bin/pip install torch==2.13.0 transformers==5.17.0 matplotlib

(on a Mac: mlx instead of mlx[cpu]). On a machine that does nothing else, about six minutes:

    python3 -m scripts.benchmarks.peers --write docs/benchmarks.md --plot assets/bench-peers.svg --json build/peers.json

For all of them: float32 on the CPU (as stored on a GPU), OpenBLAS on one thread under every mlx (libopenblas0 on
Debian), the faster number of threads for torch, kernels built before anything is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scripts.benchmarks.harness.arms import ARMS, DEFAULT_ARMS, KINDS, WHOLE, Arm
from scripts.benchmarks.harness.drive import Options, Session, Worker, WorkerError, mixed
from scripts.benchmarks.harness.figures import Figures
from scripts.benchmarks.harness.options import comparison, say
from scripts.benchmarks.harness.report import MOST_HOST, Run, host_share, machine, markdown
from scripts.benchmarks.harness.section import write_section

ROOT = Path(__file__).resolve().parents[2]
HEADING = "Side by side"


def _arguments() -> argparse.Namespace:
    parser = comparison(__doc__, ROOT)
    add = parser.add_argument
    add("--reference", type=Path, default=ROOT / ".venv-reference/bin/python", help="Python with transformers")
    add("--arms", nargs="+", default=list(DEFAULT_ARMS), choices=[arm.key for arm in ARMS], metavar="ARM",
        help=f"of {' '.join(arm.key for arm in ARMS)} (default: all but ours-3)")  # fmt: skip
    add("--suite", nargs="+", default=list(KINDS), choices=KINDS, metavar="KIND", help=f"of {' '.join(KINDS)}")
    add("-r", "--repetitions", type=int, default=5, help="(default: 5)")
    add("-n", "--tokens", type=int, default=WHOLE, help=f"new tokens at most (default: {WHOLE})")
    add("--whole", action="store_true", help="always that many, past the end of the answer too")
    add("--no-sampled", action="store_true", help="greedy only")
    add("--minutes", type=float, default=6.0, help="start no repetition that would end later (default: 6)")
    add("--json", type=Path, metavar="FILE", help="every sample")
    add("--write", type=Path, metavar="FILE.md", help=f"replace the section “{HEADING}” there")
    add("--plot", type=Path, metavar="FILE.svg", help="bars (drawn by the reference environment)")
    return parser.parse_args()


def _start(arms: Sequence[Arm], options: argparse.Namespace, notes: list[str]) -> dict[str, Worker]:
    """A worker for every engine whose environment is there."""
    pythons = {
        "ours": options.ours,
        "mlx_lm": options.peers,
        "mlx_vlm": options.peers,
        "transformers": options.reference,
    }
    workers: dict[str, Worker] = {}
    for engine in dict.fromkeys(["ours", *(arm.engine for arm in arms)]):
        python = pythons[engine]
        try:
            if not python.exists():
                raise WorkerError(f"there is no {python}")
            say(f"loading {engine}")
            workers[engine] = Worker(python, engine, options.pair / "target", options.pair / "drafter")
        except WorkerError as error:
            if engine == "ours":
                raise SystemExit(f"mlxmtp does not start: {error}") from error
            say(f"{engine} is left out: {error}")
            notes.append(f"{engine} was not measured: its environment is missing or does not start.")
    return workers


def _measure(session: Session, notes: list[str]) -> tuple[list[dict[str, Any]], list[list[Any]]]:
    """Fill `session.samples`; the host's figures, and a profile if the host costs too much."""
    prompts = session.prepare()
    texts = {kind: items for kind, items in prompts.items() if kind != "random"}
    session.tune(texts, 0.0)
    session.measure(prompts, 0.0, until=0.62 if session.options.sampled else 1.0)
    if "random" in prompts:
        session.race(prompts["random"])
    if session.options.sampled and texts:
        session.tune(texts, 1.0)
        session.measure(texts, 1.0, until=0.95)
    host = session.host(texts) if texts else []
    profile: list[list[Any]] = []
    if any(host_share(row) > MOST_HOST for row in host):
        profile = session.profile(next(iter(texts.values()))[0])
    notes += session.notes
    return host, profile


def _record(run: Run) -> dict[str, Any]:
    """The run as JSON: every sample, and the speeds that the chart draws ([median, lowest, highest])."""
    speeds: dict[str, dict[str, dict[str, list[float]]]] = {}
    for phase in ("greedy", "sampled"):
        figures = Figures(run.samples, phase)
        kinds = list(dict.fromkeys(sample.kind for sample in run.samples if sample.phase == phase))
        groups = {**{kind: (kind,) for kind in mixed(kinds)}, "mixed": mixed(kinds)}
        if "random" in kinds:
            groups["random words"] = ("random",)
        speeds[phase] = {
            arm: {
                name: [found.median, found.low, found.high]
                for name, group in groups.items()
                if (found := figures.speed(arm, group))
            }
            for arm in figures.arms()
        }
    return {
        "schema": "mlxmtp-bench-peers-1",
        "machine": machine(),
        "speeds": speeds,
        **asdict(run),
    }


def main() -> None:
    """Measure and report."""
    options = _arguments()
    begin = time.monotonic()
    notes: list[str] = []
    arms = [arm for arm in ARMS if arm.key in options.arms]
    workers = _start(arms, options, notes)
    plan = Options(
        options.repetitions,
        options.tokens,
        options.minutes,
        tuple(options.suite),
        not options.no_sampled,
        options.whole,
    )
    try:
        session = Session([arm for arm in arms if arm.engine in workers], workers, plan)
        host, profile = _measure(session, notes)
    finally:
        for worker in workers.values():
            worker.close()
    pair = options.pair.resolve()
    run = Run(
        arms=session.arms,
        samples=session.samples,
        host=host,
        profile=profile,
        environments={engine: worker.hello for engine, worker in workers.items()},
        notes=notes,
        checkpoint=str(pair.relative_to(ROOT)) if pair.is_relative_to(ROOT) else pair.name,
        minutes=(time.monotonic() - begin) / 60,
        tokens=plan.tokens,
        whole=plan.whole or not session.stop,
    )
    text = markdown(run)
    print(text)
    record = json.dumps(_record(run)) + "\n"
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(record, encoding="utf-8")
    if options.plot and _draw(options.reference, record, options.plot) and options.write:
        chart = os.path.relpath(options.plot.resolve(), options.write.resolve().parent)
        text = f"![Tokens per second of every arm, by kind of prompt]({chart})\n\n{text}"
    if options.write:
        write_section(options.write, "side-by-side", f"\n{text}", script="peers.py", heading=HEADING)


def _draw(python: Path, record: str, chart: Path) -> bool:
    chart.parent.mkdir(parents=True, exist_ok=True)
    command = [str(python), "-m", "scripts.benchmarks.harness.plot", "-", str(chart.resolve())]
    if python.exists():
        drawn = subprocess.run(command, cwd=ROOT, input=record, text=True, check=False).returncode == 0
        if drawn:
            return True
    say(f"no chart: {python} is not there or has no matplotlib")
    return False


if __name__ == "__main__":
    main()
