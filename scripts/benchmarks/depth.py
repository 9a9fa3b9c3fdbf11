"""The automatic draft length by the clock: the built-in pair against every fixed length on the same texts.

    .venv/bin/python -m scripts.benchmarks.depth [--repetitions 5] [--write docs/benchmarks.md] [--json FILE]

What `simulate_depth.py` computes for many machines, measured on this one, which should do nothing else; ten
minutes. A suite is a row of texts, each decoded for some tokens by a decoder that keeps what it learned from one text
to the next; where texts of two kinds take turns, the draft length has to follow. Prompts are read off the clock. All
ways take turns at every text, since the machine's pace changes within seconds by more than what is looked for; every
automatic way begins a suite anew.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from statistics import median

import mlxmtp.models  # noqa: F401  (OpenBLAS before the first product)
from mlxmtp.decode.draft_length import LENGTHS, DraftLength
from scripts.benchmarks.engines.job import Job
from scripts.benchmarks.engines.ours import Ours, load
from scripts.benchmarks.harness.arms import TEXTS, random_words, rotated
from scripts.benchmarks.harness.options import repeated
from scripts.benchmarks.harness.report import machine
from scripts.benchmarks.harness.section import write_section

ROOT = Path(__file__).resolve().parents[2]
POCKET = ROOT / "assets" / "pocket"
EACH = 50
"""Tokens of a text."""
_ABOUT = """\
One run of `scripts/benchmarks/depth.py`, {day}, built-in pair on {machine}; {repetitions} repetitions, all ways in turn
at every text. Milliseconds for each token, medians; `auto` in percent of the time of the best fixed length, which is
known only afterwards, and of plain decoding in the same repetition (negative: faster): median, the least and the most.

| | best length | its ms | plain ms | auto / best, % | second start | auto / plain, % | second start |
|---|---:|---:|---:|---:|---:|---:|---:|"""
AUTO, AGAIN = "auto", "auto, second start"


@dataclass(frozen=True, slots=True)
class Suite:
    """Texts in a row. `blind`: with a drafter that has learned nothing."""

    name: str
    jobs: tuple[Job, ...]
    blind: bool = False


def suites(ours: Ours) -> list[Suite]:
    """Steady texts, texts in turn, and one that cannot be drafted."""
    questions = [text for kind in ("chat", "code", "list") for text in TEXTS[kind]]
    easy = [Job(ours.prompt_ids(text), EACH) for text in questions[::3]]
    sampled = [replace(job, temp=1.0, seed=7) for job in easy]
    words = [Job(ours.prompt_ids(*random_words(index)), EACH) for index in range(7)]
    turns = chain.from_iterable(zip(easy[:4], words[:4], strict=True))
    return [
        Suite("answers", tuple(easy)),
        Suite("answers, temperature 1", tuple(sampled)),
        Suite("random words", tuple(words)),
        Suite(f"answer and random words in turn, {EACH} tokens each", tuple(turns)),
        Suite("hopeless: an untrained drafter", tuple(replace(job, blind=True) for job in easy), blind=True),
    ]


def measure(ours: Ours, suite: Suite, repetitions: int) -> dict[str, list[float]]:
    """Milliseconds for each token, by way and repetition."""
    lengths = (0, 1, 3) if suite.blind else LENGTHS
    ours.warm([replace(suite.jobs[0], draft=way) for way in (*lengths, AUTO)])
    first = DraftLength()
    for job in suite.jobs:
        _seconds(ours, replace(job, draft=AUTO), first)
    found: dict[str, list[float]] = {str(way): [] for way in (*lengths, AUTO, AGAIN)}
    for _ in range(repetitions):
        depths = {AUTO: DraftLength(), AGAIN: DraftLength()}
        depths[AGAIN].start_from(first.learned())
        seconds: dict[int | str, float] = dict.fromkeys((*lengths, *depths), 0.0)
        for index, job in enumerate(suite.jobs):
            for way in rotated(list(seconds), index):
                draft = way if isinstance(way, int) else "auto"
                seconds[way] += _seconds(ours, replace(job, draft=draft), depths.get(way))
        for way, spent in seconds.items():
            found[str(way)].append(1000 * spent / sum(job.tokens for job in suite.jobs))
    return found


def _seconds(ours: Ours, job: Job, depth: DraftLength | None) -> float:
    """From the first token, which ends the reading of the prompt, to the last; `depth` chooses the draft length."""
    begun: list[float] = []
    if depth is not None:
        ours.control(job, depth)
    ours.run(job, lambda _: begun.append(time.perf_counter()))
    return time.perf_counter() - begun[0]


def _percent(times: list[float], base: list[float]) -> str:
    """`+1.2 (-0.3 to +2.0)`: how much longer, repetition by repetition."""
    over = [100 * (one / other - 1) for one, other in zip(times, base, strict=True)]
    return f"{median(over):+.1f} ({min(over):+.1f} to {max(over):+.1f})"


def page(found: dict[str, dict[str, list[float]]], repetitions: int) -> str:
    """The section of the benchmarks page."""
    rows = []
    for name, ways in found.items():
        middle = {way: median(times) for way, times in ways.items()}
        best = min((way for way in middle if way.isdigit()), key=lambda way: middle[way])
        cells = [_percent(ways[way], ways[base]) for base in (best, "0") for way in (AUTO, AGAIN)]
        rows.append(f"| {name} | {best} | {middle[best]:.2f} | {middle['0']:.2f} | {' | '.join(cells)} |")
    day = datetime.now(UTC).date().isoformat()
    return "\n".join([_ABOUT.format(day=day, machine=machine(), repetitions=repetitions), *rows])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write where told to."""
    options = repeated(__doc__, 5).parse_args(arguments)
    ours = load(POCKET / "target", POCKET / "drafter")
    found = {}
    for suite in suites(ours):
        found[suite.name] = measure(ours, suite, options.repetitions)
        print(
            suite.name, {way: [round(one, 2) for one in times] for way, times in found[suite.name].items()}, flush=True
        )
    text = page(found, options.repetitions)
    print(text)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if options.write:
        write_section(options.write, "draft length, measured", text, script="depth.py",
                      heading="The draft length, by the clock")  # fmt: skip


if __name__ == "__main__":
    main()
