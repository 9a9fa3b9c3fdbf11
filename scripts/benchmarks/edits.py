"""Measure drafts copied from the text beside those of the drafter, on edits, and what looking for them costs elsewhere.

    .venv/bin/python -m scripts.benchmarks.edits [--elsewhere] --write docs/benchmarks.md

The built-in model cannot edit, so the answers to the bench suite `edit` are scripted: the networks compute every round
as always, and then the target chooses the token of the script and the drafter, at a share of the places, another one.
Which places are wrong is random, but the same for every arm. Rounds, costs and the choice of the draft length are the
product's own. Elsewhere means the built-in model's own answers, with nothing scripted;
`--elsewhere` measures only these, with the drafter and with copies beside it. On a machine that does nothing else.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import mlxmtp.models  # noqa: F401  (puts OpenBLAS under mlx, so it comes before mlx)

# isort: split
import mlx.core as mx

from mlxmtp.bench.suite import Text, read_suites
from mlxmtp.decode.decoder import Decoder
from mlxmtp.engine.tokenizer import Tokenizer
from mlxmtp.models.drafter import Drafter, Scores
from mlxmtp.models.load import load_drafter, load_target
from mlxmtp.models.target import Target
from scripts.benchmarks.harness.arms import TEXTS, rotated
from scripts.benchmarks.harness.options import repeated, say
from scripts.benchmarks.harness.report import machine
from scripts.benchmarks.harness.section import write_section

POCKET = Path(__file__).resolve().parents[2] / "assets/pocket"
RIGHT = (0.6, 0.85)
"""Shares of the drafter's tokens that are right: of middling text and of easy text."""
ARMS: dict[str, dict[str, Any]] = {
    "plain": {"num_draft_tokens": 0},
    "mtp": {"draft_from": ("mtp",)},
    "mtp,copy": {"draft_from": ("mtp", "copy")},
}
_SURE = 1e6


class Script:
    """A text by position, and the drafter's guesses at it."""

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary = vocabulary
        self.tokens, self.guesses = mx.zeros((1,), mx.int32), mx.zeros((1,), mx.int32)

    def tell(self, text: Sequence[int], right: float) -> None:
        """Take another text of which the drafter knows the share `right`."""
        draw = random.Random(len(text))
        wrong = [token if draw.random() < right else (token + 1) % self._vocabulary for token in text]
        room = [0] * 64  # rounds look beyond the end
        self.tokens, self.guesses = mx.array([*text, *room], mx.int32), mx.array([*wrong, *room], mx.int32)

    def scores(self, tokens: mx.array, positions: mx.array) -> mx.array:
        """[L, V], the highest at the token of each position."""
        return mx.where(mx.arange(self._vocabulary) == tokens[positions][:, None], _SURE, -_SURE)


class ScriptedTarget:
    """A target that computes as always and then says what the script has."""

    def __init__(self, target: Target, script: Script) -> None:
        self._target, self._script, self._positions = target, script, mx.zeros((1,), mx.int32)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    def hidden(self, tokens: mx.array, view: Any, *rest: Any, **options: Any) -> mx.array:
        self._positions = view.positions
        return self._target.hidden(tokens, view, *rest, **options)

    def logits(self, hidden: mx.array) -> mx.array:
        own = self._target.logits(hidden)
        return own + self._script.scores(self._script.tokens, self._positions[-len(own) :] + 1)


class ScriptedDrafter:
    """The same for a drafter and its guesses."""

    def __init__(self, drafter: Drafter, script: Script) -> None:
        self._drafter, self._script = drafter, script

    def context(self, buffers: list[mx.array], offset: mx.array) -> Any:
        return self._drafter.context(buffers, offset)

    def step(self, embedding: mx.array, hidden: mx.array, position: mx.array, *rest: Any) -> tuple[Scores, mx.array]:
        scores, hidden = self._drafter.step(embedding, hidden, position, *rest)
        guess = self._script.scores(self._script.guesses, position)
        return Scores(guess + 0 * scores.values.sum(), None), hidden


def answer(text: Text) -> str:
    """What a model that follows the instruction of a text of the suite would say."""
    return _ANSWERS[text.name](text.material)


def _replacing(*pairs: tuple[str, str]) -> Callable[[str], str]:
    def replace(text: str) -> str:
        for old, new in pairs:
            assert old in text, old
            text = text.replace(old, new)
        return text

    return replace


def _plan(text: str) -> str:
    rows = []
    for line in text.splitlines():
        if line.startswith("- "):
            plant, bed, sown, harvest = line[2:].rsplit(", ", 3)
            sown, harvest = sown.removeprefix("sown on "), harvest.removeprefix("harvest from ")
            rows.append({"plant": plant, "bed": bed, "sown": sown, "harvest": harvest})
    return json.dumps(rows, indent=2)


_LAST = """\
            lines = []
    return found"""
_LAST_TOO = """\
            lines = []
    if lines:
        found.append(" ".join(lines))
    return found"""
_REMOVE = """\
        node = self.find(word)
        if node is None or not node.ends:
            return False
        node.ends = False
        return True"""
_ANSWERS: dict[str, Callable[[str], str]] = {
    "rename": _replacing(("Stock", "Inventory"), ("OutOfInventory", "OutOfStock"), ("take(", "withdraw(")),
    "fix": _replacing((_LAST, _LAST_TOO)),
    "comments": _replacing(
        ("Sichert die Fotos des Vereins auf die zweite Platte.", "Backs up the photos to the second disk."),
        ("Ohne Platte wird nichts getan.", "Without the disk nothing is done."),
        ("Unveränderte Dateien werden nur verlinkt.", "Unchanged files are only linked."),
        ("Nur die neuesten Sicherungen bleiben.", "Only the latest backups stay."),
    ),
    "fill-in": _replacing(("        ...", _REMOVE)),
    "invitation": _replacing(
        ("13th", "14th"), ("Saturday 20 June", "Saturday 19 June"), ("four o'clock", "half past four")
    ),
    "to-json": _plan,
}


def main() -> None:
    """Measure and report."""
    parser = repeated(__doc__, 5)
    parser.add_argument("--elsewhere", action="store_true", help="only what copies cost where there is nothing to edit")
    options = parser.parse_args()
    target, tokenizer = load_target(POCKET / "target"), Tokenizer.load(POCKET / "target")
    drafter = load_drafter(POCKET / "drafter", target)
    figures: dict[tuple[str, str], dict[str, list[float]]] = {}
    if not options.elsewhere:
        script = Script(target.config.vocab_size)
        scripted: Any = ScriptedTarget(target, script), ScriptedDrafter(drafter, script)
        for right in RIGHT:
            for text in read_suites(["edit"]):
                prompt = text.ids(tokenizer.prompt_ids)
                said = tokenizer.encode(answer(text))
                script.tell([*prompt, *said], right)
                arms = {arm: Decoder(*scripted, compiled="always") for arm in ARMS}  # a trace holds the script it saw
                found = _measure(arms, prompt, len(said), options.repetitions, said)
                figures[f"edits, {right:.0%} of the drafter's tokens right", text.name] = found
    # One decoder: what it learned of round times, noise included, is the same for all arms.
    own = Decoder(target, drafter, compiled="always")
    arms = {arm: own for arm in ARMS if arm != "plain" or not options.elsewhere}
    for kind in ("code", "chat", "list"):
        for number, question in enumerate(TEXTS[kind][:2]):
            prompt = tokenizer.prompt_ids([{"role": "user", "content": question}])
            figures["the built-in model's own answers", f"{kind} {number + 1}"] = _measure(
                arms, prompt, 128, options.repetitions
            )
    report = _report(figures, options.repetitions)
    print(report)
    if options.json:
        flat = [{"kind": kind, "name": name, **found} for (kind, name), found in figures.items()]
        options.json.write_text(json.dumps(flat, indent=1) + "\n", encoding="utf-8")
    if options.write:
        write_section(options.write, "edits", report, script="edits.py", heading="Edits")


def _measure(
    arms: dict[str, Decoder], prompt: list[int], tokens: int, repetitions: int, wanted: list[int] | None = None
) -> dict[str, list[float]]:
    """Milliseconds a token of each arm and repetition, after one that does not count."""
    found: dict[str, list[float]] = {arm: [] for arm in arms}
    for repetition in range(-1, repetitions):
        for arm in rotated(tuple(arms), max(repetition, 0)):
            decoder = arms[arm]
            decoder.forget()
            stop = () if wanted else decoder.target.config.stop_ids  # behind its end an answer goes in circles
            rounds = decoder.rounds(prompt, max_tokens=tokens, stop=stop, **ARMS[arm])
            said = list(next(rounds).tokens)
            begin = time.perf_counter()
            for one in rounds:
                said += one.tokens
            took = time.perf_counter() - begin
            if wanted is not None and said != wanted:
                raise SystemExit(f"{arm} does not say what the script has")
            if repetition >= 0:
                found[arm].append(1000 * took / (len(said) - 1))
    say(", ".join(f"{arm} {median(times):.2f} ms" for arm, times in found.items()))
    return found


def _report(figures: dict[tuple[str, str], dict[str, list[float]]], repetitions: int) -> str:
    lines = [
        f"One run of `scripts/benchmarks/edits.py`, {datetime.now(UTC):%Y-%m-%d}, built-in pair on {machine()}; "
        f"{repetitions} repetitions in turn, medians in milliseconds a token, prompts not counted. Gain: how much "
        "faster than with the drafter alone, repetition by repetition (least to most).",
        "",
        "| | plain | drafter | drafter and copies | gain |",
        "|---|---:|---:|---:|---:|",
    ]
    for kind in dict.fromkeys(kind for kind, _ in figures):
        lines.append(f"| **{kind}** | | | | |")
        mine = {name: found for (of, name), found in figures.items() if of == kind}
        for name, found in mine.items():
            times = " | ".join(f"{median(found[arm]):.2f}" if arm in found else "" for arm in ARMS)
            lines.append(f"| {name} | {times} | {_gain(found['mtp'], found['mtp,copy'])} |")
        one, other = ([sum(of) for of in zip(*(found[arm] for found in mine.values()), strict=True)]
                      for arm in ("mtp", "mtp,copy"))  # fmt: skip
        lines.append(f"| all {len(mine)} | | | | {_gain(one, other)} |")
    return "\n".join(lines)


def _gain(drafter: list[float], copies: list[float]) -> str:
    gains = [one / other for one, other in zip(drafter, copies, strict=True)]
    return f"×{median(gains):.3f} ({min(gains):.3f} to {max(gains):.3f})"


if __name__ == "__main__":
    main()
