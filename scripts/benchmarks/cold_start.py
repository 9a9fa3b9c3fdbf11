"""Measure a cold start in a published pair's sizes beside mlx-lm: process start to first token, memory, bytes read.

    .venv/bin/python -m scripts.benchmarks.cold_start --peers .venv-peers/bin/python --write docs/benchmarks.md

Each start is a process of its own with a prompt of 16 token ids, arms in turn. The checkpoints have the shapes of E2B
and E4B (`--models` for others) and random weights quantized to 4 bits; they are written once into `--folder` (E2B 3 GB,
E4B 5 GB) and stay there. Before a start, files are put out of the system's cache (`cold`) or left in it (`warm`). On a
CPU everybody computes in float32 and 4-bit products are slow, so the prompt takes most of the time after loading: what
says something of other machines are the columns up to `loaded`. The target's arrays read as they are stored, without a
network made of them, bound what a layout kept on disk could save. On a machine that does nothing else.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from scripts.benchmarks.harness.arms import rotated
from scripts.benchmarks.harness.options import repeated, say
from scripts.benchmarks.harness.report import machine
from scripts.benchmarks.harness.section import write_section

ROOT = Path(__file__).resolve().parents[2]
ARMS = {
    "mlxmtp plain": "ours", "mlxmtp with drafter": "ours-mtp", "arrays alone, as stored": "read", "mlx-lm": "mlx_lm",
}  # fmt: skip
SHARD = 2**31  # bytes of a file, about
PROMPT = 16


@dataclass(frozen=True, slots=True)
class Start:
    """One start: seconds since the process began, the most memory it held, and bytes that it read by then."""

    model: str
    arm: str
    cold: bool
    imported: float
    loaded: float
    first: float | None
    peak: int
    read: int


def main() -> None:
    """Measure and report, or be one of the processes that are measured."""
    if sys.argv[1:2] == ["--start"]:
        _start(*sys.argv[2:])
        return
    parser = repeated(__doc__, 3)
    parser.add_argument("--models", nargs="+", default=["e2b", "e4b"], help="names of the registry")
    parser.add_argument("--peers", type=Path, help="Python with mlx-lm; without it only mlxmtp is measured")
    parser.add_argument("--folder", type=Path, default=ROOT / "build/cold", help="where the checkpoints are kept")
    options = parser.parse_args()
    starts = []
    for model in options.models:
        pair = options.folder / model
        if not (pair / "drafter/config.json").exists():
            say(f"writing {pair}")
            subprocess.run([sys.executable, "-c", _WRITE.format(model=model, pair=str(pair))], cwd=ROOT, check=True)
        arms = {name: arm for name, arm in ARMS.items() if options.peers or arm != "mlx_lm"}
        for cold in (False, True):
            for repetition in range(0 if cold else -1, options.repetitions):
                for name in rotated(tuple(arms), repetition):
                    python = options.peers if arms[name] == "mlx_lm" else Path(sys.executable)
                    found = _measure(python, arms[name], pair, cold=cold)
                    say(f"{model} {name}, {'cold' if cold else 'warm'}: {found}")
                    if repetition >= 0:
                        starts.append(Start(model, name, cold, **found))
    report = _report(starts, options.repetitions)
    print(report)
    if options.json:
        options.json.write_text(json.dumps([asdict(start) for start in starts], indent=1) + "\n", encoding="utf-8")
    if options.write:
        write_section(options.write, "cold-start", report, script="cold_start.py", heading="Cold starts in full sizes")


_WRITE = "from scripts.benchmarks.harness.full_size import write; write({model!r}, {pair!r}, " + f"{SHARD})"


def _measure(python: Path, arm: str, pair: Path, *, cold: bool) -> dict[str, Any]:
    if cold:
        for file in pair.rglob("*.safetensors"):
            with file.open("rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    command = [str(python), "-m", "scripts.benchmarks.cold_start", "--start", arm, str(pair), repr(time.monotonic())]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _start(arm: str, pair: str, begin: str) -> None:
    """Load the pair, make one token and say how long that took since `begin`."""
    from scripts.benchmarks.engines.job import Job
    from scripts.benchmarks.engines.worker import load_openblas

    marks: dict[str, float] = {}

    def mark(name: str) -> None:
        marks[name] = time.monotonic() - float(begin)

    job = Job(prompt=tuple(range(1000, 1000 + PROMPT)), tokens=1)
    target, drafter = Path(pair, "target"), Path(pair, "drafter")
    if arm == "mlx_lm":
        load_openblas()
        from scripts.benchmarks.engines import mlx_lm

        mark("imported")
        engine = mlx_lm.load(target, drafter)
        mark("loaded")
        engine.run(job, lambda _: mark("first"))
    elif arm == "read":
        import mlx.core as mx

        from mlxmtp.models.load import read_weights

        mark("imported")
        weights = read_weights(target)
        mx.eval(weights)
        mark("loaded")
    else:
        from mlxmtp.engine.model import Model

        mark("imported")
        model = Model.load(target, drafter if arm == "ours-mtp" else None)
        mark("loaded")
        next(iter(model.rounds(job.prompt, max_tokens=1)))
        mark("first")
    print(json.dumps({"first": None, **marks, **_cost()}), flush=True)
    os._exit(0)


def _cost() -> dict[str, int]:
    """Peak of memory and bytes read by this process, as Linux counts them."""
    status, io = Path("/proc/self/status").read_text(), Path("/proc/self/io").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    read = next(line for line in io.splitlines() if line.startswith("rchar"))
    return {"peak": int(peak.split()[1]) * 1024, "read": int(read.split()[1])}


def _report(starts: list[Start], repetitions: int) -> str:
    lines = [
        f"One run of `scripts/benchmarks/cold_start.py`, {datetime.now(UTC):%Y-%m-%d}, {machine()}. Random weights in "
        f"4 bits, {PROMPT} prompt tokens, float32 on the CPU; medians of {repetitions} starts in turn, seconds since "
        "the process began.",
        "",
        "| | files | imports | loaded | first token | peak memory, GB | read, GB |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for model, arm, cold in dict.fromkeys((one.model, one.arm, one.cold) for one in starts):
        mine = [one for one in starts if (one.model, one.arm, one.cold) == (model, arm, cold)]
        imported, loaded = (median(getattr(one, mark) for one in mine) for mark in ("imported", "loaded"))
        firsts = [one.first for one in mine if one.first is not None]
        first = f"{median(firsts):.2f}" if firsts else ""
        peak, read = (median(getattr(one, what) for one in mine) / 1e9 for what in ("peak", "read"))
        lines.append(
            f"| {model.upper()}, {arm} | {'cold' if cold else 'warm'} | {imported:.2f} | {loaded:.2f} | {first} "
            f"| {peak:.2f} | {read:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
