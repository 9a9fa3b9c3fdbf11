"""Time the first answer of a process: the automatic draft length beside the fixed ones, in turn, each in new processes.

    .venv/bin/python -m scripts.benchmarks.first_answers [--repetitions 7] [--write docs/benchmarks.md] [--json FILE]
    .venv/bin/python -m scripts.benchmarks.first_answers --long [--repetitions 7] ...
    .venv/bin/python -m scripts.benchmarks.first_answers --pair build/ordinary/pair [--repetitions 7] ...

`mlxmtp ask` is a process an answer, so each length that it tries has to pay for its trace within that answer. The rows
are short and long answers, after short and long prompts, greedy and sampled, text that is easy to draft and text that
is not; kernels are in their cache, and what drafting learned in the repetitions before is there, as on a used machine.
`--long`: after 2,000 and 16,000 tokens of documents, whose keys and values each process takes from the disk, so that
nobody waits for them to be read. `--pair`: answers of another pair to its `prompts.json`; scripts/pocket/ordinary.py
makes one of middling acceptance. On a machine that does nothing else.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median

from scripts.benchmarks.harness.arms import random_words, rotated
from scripts.benchmarks.harness.options import repeated, say
from scripts.benchmarks.harness.report import machine
from scripts.benchmarks.harness.section import write_section

ROOT = Path(__file__).resolve().parents[2]
ARMS = ("0", "auto", "3", "8")
WARM_UP = 1
"""Repetitions that do not count: kernels are built and drafting learns."""
_ABOUT = """\
One run of `scripts/benchmarks/first_answers.py`, {day}, {pair} on {machine}; medians of {repetitions}
repetitions, each answer in a process of its own (`mlxmtp ask`), all draft lengths in turn. Tokens per second of the
answer; `auto` beside the best column: the time of an answer of as many tokens, in percent more (by repetition: least to
most).

| first answer of a process | tokens | plain | `auto` | 3 drafts | 8 drafts | `auto` behind the best, % |
|---|---:|---:|---:|---:|---:|---:|"""


@dataclass(frozen=True, slots=True)
class Row:
    """One question to `mlxmtp ask`."""

    name: str
    question: str
    file: Path | None = None
    temp: float = 0.0
    seed: int = 1
    tokens: int | None = None
    """At most; None: to its natural end."""
    cache: bool = False
    """Take the prompt's keys and values from the disk."""
    pair: Path | None = None
    """A folder with target and drafter; None: the built-in ones."""

    def arguments(self) -> list[str]:
        """The words for the command line."""
        models = ["-m", "pocket"] if self.pair is None else ["-m", f"{self.pair / 'target'}"]
        models += [] if self.pair is None else ["--draft-model", f"{self.pair / 'drafter'}"]
        sampling = ["--temp", f"{self.temp}", "--seed", f"{self.seed}"]
        limit = [] if self.tokens is None else ["--max-tokens", f"{self.tokens}"]
        file = [] if self.file is None else ["-f", str(self.file)]
        return [*models, *sampling, *limit, *(["--cache"] if self.cache else []), *file, "--", self.question]


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer: its tokens and how many of them a second."""

    row: str
    arm: str
    repetition: int
    tokens: int
    speed: float


def main() -> None:
    """Measure and report."""
    parser = repeated(__doc__, 7)
    parser.add_argument("--root", type=Path, default=ROOT, help="checkout to measure (default: this one)")
    parser.add_argument("--long", action="store_true", help="answers after long texts instead")
    parser.add_argument("--pair", type=Path, metavar="FOLDER", help="with `target`, `drafter` and `prompts.json`")
    parser.add_argument("--only", help="rows whose name has this in it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        answers: Callable[[Path], list[Row]]
        answers, kind, heading = first_answers, "", ""
        if options.pair:
            answers, kind, heading = partial(of_pair, options.pair), ", another pair", " of another pair"
        elif options.long:
            answers, kind, heading = after_texts, ", long", " after long texts"
        rows = [row for row in answers(Path(home)) if (options.only or "") in row.name]
        samples = _measure(rows, options.root, Path(home), options.repetitions)
    pair, day = "a pair that was not tuned for" if options.pair else "built-in pair", f"{datetime.now(UTC):%Y-%m-%d}"
    lines = [_ABOUT.format(day=day, pair=pair, machine=machine(), repetitions=options.repetitions)]
    lines += [_line(row.name, samples) for row in rows]
    print("\n".join(lines))
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(one) for one in samples], indent=1) + "\n", encoding="utf-8")
    if options.write is not None:
        section, heading = f"first-answers{kind}", f"First answers{heading}"
        write_section(options.write, section, "\n".join(lines), script="first_answers.py", heading=heading)


def first_answers(folder: Path) -> list[Row]:
    """All rows; their files are written into `folder`."""
    short, long = folder / "short.md", folder / "long.md"
    material = "\n".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("architecture.md", "bench.md"))
    short.write_text(material[:6_000], encoding="utf-8")
    long.write_text(material[6_000:14_500], encoding="utf-8")
    detail = "Explain in detail how drafting works."
    return [
        Row("list the commands", "List all commands."),
        Row("a short answer", "What is MTP?"),
        Row("rewrite a file of 6 kB", "Rewrite this file.", short),
        Row("temperature 1.5", detail, temp=1.5, tokens=64),
        Row("temperature 1", detail, temp=1.0, seed=3, tokens=64),
        Row("64 tokens after 8 kB", "What is a drafter?", long, tokens=64),
        Row("random words", "".join(random_words(1)), tokens=64),
    ]


def after_texts(folder: Path) -> list[Row]:
    """Rows after long texts; their files are written into `folder`."""
    text, rows = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"), []
    for tokens, characters in ((2_000, 6_400), (16_000, 52_000)):
        file = folder / f"{tokens}.md"
        file.write_text(text[:characters], encoding="utf-8")
        rows.append(Row(f"64 tokens after about {tokens:,}", "What is a drafter?", file, tokens=64, cache=True))
    return rows


def of_pair(pair: Path, _: Path) -> list[Row]:
    """Rows of 128 tokens after the prompts of a pair."""
    prompts = json.loads((pair / "prompts.json").read_text(encoding="utf-8"))
    return [Row(f"prompt {i}", prompt, tokens=128, pair=pair) for i, prompt in enumerate(prompts[:8], 1)]


def _measure(rows: list[Row], root: Path, home: Path, repetitions: int) -> list[Sample]:
    samples = []
    for repetition in range(WARM_UP + repetitions):
        say(f"repetition {repetition} of {repetitions}")
        for row in rows:
            for arm in rotated(ARMS, repetition):
                tokens, speed = _ask(row, arm, root, home)
                if repetition >= WARM_UP:
                    samples.append(Sample(row.name, arm, repetition, tokens, speed))
    return samples


def _ask(row: Row, arm: str, root: Path, home: Path) -> tuple[int, float]:
    command = [sys.executable, "-m", "mlxmtp", "ask", "--json", "--num-draft-tokens", arm]
    done = subprocess.run(
        [*command, *row.arguments()],
        env=os.environ | {"PYTHONPATH": str(root), "MLXMTP_HOME": str(home)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    stats = json.loads(done.stdout)["stats"]
    return stats["generation_tokens"], stats["generation_tps"]


def _line(name: str, samples: list[Sample]) -> str:
    mine = [one for one in samples if one.row == name]
    speeds = {arm: [one.speed for one in mine if one.arm == arm] for arm in ARMS}
    best = max((arm for arm in ARMS if arm != "auto"), key=lambda arm: median(speeds[arm]))
    behind = 100 * (median(speeds[best]) / median(speeds["auto"]) - 1)
    each = [100 * (one / auto - 1) for one, auto in zip(speeds[best], speeds["auto"], strict=True)]
    shown = f"{behind:+.1f} ({min(each):+.1f} to {max(each):+.1f})"
    tokens = median(one.tokens for one in mine)
    return f"| {name} | {tokens:.0f} | {' | '.join(f'{median(speeds[arm]):.0f}' for arm in ARMS)} | {shown} |"


if __name__ == "__main__":
    main()
