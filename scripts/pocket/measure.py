"""Measure what the built-in model can do, through the program itself, and write the tables of docs/pocket.md.

Run from the repository's root in the project's own environment, with espeak-ng for spoken words:
    python -m scripts.pocket.measure [--only tools,edits] [--count 50] [--model FOLDER] [--json FILE] [--write PAGE]
Everything asked here is held out: tools, sentences, texts, pictures and voices that training never draws, and questions
that were written apart. Acceptance is that of the same answers, greedy and at temperature 1.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import mlxmtp
from mlxmtp.engine.events import Call
from scripts.pocket import corpus, evaluate
from scripts.pocket.tasks import edits, extraction, pictures, sounds, tools
from scripts.pocket.tasks.task import Ask, Medium, Say, Task
from scripts.pocket.tasks.task import Call as Called

_ROOT = Path(__file__).parents[2]
_DEPTH = 4
_SAMPLED: dict[str, Any] = {"temp": 1.0, "top_k": 64, "top_p": 0.95}
_BEGIN, _END = "<!-- measured -->", "<!-- end of measured -->"


@dataclass(slots=True)
class Drafts:
    """Drafted and accepted tokens, rounds and tokens of some answers."""

    drafted: int = 0
    accepted: int = 0
    rounds: int = 0
    tokens: float = 0.0

    def add(self, stats: dict[str, Any]) -> None:
        """Count an answer."""
        self.drafted, self.accepted = self.drafted + stats["drafted"], self.accepted + stats["accepted"]
        self.rounds, self.tokens = (
            self.rounds + stats["rounds"],
            self.tokens + stats["tokens_per_pass"] * stats["rounds"],
        )


@dataclass(slots=True)
class Score:
    """Answers of one kind: how many were right, some that were not, and how their drafts fared."""

    right: int = 0
    count: int = 0
    missed: list[str] = field(default_factory=list)
    drafts: Drafts = field(default_factory=Drafts)
    sampled: Drafts = field(default_factory=Drafts)

    def add(self, *, right: bool, told: str) -> None:
        """Count an answer; `told` says what was asked and answered."""
        self.right, self.count = self.right + right, self.count + 1
        if not right:
            self.missed.append(told)


class Examiner:
    """Asks one model and keeps the scores by kind."""

    def __init__(self, model: mlxmtp.Model) -> None:
        self._model = model
        self.scores: dict[str, Score] = {}

    def ask(
        self, kind: str, messages: list[dict[str, Any]], *, declared: Any = (), sampled: bool = True, **params: Any
    ) -> tuple[str, Call | None]:
        """Return the greedy answer and its first call; count drafts, also those of a sampled answer."""
        score = self.scores.setdefault(kind, Score())
        asked = {"max_tokens": 200, "num_draft_tokens": _DEPTH, **params}
        if sampled:
            *_, stats = self._answer(messages, declared, mlxmtp.Params(**asked, **_SAMPLED, seed=7))
            score.sampled.add(stats)
        text, call, stats = self._answer(messages, declared, mlxmtp.Params(**asked, temp=0.0))  # else it samples
        score.drafts.add(stats)
        return text, call

    def _answer(self, messages: Any, declared: Any, params: mlxmtp.Params) -> tuple[str, Call | None, dict[str, Any]]:
        text, call, stats = "", None, dict[str, Any]()
        for event in self._model.stream(messages, params, tools=declared):
            if isinstance(event, mlxmtp.Text):
                text += event.text
            elif isinstance(event, Call):
                call = call or event
            elif isinstance(event, mlxmtp.End):
                stats = event.stats.to_dict()
        return text, call, stats

    def _calls(self, kind: str, tasks: Iterator[Task]) -> None:
        """Ask for calls, and where a call was right, for the answer from its result."""
        for task in tasks:
            ask, called, result, said = task.steps
            assert isinstance(ask, Ask)
            assert isinstance(called, Called)
            assert isinstance(said, Say)
            text, call = self.ask(kind, task.messages(1), declared=task.tools)
            found = None if call is None else (call.name, call.arguments)
            right = found == (called.name, called.arguments)
            told = f"{ask.text!r}: {found or text!r}, not {(called.name, called.arguments)}"
            self.scores[kind].add(right=right, told=told)
            if right:
                after = f"{kind}: answers from results"
                text, _ = self.ask(after, task.messages(3), declared=task.tools)
                told = f"{result}: {text!r}, not {said.text!r}"
                self.scores[after].add(right=text.strip() == said.text, told=told)

    def tools(self, count: int) -> None:
        """Calls of tools with names never seen, and of the program's own, and requests that none fits."""
        self._calls("tools never seen", (tools.task(Random(f"measure/{i}"), held_out=True) for i in range(count)))
        self._calls("own tools", (tools.own_tools(Random(f"measure/{i}")) for i in range(count // 2)))
        for i in range(count // 2):
            task = tools.nothing_fits(Random(f"measure/{i}"), held_out=True)
            text, call = self.ask("no tool fits", task.messages(1), declared=task.tools)
            told = f"{task.steps[0]}: {call or text!r}"
            self.scores["no tool fits"].add(right=call is None, told=told)

    def extraction(self, count: int) -> None:
        """Flat JSON of sentences under a schema: all values right, and values one by one."""
        one_by_one = self.scores.setdefault("single values", Score())
        for i in range(count):
            wanted = extraction.extraction(Random(f"measure/{i}"), held_out=True)
            constraint = mlxmtp.Constraint.schema(wanted.schema)
            text, _ = self.ask("sentences", _said(wanted.question), constraint=constraint)
            try:
                found = json.loads(text)
            except ValueError:  # cut at the limit of tokens
                found = {}
            told = f"{wanted.question!r}: {text}, not {wanted.data}"
            self.scores["sentences"].add(right=found == wanted.data, told=told)
            for key, value in wanted.data.items():
                one_by_one.add(right=found.get(key) == value, told=f"{key}: {found.get(key)!r}, not {value!r}")

    def edits(self, count: int) -> None:
        """Short texts and code with one change."""
        for i in range(count):
            wanted = edits.edit(Random(f"measure/{i}"), held_out=True)
            text, _ = self.ask("edits", _said(wanted.question))
            self.scores["edits"].add(right=text.strip() == wanted.wanted, told=f"{wanted.question!r}: {text!r}")

    def pictures(self, count: int) -> None:
        """Unseen pictures: all that is in them, and how many shapes there are."""
        for i in range(count):
            seen = pictures.picture(Medium("image", i, held_out=True))
            file = io.BytesIO()
            seen.draw().save(file, "PNG")
            kind = (
                f"{len(seen.things)} digits" if seen.kind == "digits" else {"word": "words"}.get(seen.kind, seen.kind)
            )
            asked = [(kind, "What is in the picture?", pictures.described(seen))]
            if seen.kind == "shapes":
                asked.append(("counts", *_counted(seen)))
            for name, question, answer in asked:
                text, _ = self.ask(name, _said(question, {"type": "image", "image": file.getvalue()}))
                self.scores[name].add(right=text.strip() == answer, told=f"{i}: {text!r}, not {answer!r}")

    def sounds(self, count: int) -> None:
        """Spoken words by voices never heard."""
        for i in range(count):
            said = sounds.spoken(Medium("audio", i, held_out=True))
            kind = "spoken digits" if said.words[0] in sounds.DIGITS else "spoken commands"
            text, _ = self.ask(kind, _said("What do you hear?", {"type": "audio", "audio": sounds.speak(said)}))
            wanted = sounds.heard(said.words)
            self.scores[kind].add(right=text.strip() == wanted, told=f"{said}: {text!r}")

    def questions(self, count: int) -> None:
        """The held-out questions, those of the first version and those about what is new; at most `count` of each."""
        intents = corpus.load()
        for kind, path in (("first questions", evaluate.QUESTIONS), ("new questions", evaluate.NEW_QUESTIONS)):
            asked = evaluate.load_questions(path)
            known = evaluate.overlap(asked, intents)
            for question in [one for one in asked if one not in known][:count]:
                messages: list[dict[str, Any]] = []
                for turn in question.turns:
                    messages.append({"role": "user", "content": turn})
                    text, _ = self.ask(kind, messages, think=question.think, max_tokens=500)
                    messages.append({"role": "assistant", "content": text})
                wrong = question.misses(text)
                self.scores[kind].add(right=not wrong, told=f"{question.turns}: {text!r} ({wrong})")


def _said(text: str, *media: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*media, {"type": "text", "text": text}] if media else text}]


def _counted(seen: pictures.Picture) -> tuple[str, str]:
    many = len(seen.things)
    there = "is one shape" if many == 1 else f"are {pictures.NUMBERS[many]} shapes"
    return "How many shapes are there?", f"There {there}."


PARTS: dict[str, tuple[Callable[[Examiner, int], None], int]] = {
    "questions": (Examiner.questions, 1000),
    "tools": (Examiner.tools, 200),
    "extraction": (Examiner.extraction, 200),
    "edits": (Examiner.edits, 150),
    "pictures": (Examiner.pictures, 300),
    "sounds": (Examiner.sounds, 300),
}
"""What is measured, and how many of each without --count."""


def tables(scores: dict[str, Score]) -> str:
    """Return the tables of docs/pocket.md."""
    lines = ["| asked | right | |", "|---|---|---|"]
    lines += [f"| {kind} | {one.right} of {one.count} | {one.right / one.count:.1%} |" for kind, one in scores.items()]
    lines += [
        "",
        "| drafts, 4 a round | accepted, greedy | tokens per pass | accepted, temperature 1 | tokens per pass |",
    ]
    lines.append("|---|---|---|---|---|")
    for kind, one in scores.items():
        if one.drafts.drafted and one.sampled.drafted:
            both = (f"{d.accepted / d.drafted:.1%} | {d.tokens / d.rounds:.2f}" for d in (one.drafts, one.sampled))
            lines.append(f"| {kind} | {' | '.join(both)} |")
    return "\n".join(lines)


def write(path: Path, text: str) -> None:
    """Put the tables between the marks of a page."""
    page = path.read_text(encoding="utf-8")
    pattern = re.compile(f"(?s){re.escape(_BEGIN)}.*?{re.escape(_END)}")
    made, found = pattern.subn(lambda _: f"{_BEGIN}\n{text}\n{_END}", page)
    if not found:
        raise SystemExit(f"{path} has no {_BEGIN} to {_END}")
    path.write_text(made, encoding="utf-8")


def main() -> None:
    """Print the tables and what was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(_ROOT / "assets/pocket/target"))
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between (default: %(default)s)")
    parser.add_argument("--count", type=int, help="so many of each part")
    parser.add_argument("--json", type=Path, help="figures and all misses")
    parser.add_argument("--write", type=Path, help="the page whose tables are replaced")
    options = parser.parse_args()
    examiner = Examiner(mlxmtp.load(options.model))
    for name in options.only.split(","):
        part, count = PARTS[name]
        part(examiner, options.count or count)
    for kind, score in examiner.scores.items():
        print(
            f"{kind}: {score.right} of {score.count}",
            *(f"  {told}" for told in score.missed[:8]),
            sep="\n",
            file=sys.stderr,
        )
    text = tables(examiner.scores)
    print(text)
    if options.json:
        found = {
            kind: {"right": one.right, "count": one.count, "missed": one.missed}
            for kind, one in examiner.scores.items()
        }
        options.json.write_text(json.dumps(found, indent=1, ensure_ascii=False), encoding="utf-8")
    if options.write:
        write(options.write, text)


if __name__ == "__main__":
    main()
