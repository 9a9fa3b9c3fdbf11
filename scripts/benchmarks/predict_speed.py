"""Tables of the speed to expect on Apple's chips, and how far the same model is from what others report.

    .venv/bin/python -m scripts.benchmarks.predict_speed --write docs/benchmarks.md

The model is that of `mlxmtp ls` and `mlxmtp show` (`machine/speed.py`): bytes over bandwidth, and launches. Nothing
is measured here.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from mlxmtp.hub.registry import Entry, find_entry
from mlxmtp.machine.chip import Machine, parse_chip
from mlxmtp.machine.pace import EFFICIENCY, ROWS, Pace, Products
from mlxmtp.machine.speed import KERNEL, expected_tokens, kernels, read_per_token, round_seconds
from scripts.benchmarks.harness.section import write_section

FAMILIES = ("e2b", "e4b", "12b", "26b", "31b")
CHIPS = tuple(f"M{generation}{tier}" for generation in range(1, 6) for tier in ("", " Pro", " Max", " Ultra"))
ACCEPTANCES = (0.5, 0.8)
DRAFT = 3


@dataclass(frozen=True, slots=True)
class Reported:
    """A public single-stream figure of another engine: plain `tokens` per second; `bandwidth` in GB/s."""

    source: str
    chip: str
    bandwidth: int
    model: str
    tokens: float


REPORTED = (
    Reported("mlxcel", "M3 Ultra", 819, "31b", 31.5),
    Reported("mlxcel", "M5 Max", 614, "12b", 39),
    Reported("mlxcel", "M1 Ultra", 800, "31b", 18),
    Reported("Ollama (MLX)", "M5 Max", 614, "26b", 115),
    Reported("an MLX engine", "M4 Max", 546, "e4b", 56.5),
    Reported("mlx-swift-lm", "M5 Max", 614, "e4b:8bit", 81.8),
)
"""Those whose chip is known. E4B on an M4 Max: 53 to 60."""

STOCK = {"e2b": 932, "e4b": 1145, "12b": 1204, "26b": 1396, "31b": 1496}
"""Kernels of a plain pass over mlx-lm's layers, by `profile_round.py`: what the others are taken to launch."""


@dataclass(frozen=True, slots=True)
class Drafted:
    """Public figures without and with a drafter: `gain` is how many times faster."""

    source: str
    chip: str
    bandwidth: int
    model: str
    gain: float


DRAFTED = (
    Drafted("mlxcel, lists", "M3 Ultra", 819, "31b", 83.6 / 31.5),
    Drafted("mlxcel, code", "M3 Ultra", 819, "31b", 76.6 / 31.8),
    Drafted("mlxcel, prose", "M3 Ultra", 819, "31b", 61.9 / 31.7),
    Drafted("mlxcel", "M5 Max", 614, "12b", 89 / 39),
    Drafted("mlxcel, at most", "M1 Ultra", 800, "31b", 17 / 18),
    Drafted("Ollama (MLX)", "M5 Max", 614, "26b", 157 / 115),
)


def _entry(name: str) -> Entry:
    entry = find_entry(name)
    if entry is None:
        raise SystemExit(f"there is no model {name}")
    return entry


def _machine(chip: str) -> Machine:
    return Machine("", chip, *parse_chip(chip), 0, 0, None)


def _times(name: str, pace: Pace, draft: int) -> float:
    entry = _entry(name)
    return round_seconds(entry.target_config(), entry.drafter_config() if draft else None, pace, draft)


def _theirs(one: Reported) -> float:
    """Seconds of a plain pass with the kernels of mlx-lm's layers."""
    entry = _entry(one.model)
    read = read_per_token(entry.target_config()) / (one.bandwidth * 1e9 * EFFICIENCY)
    return read + KERNEL * STOCK[entry.family]


def _table() -> list[str]:
    lines = [
        f"| | {' | '.join(FAMILIES)} |",
        f"|---|{'---:|' * len(FAMILIES)}",
    ]
    for chip in CHIPS:
        machine = _machine(chip)
        pace = Pace.of(machine)
        if pace is None or machine.bandwidth is None:
            continue
        cells = []
        for name in FAMILIES:
            plain, drafted = _times(name, pace, 0), _times(name, pace, DRAFT)
            speeds = " / ".join(f"{expected_tokens(DRAFT, each) / drafted:.0f}" for each in ACCEPTANCES)
            cells.append(f"{1000 * plain:.1f} → {1000 * drafted:.1f} ms; {1 / plain:.0f} → {speeds}")
        lines.append(f"| {chip}, {machine.bandwidth / 1e9:.0f} GB/s | {' | '.join(cells)} |")
    return lines


def _compared() -> list[str]:
    lines = ["| reported by | chip | model | reported tok/s | predicted | off by |", "|---|---|---|---:|---:|---:|"]
    for one in REPORTED:
        speed = 1 / _theirs(one)
        error = speed / one.tokens - 1
        lines.append(
            f"| {one.source} | {one.chip} | {one.model} | {one.tokens:g} | {speed:.0f} | {100 * error:+.0f} % |"
        )
    lines += ["", f"| reported by | chip | model | reported gain | predicted at {' / '.join(map(str, ACCEPTANCES))} |"]
    lines += ["|---|---|---|---:|---:|"]
    for two in DRAFTED:
        products = Products(two.bandwidth * 1e9 * EFFICIENCY, ROWS[parse_chip(two.chip)[0] or 0])
        pace = Pace(products, products)
        ratio = _times(two.model, pace, 0) / _times(two.model, pace, DRAFT)
        gains = " / ".join(f"{expected_tokens(DRAFT, each) * ratio:.2f}" for each in ACCEPTANCES)
        lines.append(f"| {two.source} | {two.chip} | {two.model} | {two.gain:.2f} | {gains} |")
    return lines


def report() -> str:
    """The section of docs/benchmarks.md."""
    counts = ", ".join(f"{name} {kernels(_entry(name).target_config())}" for name in FAMILIES)
    head = [
        "**A prediction, not a measurement.** Computed by `scripts/benchmarks/predict_speed.py` with the model that "
        f"`mlxmtp show` and `doctor` use: the weights a token reads at {EFFICIENCY:.0%} of the memory's speed, "
        f"{1e6 * KERNEL:.0f} µs for each kernel of a pass ({counts}; counted as above, without the "
        "kernels of `models/fused.py`, which have not run), what further rows cost on such a chip, and the further "
        "experts they choose. Where these numbers come from stands in `mlxmtp/machine/pace.py` and `speed.py`. Models "
        "as the short names fetch them (4 bits; the large drafters are packed to 4 bits at load); short context; the "
        "smaller bandwidth where a chip has two. Whether a model fits in memory is another matter.",
        "",
        f"Each cell: time of a plain pass → of a round with {DRAFT} draft tokens; tokens per second plain → with the "
        "drafter where each draft token after accepted ones is accepted with probability "
        f"{' / '.join(map(str, ACCEPTANCES))}. "
        "Where a later figure is below the first, drafting loses, and `auto` parks the drafter.",
        "",
    ]
    between = [
        "",
        "Against what other engines report for a single stream, plain (with the kernels of mlx-lm's layers) and with "
        "drafts (their acceptance is mostly unknown, so two are shown, for "
        f"{DRAFT} drafts):",
        "",
    ]
    return "\n".join([*head, *_table(), *between, *_compared()])


def main() -> None:
    """Predict and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--write", type=Path, metavar="FILE.md", help="put the tables between their markers there")
    options = parser.parse_args()
    text = report()
    print(text)
    if options.write:
        write_section(options.write, "prediction", f"\n{text}\n", script="predict_speed.py")


if __name__ == "__main__":
    main()
