"""The chart of `simulate_depth.py`: regrets by suite, and the draft lengths chosen on a text that switches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")

from matplotlib import pyplot as plt

from mlxmtp.decode.draft_length import DraftLength
from scripts.benchmarks.simulation.replay import Noise, play

_COLOURS = ("#1f6feb", "#79b0ff", "#8c8c8c", "#d4a017", "#c06c84", "#6b8e6b")
_MOST = 60  # percent; what is worse is cut and labelled


def draw(cells: Sequence[Any], path: Path) -> None:
    """Left the mean regret over machines of everybody, right one run on the first machine."""
    figure, (bars, run) = plt.subplots(1, 2, figsize=(13, 5.4), width_ratios=(3, 2))
    _bars(bars, cells)
    switching = [cell for cell in cells if "60 tokens" in cell.suite.name]
    _run(run, switching[0])
    figure.set_layout_engine("constrained")
    mpl.rcParams["svg.hashsalt"] = "mlxmtp"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def _bars(panel: Any, cells: Sequence[Any]) -> None:
    suites = list(dict.fromkeys(cell.suite.name for cell in cells))
    ways = list(cells[0].spent)
    width = 0.84 / len(ways)
    for index, way in enumerate(ways):
        for place, suite in enumerate(suites):
            values = [cell.regret(way) for cell in cells if cell.suite.name == suite]
            mean = sum(values) / len(values)
            at = place + (index - (len(ways) - 1) / 2) * width
            panel.barh(at, min(mean, _MOST), width * 0.9, color=_COLOURS[index], label=way if place == 0 else None)
            if mean > _MOST:
                panel.text(_MOST, at, f" {mean:.0f}", va="center", fontsize=7)
    panel.set_yticks(range(len(suites)), suites)
    panel.invert_yaxis()
    panel.axvline(0, color="black", lw=0.8)
    panel.set_xlabel("time above the best fixed length known afterwards, %, mean over machines")
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, fontsize=8, loc="lower right")


def _run(panel: Any, cell: Any) -> None:
    played = play(DraftLength(), cell.suite.accepted, cell.profile.costs, Noise(), 1, cell.profile.ahead)
    for begin in range(60, len(cell.suite.accepted), 120):
        panel.axvspan(begin, begin + 60, color="#f2e4d8", lw=0)
    positions, lengths = zip(*played.rounds, strict=True)
    panel.step(positions, lengths, where="post", color=_COLOURS[0], lw=1.2)
    panel.set_xlabel("token (shaded: random words)")
    panel.set_ylabel("draft tokens")
    panel.set_title(f"one run, {cell.profile.name}", fontsize=10)
    panel.spines[["top", "right"]].set_visible(False)
