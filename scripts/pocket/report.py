"""The plot of a training run: losses of the target, agreement of the drafter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot(work: Path, to: Path) -> None:
    """Draw the logs in `work`; an SVG without fonts or dates in it, so that the same run gives the same file."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "pocket", "font.size": 9})
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    _target(left, _entries(work / "target.jsonl"))
    _drafter(right, _entries(work / "drafter.jsonl"))
    figure.savefig(to, metadata={"Date": None})
    print(to)


def _entries(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _target(axes: Axes, entries: list[dict[str, float]]) -> None:
    checked = [entry for entry in entries if "held_out_loss" in entry]
    axes.plot([e["tokens"] / 1e6 for e in entries], [e["loss"] for e in entries], label="training", linewidth=1)
    axes.plot(
        [e["tokens"] / 1e6 for e in checked], [e["held_out_loss"] for e in checked], "o-", label="held-out wordings"
    )
    axes.set(title="target", xlabel="million tokens", ylabel="loss per answer token (nats)", yscale="log")
    share = axes.twinx()
    share.plot(
        [e["tokens"] / 1e6 for e in checked], [e["held_out_exact"] for e in checked], "g^--", markersize=4, linewidth=1
    )
    share.set(ylabel="whole answers right (green)", ylim=(0, 1))
    axes.legend(loc="upper right")


def _drafter(axes: Axes, entries: list[dict[str, float]]) -> None:
    checked = [entry for entry in entries if "accepted_1" in entry]
    for step in range(1, 6):
        name = f"accepted_{step}"
        axes.plot([e["tokens"] / 1e6 for e in checked], [e[name] for e in checked], "o-", label=f"{step}", markersize=3)
    axes.set(title="drafter", xlabel="million tokens", ylabel="drafts 1..n all as the target", ylim=(0, 1))
    if checked:
        axes.legend(title="n", ncols=2, loc="lower right")
