"""Bars of tokens per second out of the JSON of `peers.py`.

python -m scripts.benchmarks.harness.plot RUN.json CHART.svg    # - is stdin
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")

from matplotlib import pyplot as plt

_COLOURS = {"ours": "#1f6feb", "mlx_lm": "#8c8c8c", "mlx_vlm": "#d4a017", "transformers": "#c06c84"}
_HATCHES = {"vlm-best": "//", "ours-3": "//", "ours-blind": ".."}
_TITLES = {"greedy": "greedy", "sampled": "temperature 1"}


def draw(run: dict[str, Any], path: Path) -> None:
    """One panel per phase, one group per kind, one bar per arm with its lowest and highest value."""
    phases = [phase for phase in _TITLES if run["speeds"].get(phase)]
    figure, panels = plt.subplots(1, len(phases), figsize=(6.4 * len(phases), 3.8), sharey=True, squeeze=False)
    for panel, phase in zip(panels[0], phases, strict=True):
        _panel(panel, run["arms"], run["speeds"][phase])
        panel.set_title(_TITLES[phase])
    panels[0][0].set_ylabel("tokens per second")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.set_layout_engine("constrained")
    mpl.rcParams["svg.hashsalt"] = "mlxmtp"
    figure.savefig(path, metadata={"Date": None})


def _panel(panel: Any, arms: list[dict[str, Any]], speeds: dict[str, dict[str, list[float]]]) -> None:
    kinds = list(dict.fromkeys(kind for arm in speeds.values() for kind in arm))
    present = [arm for arm in arms if arm["key"] in speeds]
    width = 0.86 / len(present)
    for index, arm in enumerate(present):
        found = [(place, speeds[arm["key"]][kind]) for place, kind in enumerate(kinds) if kind in speeds[arm["key"]]]
        medians = [values[0] for _, values in found]
        errors = [[v[0] - v[1] for _, v in found], [v[2] - v[0] for _, v in found]]
        drafting = arm["draft"] != 0
        panel.bar(
            [place + (index - (len(present) - 1) / 2) * width for place, _ in found],
            medians,
            width * 0.92,
            yerr=errors,
            label=arm["label"],
            color=_COLOURS[arm["engine"]],
            alpha=1.0 if drafting else 0.55,
            hatch=_HATCHES.get(arm["key"]),
            error_kw={"lw": 0.8},
        )
    panel.set_xticks(range(len(kinds)), kinds)
    panel.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    source = sys.stdin.read() if sys.argv[1] == "-" else Path(sys.argv[1]).read_text(encoding="utf-8")
    draw(json.loads(source), Path(sys.argv[2]))
