"""How close the automatic draft length comes to the best fixed one known afterwards: a simulation, no clock is read.

    python -m scripts.benchmarks.simulate_depth [--write docs/benchmarks.md] [--plot assets/depth-regret.svg]
    python -m scripts.benchmarks.simulate_depth --chips [--write docs/benchmarks.md]

Recorded texts (simulation/traces, made by record_traces.py) are decoded by every way of choosing lengths on every
machine of simulation/material.py, with noisy clocks (simulation/replay.py). A few minutes; needs nothing but this
checkout, and matplotlib for the chart. `--chips`: short first answers on Apple's chips, whose kernels' cliffs are known
to the controller or not; two minutes.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlxmtp.decode.draft_length import LENGTHS, DraftLength
from scripts.benchmarks.harness.section import write_section
from scripts.benchmarks.simulation.baselines import MovingAverages, SixtyFive
from scripts.benchmarks.simulation.material import Profile, Suite, chip_costs, chips, drawn, profiles, suites
from scripts.benchmarks.simulation.replay import Controller, Fixed, Noise, best_fixed, play

SEEDS = range(3)
DRAWS = range(16)
"""Texts of a kind on a chip: so short that fewer would be mostly luck."""
AUTO, AGAIN = "auto", "auto, second start"
ANSWERS = (64, 128, 400)
STRETCHES = (0.8, 1.0, 1.25)
"""Cost of further rows on a machine, beside what is known of its kind of chip."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One suite on one machine: times per token in plain rounds, the best fixed length's and each way's."""

    suite: Suite
    profile: Profile
    best: int
    least: float
    spent: dict[str, float]

    def regret(self, way: str) -> float:
        """Percent above the best fixed length."""
        return 100 * (self.spent[way] / self.least - 1)


def second_start(profile: Profile) -> Callable[[], DraftLength]:
    """Makes controllers that begin with what one learned in another conversation on the same machine."""
    first, text = DraftLength(), next(suite for suite in suites() if suite.name == "random words")
    play(first, text.accepted, profile.costs, Noise(), 100, profile.ahead)
    learned = first.learned()

    def make() -> DraftLength:
        depth = DraftLength()
        depth.start_from(learned)
        return depth

    return make


def ways(profile: Profile) -> dict[str, Callable[[], Controller]]:
    """Everybody who plays."""
    return {
        AUTO: DraftLength,
        AGAIN: second_start(profile),
        "moving averages (before)": MovingAverages,
        "65 % rule, never parks": SixtyFive,
        "always 0": lambda: Fixed(0),
        "always 3": lambda: Fixed(3),
    }


def simulate() -> list[Cell]:
    """Everybody on every suite and machine."""
    cells = []
    for profile in profiles():
        players = ways(profile)
        for suite in suites():
            best, least = best_fixed(suite.accepted, profile.costs)
            spent = {name: _per_token(make, suite, profile) for name, make in players.items()}
            cells.append(Cell(suite, profile, best, least, spent))
        print(f"{profile.name}: done", file=sys.stderr, flush=True)
    return cells


def _per_token(make: Callable[[], Controller], suite: Suite, profile: Profile) -> float:
    played = (play(make(), suite.accepted, profile.costs, Noise(), seed, profile.ahead) for seed in SEEDS)
    return sum(one.per_token for one in played) / len(SEEDS)


def total(cells: Sequence[Cell], way: str) -> float:
    """Percent above the best fixed lengths over all of these together."""
    return 100 * (sum(cell.spent[way] for cell in cells) / sum(cell.least for cell in cells) - 1)


def markdown(cells: Sequence[Cell]) -> str:
    """The section without its heading."""
    machines = list(dict.fromkeys(cell.profile.name for cell in cells))
    names = list(dict.fromkeys(cell.suite.name for cell in cells))
    by = {(cell.suite.name, cell.profile.name): cell for cell in cells}
    switching = [cell for cell in cells if cell.suite.switches]
    hopeless = [cell for cell in cells if not any(cell.suite.accepted)]
    steady = [cell for cell in cells if not cell.suite.switches and any(cell.suite.accepted)]
    lines = [
        "Time above that of the best fixed draft length known afterwards (of 0 to 8, the best for each suite and "
        "machine), in percent; negative: faster than any fixed length. By `scripts/benchmarks/simulate_depth.py` from "
        "texts recorded with the built-in pair; clocks are noisy: 8 % jitter, one pause in a hundred rounds, busy "
        "stretches.",
        "",
        "| | texts that switch, together | steady texts, together | hopeless text | worst of all |",
        "|---|---:|---:|---:|---:|",
    ]
    for way in cells[0].spent:
        worst = max(cell.regret(way) for cell in cells)
        shown = [f"{total(group, way):.1f}" for group in (switching, steady, hopeless)]
        lines.append(f"| {way} | {' | '.join(shown)} | {worst:.0f} |")
    words = [cell for cell in cells if cell.suite.name == "random words hardest to draft"]
    ratios = [cell.spent["always 0"] / cell.spent[AUTO] for cell in words]
    lines += ["", f"On the random words hardest to draft `{AUTO}` has {min(ratios):.2f} to {max(ratios):.2f} times the "
              f"speed of plain decoding ({ratios[0]:.2f} on {machines[0]})."]  # fmt: skip
    lines += ["", f"`{AUTO}` by suite and machine (in brackets the best fixed length):", ""]
    lines += [f"| | {' | '.join(machines)} |", f"|---|{'---:|' * len(machines)}"]
    for name in names:
        row = [f"{by[name, machine].regret(AUTO):.1f} ({by[name, machine].best})" for machine in machines]
        lines.append(f"| {name} | {' | '.join(row)} |")
    lines += ["", "Time of a round with 1, 3 and 8 drafts, in plain rounds:", ""]
    for profile in dict.fromkeys(cell.profile.name for cell in cells):
        found = next(cell.profile for cell in cells if cell.profile.name == profile)
        costs = ", ".join(f"{found.costs[k]:.2f}" for k in (1, 3, 8))
        lines.append(f"- {profile}: {costs}; {found.source}.")
    return "\n".join(lines) + "\n"


def markdown_of_chips() -> str:
    """First answers on Apple's chips, with a line for the costs of rounds and with what is known of the chip."""
    lines = [
        "Time of a first answer of so many tokens above that of the best fixed length, in percent: with a line as the "
        "guess of what rounds cost → with the costs of the chip's products by rows (`mlxmtp/machine/pace.py`). Means "
        "over texts in which 50, 70, 80 and 90 % of the drafts are accepted, and machines whose further rows cost "
        f"{STRETCHES[0]} to {STRETCHES[-1]} times what is known, with a drafter half as dear again. A trace takes one "
        "round of its length. By `scripts/benchmarks/simulate_depth.py --chips`; nothing ran on such a machine.",
        "",
        f"| | {' | '.join(f'{tokens} tokens' for tokens in ANSWERS)} |",
        f"|---|{'---:|' * len(ANSWERS)}",
    ]
    for generation, chip in chips().items():
        cells = []
        for tokens in ANSWERS:
            line, known = (_first_answers(tokens, generation, guess=guess) for guess in (False, True))
            cells.append(f"{line:.1f} → {known:.1f}")
        lines.append(f"| {chip} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _first_answers(tokens: int, generation: int, *, guess: bool) -> float:
    """Percent above the best fixed length; `guess`: the controller knows the chip."""

    def make() -> DraftLength:
        depth = DraftLength()
        if guess:
            depth.expect(dict(enumerate(chip_costs(generation))))
        return depth

    shares = []
    for stretch in STRETCHES:
        costs = chip_costs(generation, 0.06, stretch)
        for chance in (0.5, 0.7, 0.8, 0.9):
            spent = dict.fromkeys((AUTO, *LENGTHS), 0.0)
            for seed in DRAWS:
                text = drawn(chance, tokens, seed)
                for way in spent:
                    player = make() if way == AUTO else Fixed(way)
                    spent[way] += play(player, text, costs, Noise(), seed, 1, 1.0).spent
            shares.append(spent.pop(AUTO) / min(spent.values()) - 1)
    return 100 * sum(shares) / len(shares)


def main() -> None:
    """Simulate, print, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, metavar="FILE.md", help="replace the section there")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw regrets and one run")
    parser.add_argument("--chips", action="store_true", help="only first answers on Apple's chips")
    options = parser.parse_args()
    if options.chips:
        text = markdown_of_chips()
        print(text)
        if options.write:
            write_section(options.write, "chips", text.removesuffix("\n"), script="simulate_depth.py --chips")
        return
    cells = simulate()
    text = markdown(cells)
    print(text)
    if options.plot:
        from scripts.benchmarks.simulation.plot import draw

        draw(cells, options.plot)
        if options.write:
            chart = os.path.relpath(options.plot.resolve(), options.write.resolve().parent)
            text = f"![Regret by suite, and the draft lengths of one run]({chart})\n\n{text}"
    if options.write:
        text = text.removesuffix("\n")
        write_section(options.write, "draft length", text, script="simulate_depth.py", heading="The draft length")


if __name__ == "__main__":
    main()
