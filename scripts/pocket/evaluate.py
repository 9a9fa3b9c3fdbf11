"""Ask the published pocket model its held-out questions, and measure how its drafts fare.

Run from the repository's root: `python -m scripts.pocket.evaluate [--accept] [--overlap] [--kind mtp]`.
Needs the project's own environment (mlxmtp), not the training one.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.pocket import corpus
from scripts.pocket.corpus import Intent
from scripts.pocket.patterns import matcher, squash

_ROOT = Path(__file__).parents[2]

if TYPE_CHECKING:
    from mlxmtp import Model

QUESTIONS = Path(__file__).parent / "questions.toml"
NEW_QUESTIONS = Path(__file__).parent / "questions_new.toml"
_KEYS = {"ask", "turns", "must", "must_not", "kind", "think"}
_MAX_TOKENS = 500


@dataclass(frozen=True, slots=True)
class Question:
    """Turns to say, and what the last answer must and must not contain."""

    turns: tuple[str, ...]
    must: tuple[tuple[str, ...], ...]
    must_not: tuple[str, ...]
    kind: str
    think: bool

    def misses(self, answer: str) -> list[str]:
        """What is wrong with an answer; empty when it is right."""
        wrong = [" | ".join(choices) for choices in self.must if not any(_found(c, answer) for c in choices)]
        return wrong + [f"not {entry}" for entry in self.must_not if _found(entry, answer)]


def _found(entry: str, answer: str) -> bool:
    pattern = entry.removeprefix("re:") if entry.startswith("re:") else re.escape(entry)
    return re.search(pattern, answer, re.IGNORECASE) is not None


def load_questions(path: Path = QUESTIONS) -> list[Question]:
    """Read and check the questions."""
    found = []
    for i, raw in enumerate(tomllib.loads(path.read_text(encoding="utf-8"))["question"]):
        unknown = set(raw) - _KEYS
        if unknown or ("ask" in raw) == ("turns" in raw):
            raise ValueError(
                f"{path.name}: question {i + 1}: unknown keys {sorted(unknown)}, or not one of ask and turns"
            )
        found.append(
            Question(
                tuple(raw.get("turns", [raw.get("ask")])),
                tuple(tuple(choices) for choices in raw.get("must", [])),
                tuple(raw.get("must_not", [])),
                raw["kind"],
                bool(raw.get("think", False)),
            )
        )
    return found


def overlap(questions: list[Question], intents: list[Intent]) -> dict[Question, str]:
    """Single questions whose wording (case and punctuation aside) a training pattern can produce, and whose it is."""
    patterns = [
        (intent.id, re.compile(matcher(pattern)))
        for top in intents
        for intent in (top, *top.follow)
        for pattern in (*intent.questions, *intent.plain)
    ]
    return {
        question: name
        for question in questions
        if len(question.turns) == 1
        for name, pattern in patterns
        if pattern.fullmatch(squash(question.turns[0]))
    }


def _answer(model: Model, messages: list[dict[str, str]], **params: Any) -> tuple[str, dict[str, Any]]:
    import mlxmtp

    text, stats = "", {}
    for event in model.stream(messages, mlxmtp.Params(max_tokens=_MAX_TOKENS, **params)):
        if isinstance(event, mlxmtp.Text):
            text += event.text
        elif isinstance(event, mlxmtp.End):
            stats = event.stats.to_dict()
    return text, stats


def converse(model: Model, question: Question, **params: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """(answer, stats) of each turn, the model's own answers being the history."""
    messages: list[dict[str, str]] = []
    for turn in question.turns:
        messages.append({"role": "user", "content": turn})
        text, stats = _answer(model, messages, think=question.think, **params)
        messages.append({"role": "assistant", "content": text})
        yield text, stats


def quality(model: Model, questions: list[Question], temp: float) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(figures, misses) at a temperature; every miss is printed."""
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    missed = []
    for question in questions:
        *_, (text, _) = converse(model, question, temp=temp, seed=1)
        wrong = question.misses(text)
        for group in (question.kind, "thinking" if question.think else "no thinking", "all"):
            total[group] += 1
            right[group] += not wrong
        if wrong:
            missed.append({"turns": question.turns, "answer": text, "misses": wrong, "kind": question.kind})
            mode = ", thinking" if question.think else ""
            print(f"MISS [{question.kind}{mode}] {question.turns}\n  {text!r}\n  {wrong}")
    return {
        group: f"{right[group]}/{total[group]} = {right[group] / total[group]:.1%}" for group in sorted(total)
    }, missed


def acceptance(model: Model, questions: list[Question], temp: float, depth: int = 4) -> dict[str, Any]:
    """How many draft tokens are accepted over the answers, in all and by position."""
    drafted = accepted = tokens = rounds = 0
    kept, offered = [0.0] * depth, [0.0] * depth
    for question in questions:
        for _, stats in converse(model, question, temp=temp, num_draft_tokens=depth, seed=7):
            drafted, accepted = drafted + stats["drafted"], accepted + stats["accepted"]
            rounds, tokens = rounds + stats["rounds"], tokens + stats["tokens_per_pass"] * stats["rounds"]
            for i, share in enumerate(stats["acceptance_by_position"]):
                kept[i] += share * stats["rounds"]
                offered[i] += stats["rounds"]
    return {
        "temperature": temp,
        "acceptance": round(accepted / drafted, 4),
        "by_position": [round(a / b, 4) for a, b in zip(kept, offered, strict=True)],
        "tokens_per_pass": round(tokens / rounds, 3),
    }


def main() -> int:
    """Exit 1 when fewer than 85 % of the questions with wordings that training cannot have seen are right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=str(_ROOT / "assets/pocket/target"))
    parser.add_argument("--kind", help="only this kind of question")
    parser.add_argument("--every", type=int, default=1, help="only every n-th question")
    parser.add_argument("--temp", type=float, default=0.0)
    parser.add_argument("--accept", action="store_true", help="measure acceptance instead")
    parser.add_argument("--overlap", action="store_true", help="only compare the wordings with the training patterns")
    parser.add_argument("--json", type=Path, help="write the figures and misses here, too")
    options = parser.parse_args()
    questions = [q for q in load_questions() if options.kind in (None, q.kind)][:: options.every]
    shared = overlap(questions, corpus.load())
    print(f"{len(shared)} questions are left out, a training pattern can produce their wording:")
    print(*(f"  {q.turns[0]!r} ({name})" for q, name in shared.items()), sep="\n")
    questions = [q for q in questions if q not in shared]
    print(f"{len(questions)} questions count")
    if options.overlap:
        return 0
    import mlxmtp

    model = mlxmtp.load(options.model)
    if options.accept:
        result: dict[str, Any] = {"accept": [acceptance(model, questions, temp) for temp in (0.0, 1.0)]}
        passed = True
    else:
        figures, missed = quality(model, questions, options.temp)
        result = {"figures": figures, "misses": missed}
        passed = len(missed) <= 0.15 * len(questions)
    print(json.dumps(result.get("figures", result), indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1, ensure_ascii=False), encoding="utf-8")
    return not passed


if __name__ == "__main__":
    sys.exit(main())
