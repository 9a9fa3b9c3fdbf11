"""Count what a compiled round launches on a GPU, for every family, without weights and without a GPU.

    .venv/bin/python -m scripts.benchmarks.profile_round --write docs/benchmarks.md

traces narrow pairs (`graphs/narrow.py`) with 0, 1, 3 and 7 draft tokens, greedy and sampled, and counts kernels
(`graphs/launches.py`). Takes half a minute. To see what a change does:

    .venv/bin/python -m scripts.benchmarks.profile_round --json build/before.json       # before the change
    .venv/bin/python -m scripts.benchmarks.profile_round --before build/before.json     # after it
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scripts.benchmarks.graphs.narrow import Pair, build
from scripts.benchmarks.graphs.trace import count_round, count_stock_pass
from scripts.benchmarks.harness.section import write_section

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = ("e2b", "e4b", "12b", "26b", "31b")
DRAFTS = (0, 1, 3, 7)
FILTERS = {"greedy": (0.0, 1.0, 0, 0.0), "sampled": (1.0, 0.95, 64, 0.0)}
BEFORE = Path(__file__).with_name("graphs") / "before.json"
"""Totals from before rotations became one kernel and router scales constants."""
LARGEST = 8  # kinds of kernels named in the second table

Record = dict[str, Any]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--families", nargs="+", default=list(FAMILIES), choices=FAMILIES, metavar="NAME", help=" ".join(FAMILIES))
    add("--json", type=Path, metavar="FILE", help="every count")
    add("--before", type=Path, metavar="FILE", default=BEFORE, help="an earlier --json, shown beside (%(default)s)")
    add("--write", type=Path, metavar="FILE.md", help="put the tables between their markers in this file")
    return parser.parse_args()


def _measure(pair: Pair) -> Record:
    """Launches and nodes of every round, by setting and draft length."""
    found: Record = {}
    for name, filters in FILTERS.items():
        for k in DRAFTS:
            one = count_round(pair, k, filters)
            found[f"{name} {k}"] = {"launches": dict(one.launches), "total": one.total, "nodes": one.operations}
    stock = count_stock_pass(pair)
    found["stock"] = {"launches": dict(stock.launches), "total": stock.total, "nodes": stock.operations}
    return found


def _report(counts: Mapping[str, Record], before: Mapping[str, Record]) -> str:
    """The section of docs/benchmarks.md."""
    columns = [f"{name} {k}" for name in FILTERS for k in DRAFTS]
    heads = [f"{name}, K = {k}" for name in FILTERS for k in DRAFTS]
    lines = [
        "Kernels that one round launches on a GPU, counted by `scripts/benchmarks/profile_round.py` in traced graphs "
        "of pairs with the real architecture and next to no width, packed to 4 bits. What MLX makes of a graph on "
        "Metal was read in its source; nothing ran on such a machine. K is the number of draft tokens; sampled is "
        "temperature 1, top-k 64, top-p 0.95."
        + (" Where two numbers stand, the first is from before the cuts told of below." if before else ""),
        "",
        f"| | mlx-lm's layers, plain pass | {' | '.join(heads)} |",
        f"|---|{'---:|' * (len(heads) + 1)}",
    ]
    for family, found in counts.items():
        old = before.get(family, {})
        cells = [f"{old[key]['total']} → {found[key]['total']}" if key in old else str(found[key]["total"])
                 for key in columns]  # fmt: skip
        lines.append(f"| {family} | {found['stock']['total']} | {' | '.join(cells)} |")
    lines += ["", "The largest kinds in a greedy round with 3 drafts:", "", "| | kernels |", "|---|---|"]
    for family, found in counts.items():
        kinds = sorted(found["greedy 3"]["launches"].items(), key=lambda item: -item[1])[:LARGEST]
        lines.append(f"| {family} | {', '.join(f'{name} {number}' for name, number in kinds)} |")
    return "\n".join(lines)


def main() -> None:
    """Count and report."""
    options = _arguments()
    counts: dict[str, Record] = {}
    for family in options.families:
        counts[family] = _measure(build(family))
        print(f"{family} counted", file=sys.stderr)
    before = json.loads(options.before.read_text(encoding="utf-8")) if options.before else {}
    text = _report(counts, before)
    print(text)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(counts, indent=1) + "\n", encoding="utf-8")
    if options.write:
        write_section(options.write, "operations", f"\n{text}\n", script="profile_round.py")


if __name__ == "__main__":
    main()
