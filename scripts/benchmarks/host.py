"""Measure the host's part of a round of the built-in pair: what runs while the device has nothing to do.

    .venv/bin/python -m scripts.benchmarks.host [--repetitions 5] [--write docs/benchmarks.md]

By plain rounds, 3 drafts and the automatic length, greedy, each twice before it counts (`engines/host.py` says what
is timed). Half a minute, on a machine that does nothing else.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import mlxmtp.models  # noqa: F401  (puts OpenBLAS under mlx, so it comes before mlx)

# isort: split
from scripts.benchmarks.engines.job import Job
from scripts.benchmarks.engines.ours import load
from scripts.benchmarks.harness.arms import TEXTS
from scripts.benchmarks.harness.options import repeated, say
from scripts.benchmarks.harness.report import host_share, machine
from scripts.benchmarks.harness.section import write_section

POCKET = Path(__file__).resolve().parents[2] / "assets/pocket"
DRAFTS: tuple[int | str, ...] = (0, 3, "auto")
TOKENS = 120
_ABOUT = """\
One run of `scripts/benchmarks/host.py`, {day}, built-in pair on {machine}: milliseconds of a round, medians of
{repetitions} answers (least to most). The host's part runs while nothing is computed; of it, replaying the trace is
MLX's.

| draft tokens | round | host's part | share, % | of it replaying the trace |
|---|---:|---:|---:|---:|"""


def main() -> None:
    """Measure and report."""
    options = repeated(__doc__, 5).parse_args()
    ours = load(POCKET / "target", POCKET / "drafter")
    prompt = ours.prompt_ids(TEXTS["list"][1])
    jobs = {draft: Job(prompt, TOKENS, draft) for draft in DRAFTS}
    ours.warm([*jobs.values()] * 2)
    found: dict[str, list[dict[str, float]]] = {f"{draft}": [] for draft in DRAFTS}
    for repetition in range(options.repetitions):
        say(f"repetition {repetition + 1} of {options.repetitions}")
        for draft, job in jobs.items():
            found[f"{draft}"].append(ours.host(job))
    lines = [_ABOUT.format(day=f"{datetime.now(UTC):%Y-%m-%d}", machine=machine(), repetitions=options.repetitions)]
    lines += [_line(draft, rows) for draft, rows in found.items()]
    print("\n".join(lines))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if options.write:
        write_section(options.write, "host", "\n".join(lines), script="host.py", heading="The host")


def _line(draft: str, rows: list[dict[str, float]]) -> str:
    each = [{name: 1000 * value / row["rounds"] for name, value in row.items()} for row in rows]
    whole = [row["python"] + row["submit"] + row["wait"] for row in each]
    shares = [100 * host_share(row) for row in rows]
    parts = [whole, [row["python"] for row in each], shares, [row["replay"] for row in each]]
    return f"| {draft} | " + " | ".join(f"{median(one):.2f} ({min(one):.2f} to {max(one):.2f})" for one in parts) + " |"


if __name__ == "__main__":
    main()
