"""What draft lengths are chosen on: recorded texts, put together, and the cost of a round on several chips."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

from mlxmtp.machine.pace import ROWS, Products

TRACES = Path(__file__).parent / "traces"
LONGEST = 8
TRACE = 1.4
"""What the trace of another length takes on this project's machine, in plain rounds."""
_CHUNK = 900  # tokens of a suite at most


@dataclass(frozen=True, slots=True)
class Suite:
    """One conversation: at every position, how many of 8 drafts would be accepted."""

    name: str
    accepted: Sequence[int]
    switches: bool


@dataclass(frozen=True, slots=True)
class Profile:
    """A machine: `costs[k]` is the time of a round with k drafts in plain rounds; `ahead` rounds are in flight."""

    name: str
    costs: Sequence[float]
    ahead: int
    source: str


def suites() -> list[Suite]:
    """Steady texts, texts that turn in mid-answer, and one that cannot be drafted."""
    answers, sampled = _texts("answer"), _texts("answer, temperature 1")
    words, sampled_words = _texts("random words"), _texts("random words, temperature 1")
    hard = [digit for text in words if _share(text) < 0.6 for digit in text]
    easy = [digit for text in answers for digit in text]
    return [
        Suite("answers", (easy * 2)[:_CHUNK], False),
        Suite("answers, temperature 1", (_flat(sampled) * 2)[:_CHUNK], False),
        Suite("random words", _flat(words)[:_CHUNK], False),
        Suite("random words hardest to draft", (hard * 2)[:_CHUNK], False),
        Suite("random words, temperature 1", (_flat(sampled_words) * 2)[:_CHUNK], False),
        Suite("temperature 0 and 3 in turn", _flat(_texts("greedy and temperature 3 in turn")), True),
        Suite("answer and random words in turn, 60 tokens each", _spliced(easy, hard, 60), True),
        Suite("answer and hopeless text in turn, 100 tokens each", _spliced(easy, [0], 100), True),
        Suite("hopeless: no draft is ever accepted", [0] * 600, False),
    ]


def first_answers() -> list[Suite]:
    """The rows of first_answers.py, each an answer of its own process."""
    return [Suite(name, accepted, False) for kind, name, accepted in _recorded("pocket.json") if kind == "first answer"]


def ordinary() -> list[Suite]:
    """Answers of a pair that was trained on ordinary text, where few drafts are accepted or many."""
    return [Suite(name, accepted, False) for _, name, accepted in _recorded("ordinary.json")]


def profiles() -> list[Profile]:
    """This project's machine as measured, and chips derived from public figures; none of those was run by us."""
    measured = json.loads((TRACES / "times.json").read_text(encoding="utf-8"))
    kernels = [1, 1.03, 1.22, 1.47, 1.77, 2.07, 2.38, 2.69, 3.0]  # rows 5, 7 and 9 between and beyond the neighbours
    return [
        Profile("2 CPU cores", _between(measured["seconds"]), 0, measured["source"]),
        Profile("row 4 %", _line(0.09), 1, "derived: rows at the price of bandwidth, 16-bit drafter of the 31B (5 %)"),
        Profile("row 17 %", _line(0.19), 1, "derived: lower end of whole models in MLX, 4-bit drafter (2 %)"),
        Profile("row 25 %", _line(0.36), 1, "derived: upper end, launch-bound drafter of 4 layers beside 35 (11 %)"),
        Profile("M4 Pro kernels", [c + 0.04 * k for k, c in enumerate(kernels)], 1,
                "derived: measured 4-bit products of 1 to 8 rows, a drafter of 4 %"),
        Profile("cliff at 8", [c + (0.6 if k == 8 else 0) for k, c in enumerate(_line(0.1))], 1,
                "derived: a draft length of 8 dearer than 16 on some chips"),
        Profile("M1 Ultra, 31B", _line(0.53), 1, "derived: 18 tok/s became 14 to 17 with 3 drafts, 2.2 tokens a pass"),
    ]  # fmt: skip


def chips() -> dict[int, str]:
    """Apple's generations whose products of few rows differ."""
    return {1: "M1, M2", 3: "M3", 4: "M4", 5: "M5"}


def chip_costs(generation: int, drafter: float = 0.04, stretch: float = 1.0) -> list[float]:
    """Time of a round by drafts, with a drafter of 4 %; `stretch`: what further rows cost, beside what is known."""
    products = Products(1.0, ROWS[generation])
    return [1 + stretch * (products.cost(k + 1) - 1) + drafter * k for k in range(LONGEST + 1)]


def drawn(chance: float, tokens: int, seed: int = 1) -> list[int]:
    """A text in which every draft is accepted with the same chance."""
    numbers = random.Random(seed)
    return [next((k for k in range(LONGEST) if numbers.random() >= chance), LONGEST) for _ in range(tokens)]


def _texts(kind: str) -> list[list[int]]:
    return [accepted for of, _, accepted in _recorded("pocket.json") if of == kind]


def _recorded(file: str) -> list[tuple[str, str, list[int]]]:
    """Return kind, name and accepted drafts of each text in a file of traces."""
    texts = json.loads((TRACES / file).read_text(encoding="utf-8"))["texts"]
    return [(text["kind"], text["name"], [int(digit) for digit in text["accepted"]]) for text in texts]


def _flat(texts: Sequence[Sequence[int]]) -> list[int]:
    return [digit for text in texts for digit in text]


def _share(text: Sequence[int]) -> float:
    return sum(digit > 0 for digit in text) / len(text)


def _spliced(easy: Sequence[int], hard: Sequence[int], each: int) -> list[int]:
    """Pieces of both in turn, going on where the last piece of the same text ended."""
    found: list[int] = []
    for piece in range(_CHUNK // each):
        text, begin = (hard if piece % 2 else easy), piece // 2 * each
        found += [text[(begin + i) % len(text)] for i in range(each)]
    return found


def _line(price: float) -> list[float]:
    return list(accumulate([1.0] + [price] * LONGEST))


def _between(seconds: dict[str, float]) -> list[float]:
    """Times of all lengths in plain rounds, on straight lines between those measured."""
    known = sorted((int(k), value / seconds["0"]) for k, value in seconds.items())
    found = []
    for k in range(LONGEST + 1):
        (low, a), (high, b) = next((pair for pair in pairwise(known) if k <= pair[1][0]), known[-2:])
        found.append(a + (b - a) * (k - low) / (high - low))
    return found
