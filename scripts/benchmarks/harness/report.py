"""The run as markdown."""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scripts.benchmarks.harness.arms import MIXED, Arm
from scripts.benchmarks.harness.drive import Sample, mixed
from scripts.benchmarks.harness.figures import Figures, Spread

MOST_HOST = 0.10
_MANY = 1e3


@dataclass(frozen=True, slots=True)
class Goal:
    """`arm` at least `least` times as fast as `other`."""

    phase: str
    arm: str
    other: str
    kinds: tuple[str, ...]
    least: float
    text: str


GOALS = (
    Goal("greedy", "ours", "lm", MIXED, 1.2, "plain against mlx-lm plain, greedy, mixed"),
    Goal("greedy", "ours-mtp", "ours", MIXED, 1.5, "MTP against plain, greedy, mixed"),
    Goal("greedy", "ours-mtp", "vlm-mtp", MIXED, 1.4, "MTP against mlx-vlm MTP, greedy, mixed"),
    Goal("race", "ours-mtp", "ours", ("random",), 0.97, "MTP against plain, random words, in close turns"),
    Goal("sampled", "ours-mtp", "ours", MIXED, 1.15, "MTP against plain, temperature 1, mixed"),
    Goal("sampled", "ours-mtp", "vlm-mtp", MIXED, 1.4, "MTP against mlx-vlm MTP, temperature 1, mixed"),
)
_OTHERS = (
    Goal("race", "ours-blind", "ours", ("random",), 0, "MTP with an untrained drafter against plain, the same way"),
    Goal("greedy", "ours-mtp", "vlm-best", MIXED, 0, "MTP against mlx-vlm MTP at its best, greedy, mixed"),
    Goal("sampled", "ours-mtp", "vlm-best", MIXED, 0, "MTP against mlx-vlm MTP at its best, temperature 1, mixed"),
    Goal("greedy", "vlm-mtp", "vlm", MIXED, 0, "mlx-vlm MTP against mlx-vlm plain, greedy, mixed"),
    Goal("sampled", "vlm-mtp", "vlm", MIXED, 0, "mlx-vlm MTP against mlx-vlm plain, temperature 1, mixed"),
    Goal("greedy", "vlm-mtp", "vlm", ("random",), 0, "mlx-vlm MTP against mlx-vlm plain, random words"),
    Goal("greedy", "ours-mtp", "hf-mtp", MIXED, 0, "MTP against transformers assisted, greedy, mixed"),
)


@dataclass(frozen=True, slots=True)
class Run:
    """Everything a report is made of."""

    arms: Sequence[Arm]
    samples: Sequence[Sample]
    host: Sequence[dict[str, Any]]
    profile: Sequence[Sequence[Any]]
    environments: dict[str, dict[str, Any]]
    notes: Sequence[str]
    checkpoint: str
    minutes: float
    tokens: int
    whole: bool


def markdown(run: Run) -> str:
    """The whole section, without its heading."""
    parts = [_conditions(run)]
    for phase, title in (("greedy", "Greedy"), ("sampled", "Temperature 1, whole vocabulary")):
        if any(sample.phase == phase for sample in run.samples):
            parts.append(f"### {title}\n\n" + _speeds(run, phase))
    parts.append("### Ratios\n\n" + _ratios(run))
    parts.append("### The host's part of a round\n\n" + _host(run))
    if run.notes:
        parts.append("### Notes\n\n" + "\n".join(f"- {note}" for note in run.notes))
    return "\n\n".join(parts) + "\n"


def host_share(row: dict[str, Any]) -> float:
    """Share of the round in which Python runs and the device has nothing to do."""
    total = sum(row[name] for name in ("python", "submit", "wait"))
    return float(row["python"] / total) if total else 0.0


def machine() -> str:
    """Processor and cores."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = re.search(r"model name\s*:\s*(.+)", info.read_text(encoding="utf-8"))
        name = found[1] if found else name
    import os

    return f"{name}, {os.cpu_count()} cores, {platform.system()}"


def _conditions(run: Run) -> str:
    day = datetime.now(UTC).date().isoformat()
    lines = [
        f"One run of `scripts/benchmarks/peers.py`, {day}, {run.minutes:.1f} minutes, on {machine()}. Checkpoint: "
        f"{run.checkpoint}. Every arm gets the same token ids and, when it decodes greedily, makes the same number of "
        f"new tokens with stop tokens ignored: {_lengths(run)}. Arms take turns on every prompt, another one first "
        "each time. Speed is tokens over seconds from the first token to the last, reading the prompt left out, and "
        "all kernels were built before. Given are medians over repetitions, lowest and highest in brackets; each "
        "repetition asks other questions of the same kind. Mixed = code, chat and list together."
    ]
    rows = []
    for engine, hello in run.environments.items():
        facts = ", ".join(f"{key} {value}" for key, value in hello.items() if key != "stop")
        rows.append(f"- {engine}: {facts}")
    return "\n".join([*lines, "", *rows])


def _lengths(run: Run) -> str:
    if run.whole:
        return f"{run.tokens}"
    return (
        f"as many as the greedy answer has (at most {run.tokens}), and {run.tokens} after random words; at "
        "temperature 1 every text ends where it ends"
    )


def _speeds(run: Run, phase: str) -> str:
    figures = Figures(run.samples, phase)
    kinds = list(dict.fromkeys(sample.kind for sample in run.samples if sample.phase == phase))
    suite = mixed(kinds)
    heads = [*(f"{kind}" for kind in suite), "**mixed**", *(["random words"] if "random" in kinds else [])]
    header = ["tokens per second", *heads, "tok/pass", "accepted", "first token", "same text"]
    rows = [header, ["---"] + ["---:"] * (len(header) - 2) + ["---"]]
    for arm in run.arms:
        if arm.key not in figures.arms():
            continue
        cells = [_cell(figures.speed(arm.key, [kind])) for kind in suite]
        cells.append(f"**{_cell(figures.speed(arm.key, suite))}**")
        if "random" in kinds:
            cells.append(_cell(figures.speed(arm.key, ["random"])))
        per_pass, accepted = figures.tokens_per_pass(arm.key, suite), figures.acceptance(arm.key, suite)
        first = figures.first_token(arm.key, suite)
        cells += [
            f"{per_pass:.2f}" if per_pass else "",
            f"{accepted:.0%}" if accepted is not None else "",
            f"{first.median * _MANY:.0f} ms" if first else "",
            _same(figures, arm, phase),
        ]
        rows.append([arm.label, *cells])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _same(figures: Figures, arm: Arm, phase: str) -> str:
    if arm.key == "ours":
        return "—"
    if phase == "sampled" and arm.engine != "ours":
        return "other noise"
    return figures.agreement(arm.key, "ours")


def _cell(value: Spread | None) -> str:
    return value.text() if value else ""


def _ratios(run: Run) -> str:
    rows = ["| mlxmtp's | times | wanted | |", "|---|---:|---:|---|"]
    for goal in (*GOALS, *_OTHERS):
        ratio = Figures(run.samples, goal.phase).ratio(goal.arm, goal.other, goal.kinds)
        if ratio is None:
            continue
        verdict = "" if not goal.least else "reached" if ratio.median >= goal.least else "**not reached**"
        wanted = f"{goal.least:.2f}" if goal.least else ""
        rows.append(f"| {goal.text} | {ratio.text(2)} | {wanted} | {verdict} |")
    return "\n".join(rows)


def _host(run: Run) -> str:
    lines = [
        "Per round, on one prompt of each kind, greedy. *Python* runs from the moment a result has been read until the "
        "next round is handed over; on the CPU nothing else happens in that time, so its share is what the host costs. "
        "While the round is *submitted* the device works already; *of it busy* is the processor time that the "
        "submitting thread itself takes.",
        "",
        "| draft tokens | round | Python | share | submit | of it busy | wait |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in run.host:
        each = {name: row[name] / row["rounds"] * _MANY for name in ("python", "submit", "busy", "wait")}
        whole = each["python"] + each["submit"] + each["wait"]
        lines.append(
            f"| {row['draft']} | {whole:.2f} ms | {each['python']:.2f} ms | {host_share(row):.1%} | "
            f"{each['submit']:.2f} ms | {each['busy']:.2f} ms | {each['wait']:.2f} ms |"
        )
    if run.profile:
        lines += ["", "| function | calls | own seconds |", "|---|---:|---:|"]
        lines += [f"| `{name}` | {calls} | {own:.3f} |" for name, calls, own in run.profile]
    return "\n".join(lines)
