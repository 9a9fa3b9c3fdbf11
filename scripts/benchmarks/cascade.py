"""Measure the router's cascade: how often the built-in model hands over wrong answers, and how often right ones.

    .venv/bin/python -m scripts.benchmarks.cascade --write docs/router.md

The small model is the built-in one, asked its held-out questions of one turn, greedily; the big one is scripted and
always right. The table comes from the log-probabilities of the small model's answers. Then the questions go through the
product's own router at one threshold, and it must hand over the same ones. No times are taken.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import mlxmtp
from mlxmtp.app.open import Asked, OpenModel
from mlxmtp.app.routed_model import FIRST_WORDS, RoutedOpenModel, RouterOpener
from mlxmtp.settings import load_settings
from scripts.benchmarks.harness.section import write_section
from scripts.pocket.evaluate import Question, load_questions

THRESHOLDS = (-0.005, -0.01, -0.015, -0.02, -0.03, -0.05, -0.1, -1.0)
CHECKED = -0.02
RIGHT = "Scripted."


@dataclass(frozen=True, slots=True)
class Asking:
    """A question, whether the small model is right, and its mean log-probability at first."""

    question: Question
    right: bool
    mean: float


def asked(model: mlxmtp.Model, question: Question) -> Asking:
    """Ask the small model alone."""
    text, heard = "", list[float]()
    params = mlxmtp.Params(max_tokens=500, temp=0, top_logprobs=0)
    for event in model.stream([{"role": "user", "content": question.turns[0]}], params):
        if isinstance(event, mlxmtp.Text):
            text += event.text
            if len(heard) < FIRST_WORDS:
                heard += [one.logprob for one in event.logprobs]
    return Asking(question, not question.misses(text), fmean(heard[:FIRST_WORDS] or [0.0]))


def table(found: Sequence[Asking]) -> str:
    """Return a row for each threshold."""
    wrong = [one for one in found if not one.right]
    rows = [
        "| below | right answers handed over | wrong answers handed over | right in the end |",
        "|---:|---:|---:|---:|",
    ]
    rows.append(f"| never | 0 | 0 | {len(found) - len(wrong)} of {len(found)} |")
    for threshold in THRESHOLDS:
        over = [one for one in found if one.mean < threshold]
        kept_wrong = sum(one.mean >= threshold for one in wrong)
        lost = sum(one.right for one in over)
        rows.append(
            f"| {threshold} | {lost} of {len(found) - len(wrong)} | {len(over) - lost} of {len(wrong)} "
            f"| {len(found) - kept_wrong} of {len(found)} |"
        )
    return "\n".join(rows)


def routed(found: Sequence[Asking]) -> int:
    """Return how many questions the router hands over otherwise than the table says."""
    with TemporaryDirectory() as folder:
        (Path(folder) / "config.toml").write_text(
            f'[router]\nsmall = "pocket"\nbig = "{Path("assets/pocket/target").resolve()}"\n'
            f'cascade = "logprob"\ncertainty = {CHECKED}\n'
        )
        opener = RouterOpener(load_settings({}, {"MLXMTP_HOME": folder, "HOME": folder}), lambda _: None)
        opened = opener.open(opener.target("auto"), None, opener.loaded.settings)
    assert isinstance(opened, RoutedOpenModel)
    (big,) = (name for name in opened.routed.candidates if name != "small")
    opened.routed.candidates[big].opened = _scripted(opened)
    params, others = mlxmtp.Params(max_tokens=500, temp=0), 0
    for one in found:
        messages = [{"role": "user", "content": one.question.turns[0]}]
        opened.begin_turn(Asked(messages, params, one.question.turns[0]))
        text = "".join(event.text for event in opened.model.stream(messages, params) if isinstance(event, mlxmtp.Text))
        others += text.endswith(RIGHT) != (one.mean < CHECKED)
    return others


def _scripted(opened: RoutedOpenModel) -> OpenModel:
    def stream(*_: Any, **__: Any) -> Any:
        events = [mlxmtp.Text(RIGHT), mlxmtp.End("stop", mlxmtp.Stats())]
        answer: Any = iter(events)
        return _Events(answer)

    model = SimpleNamespace(stream=stream, tokenizer=opened.model.tokenizer)
    return replace(opened, model=model)  # type: ignore[arg-type]


class _Events:
    def __init__(self, events: Any) -> None:
        self._events, self.stats, self.complete = events, mlxmtp.Stats(), True

    def __iter__(self) -> Any:
        return self._events

    def close(self) -> None:
        pass


def main() -> None:
    """Measure, and write or print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", type=Path, help="write the section of this page")
    parser.add_argument("--questions", type=int, default=1000, help="so many of them")
    options = parser.parse_args()
    questions = [one for one in load_questions() if len(one.turns) == 1 and not one.think][: options.questions]
    model = mlxmtp.load("pocket")
    found = [asked(model, question) for question in questions]
    others = routed(found)
    text = (
        f"{len(found)} held-out questions of one turn, greedy; "
        f"mean log-probability of the first {FIRST_WORDS} tokens.\n\n"
        f"{table(found)}\n\nThrough the router at {CHECKED}: {others} of {len(found)} decided otherwise.\n"
    )
    if options.write is None:
        print(text)
    else:
        write_section(options.write, "cascade", text, script="cascade.py", heading="Cascade")


if __name__ == "__main__":
    main()
