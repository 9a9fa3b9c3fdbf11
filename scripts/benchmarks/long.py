"""Measure long prompts beside mlx-lm and mlx-vlm: reading them, and decoding after them, plain and with the drafter.

The same token ids for everybody, one checkpoint, a process per library, arms in turn, medians: a conversation of the
length asked for, in turns of pocket's own material, and a question whose answer is the same after all of them, so that
nothing differs but the length. Our own arms also read this repository's documents and go on from there, in text that
drafts worse. Environments as for peers.py. On a machine that does nothing else:

    python3 -m scripts.benchmarks.long --write docs/benchmarks.md --json build/long.json

A length beyond the model's context is measured on a copy whose configuration allows it.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from scripts.benchmarks.harness.drive import Worker, WorkerError
from scripts.benchmarks.harness.options import comparison, say
from scripts.benchmarks.harness.pair import allowing
from scripts.benchmarks.harness.report import machine
from scripts.benchmarks.harness.section import write_section

ROOT = Path(__file__).resolve().parents[2]
CONVERSATION, DOCUMENTS = "conversation", "documents"
QUESTION = "Write me a small chat program in Python."
ABOUT_DOCUMENTS = ("What is a drafter?", "Why is drafting lossless?")
FAR = 40_000
"""Tokens from which on there is the conversation only, and once: with 65,536 that takes half an hour."""
SKIPPED = 8  # tokens after the first whose time does not count: a new buffer size is traced there


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to answer: label, engine of `engines.worker`, draft tokens."""

    label: str
    engine: str
    draft: int | str = 0


ARMS = {
    "ours": Arm("mlxmtp plain", "ours"),
    "ours-mtp": Arm("mlxmtp MTP", "ours", "auto"),
    "lm": Arm("mlx-lm plain", "mlx_lm"),
    "vlm": Arm("mlx-vlm plain", "mlx_vlm"),
    "vlm-mtp": Arm("mlx-vlm MTP", "mlx_vlm", "auto"),
}
OWN_ARMS = ("ours", "ours-mtp")


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer: seconds to its first token, and seconds per token later on; `same`: the text of the first arm.

    `prompt`: tokens in it, at most `length`.
    """

    material: str
    length: int
    prompt: int
    repetition: int
    arm: str
    first: float
    per_token: float
    same: bool


def main() -> None:
    """Measure and report."""
    options = _arguments()
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory() as temporary:
        pair = allowing(options.pair, max(options.lengths) + options.tokens, Path(temporary))
        workers = _start(options, pair)
        try:
            for length, repetition in _plan(options):
                samples += _measure(workers, options, length, repetition)
        finally:
            for worker in workers.values():
                worker.close()
    text = _report(samples, options)
    print(text)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        record = {"schema": "mlxmtp-bench-long-2", "machine": machine(), "samples": [asdict(one) for one in samples]}
        options.json.write_text(json.dumps(record) + "\n", encoding="utf-8")
    if options.write:
        write_section(options.write, "long", text, script="long.py", heading="Long prompts")


def _start(options: argparse.Namespace, pair: Path) -> dict[str, Worker]:
    """A worker for every engine that is wanted and there; kernels are built before anything is measured."""
    workers: dict[str, Worker] = {}
    for engine in dict.fromkeys(["ours", *(ARMS[arm].engine for arm in options.arms)]):
        say(f"loading {engine}")
        try:
            python = options.ours if engine == "ours" else options.peers
            workers[engine] = Worker(python, engine, pair / "target", pair / "drafter")
        except (WorkerError, OSError) as error:
            if engine == "ours":
                raise SystemExit(f"mlxmtp does not start: {error}") from error
            say(f"{engine} is left out: {error}")
    options.arms = [arm for arm in options.arms if ARMS[arm].engine in workers]
    prompt = _prompt(workers["ours"], CONVERSATION, 600)
    for arm in options.arms:
        say(f"building the kernels of {ARMS[arm].label}")
        job = {"prompt": prompt, "tokens": 24, "draft": ARMS[arm].draft}
        workers[ARMS[arm].engine].ask("warm", jobs=[job])
    return workers


def _plan(options: argparse.Namespace) -> Iterator[tuple[int, int]]:
    """Every length once, then again, so that what the machine does meanwhile falls on all; until the time is over."""
    begin = time.monotonic()
    took: dict[int, float] = {}
    for repetition in range(options.repetitions):
        for length in (length for length in options.lengths if length < FAR or not repetition):
            now = time.monotonic()
            if (now - begin + took.get(length, 0.0)) / 60 < options.minutes:
                yield length, repetition
                took[length] = time.monotonic() - now
            else:
                say(f"no time for {length:,} tokens, repetition {repetition + 1}")


def _measure(workers: dict[str, Worker], options: argparse.Namespace, length: int, repetition: int) -> list[Sample]:
    """The arms in turn, on each of the materials."""
    samples = []
    for material in (CONVERSATION,) if length >= FAR else (CONVERSATION, DOCUMENTS):
        arms = [arm for arm in options.arms if material == CONVERSATION or arm in OWN_ARMS]
        prompt, text = _prompt(workers["ours"], material, length), None
        for arm in arms if repetition % 2 == 0 else arms[::-1]:
            begin = time.monotonic()
            job = {"prompt": prompt, "tokens": options.tokens, "draft": ARMS[arm].draft}
            done = workers[ARMS[arm].engine].ask("run", **job)
            text = done["tokens"] if text is None else text
            counted = [mark for mark in done["marks"] if mark[0] > SKIPPED]
            (n, start), (m, end) = counted[0], counted[-1]
            first, per_token, same = done["marks"][0][1], (end - start) / (m - n), text == done["tokens"]
            samples.append(Sample(material, length, len(prompt), repetition, arm, first, per_token, same))
            say(f"{material} {length:6} {ARMS[arm].label:14} {len(prompt) / first:8.0f} tok/s "
                f"{1000 * per_token:7.1f} ms/tok ({time.monotonic() - begin:.0f} s)")  # fmt: skip
    return samples


def _prompt(ours: Worker, material: str, length: int) -> list[int]:
    """Token ids: a question after turns of conversation (at most `length`) or after so much of the documents."""
    if material == CONVERSATION:
        ids: list[int] = ours.ask("conversation", turns=_turns(), text=QUESTION, length=length)["answer"]
        return ids
    documents = "\n\n".join(path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("docs/*.md")))
    asked, other, material_ids = ours.ask(
        "prompts", prompts=[{"text": text} for text in (*ABOUT_DOCUMENTS, documents)]
    )["answer"]  # fmt: skip
    same = next(i for i, (a, b) in enumerate(zip(asked, other, strict=False)) if a != b)
    material_ids = material_ids[same : -(len(asked) - same)]
    fill = length - len(asked)
    return [*asked[:same], *(material_ids * (fill // len(material_ids) + 1))[:fill], *asked[same:]]


def _turns() -> list[tuple[str, str]]:
    """Question and answer of everything pocket was taught, in an order of its own."""
    turns = []
    for path in sorted((ROOT / "scripts/pocket/corpus").glob("*.toml")):
        intents = tomllib.loads(path.read_text(encoding="utf-8")).get("intent", [])
        turns += [(f"Tell me about {one['topic']}.", one["a"][0]) for one in intents if {"topic", "a"} <= one.keys()]
    random.Random(0).shuffle(turns)
    return turns


def _report(samples: Sequence[Sample], options: argparse.Namespace) -> str:
    talk = [sample for sample in samples if sample.material == CONVERSATION]
    documents = [sample for sample in samples if sample.material == DOCUMENTS]
    lengths = sorted({sample.length for sample in samples})
    counts = ", ".join(f"{len({s.repetition for s in talk if s.length == n})} of {n:,}" for n in lengths)
    pair = options.pair.resolve()
    name = pair.relative_to(ROOT) if pair.is_relative_to(ROOT) else pair.name
    same = sum(sample.same for sample in samples)
    parts = [
        f"One run of `scripts/benchmarks/long.py`, {datetime.now(UTC):%Y-%m-%d}, {machine()}. Checkpoint `{name}`, "
        f"{options.tokens} tokens after each prompt, greedy. Medians of repetitions ({counts} tokens); {same} of "
        f"{len(samples)} texts are the first arm's. × is how much faster mlxmtp's own arm of the kind is.",
        "Reading a conversation, tokens per second:",
        _table(talk, options.arms, lambda s: s.prompt / s.first, "{:,.0f}", higher=True),
        "Answering the same question after it in the same words, milliseconds per token:",
        _table(talk, options.arms, lambda s: 1000 * s.per_token, "{:.1f}", higher=False),
    ]
    if documents:
        parts += [
            "Going on after as many tokens of this repository's documents, milliseconds per token:",
            _table(documents, OWN_ARMS, lambda s: 1000 * s.per_token, "{:.1f}", higher=False),
        ]
    return "\n\n".join(parts)


def _table(
    samples: Sequence[Sample],
    arms: Sequence[str],
    value: Callable[[Sample], float],
    form: str,
    *,
    higher: bool,
) -> str:
    """Arms by lengths. `×` is how much better mlxmtp's own arm of the kind is, and in a last line MTP than plain (of
    times): medians over repetitions."""
    lengths = sorted({sample.length for sample in samples})
    rows = [f"| | {' | '.join(f'{n:,}' for n in lengths)} |", f"|---|{'---:|' * len(lengths)}"]

    def ratios(length: int, own: str, other: str) -> list[float]:
        mine, them = (
            {s.repetition: value(s) for s in samples if (s.length, s.arm) == (length, arm)} for arm in (own, other)
        )
        both = [(mine[r], them[r]) for r in them if r in mine]
        return [a / b if higher else b / a for a, b in both]

    for arm in arms:
        own = "ours-mtp" if arm.endswith("mtp") else "ours"
        cells = []
        for length in lengths:
            found = [value(s) for s in samples if (s.length, s.arm) == (length, arm)]
            cell = form.format(median(found)) if found else ""
            if found and arm != own:
                cell += f" (×{median(ratios(length, own, arm)):.2f})"
            cells.append(cell)
        rows.append(f"| {ARMS[arm].label} | {' | '.join(cells)} |")
    if not higher:
        for label, mtp, plain in (
            ("MTP's gain, mlxmtp", *reversed(OWN_ARMS)),
            ("MTP's gain, mlx-vlm", "vlm-mtp", "vlm"),
        ):
            gains = [ratios(length, mtp, plain) for length in lengths]
            if any(gains):
                rows.append(f"| {label} | {' | '.join(f'×{median(g):.2f}' if g else '' for g in gains)} |")
    return "\n".join(rows)


def _arguments() -> argparse.Namespace:
    parser = comparison(__doc__, ROOT)
    add = parser.add_argument
    add("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), metavar="ARM", help=f"of {' '.join(ARMS)}")
    add("--lengths", nargs="+", type=int, default=[512, 4096, 16384, 65536], metavar="N",
        help="tokens of the prompts")  # fmt: skip
    add("-n", "--tokens", type=int, default=160, help="new tokens (default: 160)")
    add("-r", "--repetitions", type=int, default=2, help="(default: 2)")
    add("--minutes", type=float, default=75.0, help="start nothing that would end later (default: 75)")
    add("--json", type=Path, metavar="FILE", help="every sample")
    add("--write", type=Path, metavar="FILE.md", help="replace the section “Long prompts” there")
    return parser.parse_args()


if __name__ == "__main__":
    main()
