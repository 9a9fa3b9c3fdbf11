"""Measure what a constraint costs, and what its forced tokens save, with the built-in pair.

    .venv/bin/python -m scripts.benchmarks.structured [--write docs/benchmarks.md]

One text, a config file that the model writes by itself, free and held to its form: keys that are forced, values that
are not. The pair's drafter is nearly always right there; a second one is its own, made wrong at three of ten positions.
The built-in model knows no such table, so it is nonsense of the right form: the worst case, with a replaced token in
nearly every round. Two minutes, on a machine that does nothing else.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from contextlib import nullcontext
from datetime import UTC, datetime
from functools import cache
from statistics import median
from typing import Any
from unittest.mock import patch

import mlx.core as mx

import mlxmtp
from mlxmtp.decode.draft_length import DraftLength
from mlxmtp.engine.constraint import Constraint, Matcher, TokenTable
from mlxmtp.engine.events import End
from mlxmtp.engine.model import Model
from mlxmtp.engine.params import Params
from mlxmtp.engine.stats import Stats
from mlxmtp.models.drafter import Scores
from scripts.benchmarks.harness.options import repeated, say
from scripts.benchmarks.harness.report import machine
from scripts.benchmarks.harness.section import write_section

QUESTION = "List all commands."
CONFIG = "Show a config file."
_TEXT, _NUMBER = r' = "[^"\n]*"\n', r" = [0-9.]+\n"
CONFIG_FORM = Constraint(
    "regex",
    rf"[^\n]*\n\n```toml\nmodel{_TEXT}system{_TEXT}temp{_NUMBER}top_p{_NUMBER}top_k{_NUMBER}max_tokens{_NUMBER}"
    rf"num_draft_tokens{_TEXT}\n\[aliases\]\nwork{_TEXT}small{_TEXT}\n\[prompts\]\nreview{_TEXT}```\n[\s\S]*",
)
ROW: dict[str, Any] = {
    "type": "object",
    "properties": {
        "identifier": {"type": "integer", "minimum": 0, "maximum": 99},
        "customer_name": {"type": "string", "maxLength": 8},
        "department": {"enum": ["engineering", "marketing", "operations"]},
        "is_active_member": {"type": "boolean"},
    },
    "required": ["identifier", "customer_name", "department", "is_active_member"],
    "additionalProperties": False,
}
TABLE = Constraint.schema({"type": "array", "items": ROW, "minItems": 4, "maxItems": 4})
ANY_TEXT = Constraint("regex", r"[\s\S]*")
USUAL: list[Any] = [  # schemas of people and agents
    {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}, "required": ["name"]},
    {"enum": ["positive", "neutral", "negative"]},
    {"type": "array", "items": ROW},
    {},
]
WRONG = 0.3
ARMS: dict[str, dict[str, Any]] = {
    "config file, free, plain": {"question": CONFIG, "num_draft_tokens": 0},
    "config file, held to any text, plain": {"question": CONFIG, "num_draft_tokens": 0, "constraint": ANY_TEXT},
    "config file, free": {"question": CONFIG},
    "config file, held to any text": {"question": CONFIG, "constraint": ANY_TEXT},
    "config file, held to its form": {"question": CONFIG, "constraint": CONFIG_FORM},
    "the same, drafter often wrong, free": {"question": CONFIG, "wrong": True},
    "the same, in its form, drafter alone": {
        "question": CONFIG, "constraint": CONFIG_FORM, "wrong": True, "forced": False
    },
    "the same, in its form, with forced tokens": {"question": CONFIG, "constraint": CONFIG_FORM, "wrong": True},
    "table, plain": {"num_draft_tokens": 0, "constraint": TABLE},
    "table, drafter alone": {"constraint": TABLE, "forced": False},
    "table, with forced tokens": {"constraint": TABLE},
}  # fmt: skip
GEMMA = 262_144  # tokens
PAIRS = 16


class Grown:
    """The tokenizer of a model with more words: as many as Gemma's, made up of its own."""

    def __init__(self, model: Model) -> None:
        self._inner, rng = model.tokenizer, random.Random(1)
        known = model.config.vocab_size
        own = [self._inner.token_bytes(token) for token in range(known)]
        words = dict.fromkeys(own)
        while len(words) < GEMMA:
            words[b"".join(rng.choices(own[200:], k=rng.randint(2, 3)))] = None
        self._bytes = [*own, *list(words)[len(dict.fromkeys(own)) :]]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def token_bytes(self, token: int) -> bytes:
        return self._bytes[token] if token < len(self._bytes) else b""


class OftenWrong:
    """A drafter that says the opposite at a share of the positions."""

    def __init__(self, inner: Any, share: float) -> None:
        self._inner, self._below = inner, int(1024 * share)

    def context(self, *about: Any) -> Any:
        return self._inner.context(*about)

    def step(self, embedding: mx.array, hidden: mx.array, position: mx.array, *about: Any) -> tuple[Scores, mx.array]:
        scores, hidden = self._inner.step(embedding, hidden, position, *about)
        mixed = position.astype(mx.uint32) * 2654435761
        mixed = (mixed ^ (mixed >> 15)) * 2246822519
        wrong = ((mixed >> 8) & 1023) < self._below
        return Scores(mx.where(wrong[:, None], -scores.values, scores.values), scores.ids), hidden


def main() -> None:
    """Measure and report."""
    parser = repeated(__doc__, 3)
    parser.add_argument("--only", default="", help="lines whose name has this in it")
    options = parser.parse_args()
    model = mlxmtp.load("pocket")
    arms = {name: params for name, params in ARMS.items() if options.only in name}
    found: dict[str, list[Stats]] = {name: [] for name in arms}
    depths = {name: DraftLength() for name in arms}  # what one line learns of drafting is not told to another
    for turn in range(options.repetitions + 1):  # the first builds kernels
        for name, params in arms.items():
            model._decoder.depth = depths[name]
            stats = answer(model, **params)
            if turn:
                found[name].append(stats)
        say(f"{turn} of {options.repetitions}")
    lines = ["| answer | tokens | passes | tokens/s, median (range) |", "|---|---|---|---|"]
    for name, runs in found.items():
        speeds = sorted(one.generation_tps for one in runs)
        tokens, passes = runs[0].generation_tokens, sorted(one.rounds for one in runs)
        span = f"{passes[0]} to {passes[-1]}" if passes[0] != passes[-1] else str(passes[0])
        lines.append(f"| {name} | {tokens} | {span} | {median(speeds):.0f} ({speeds[0]:.0f} to {speeds[-1]:.0f}) |")
    if not options.only:
        lines += ["", kept(model), "", *preparation(model)]
        lines += ["", first_tokens(model), "", processes(options.repetitions + 1)]
    lines += ["", f"{machine()}, {datetime.now(UTC):%Y-%m-%d}."]
    print("\n".join(lines))
    if options.write:
        write_section(options.write, "structured", "\n".join(lines), script="structured.py", heading="Constraints")


def answer(model: Model, question: str = QUESTION, *, forced: bool = True, wrong: bool = False, **params: Any) -> Stats:
    """Return the numbers of one answer, with drafts of what is `forced` or without."""
    decoder = model._decoder
    drafter: Any = decoder.drafter
    if wrong:
        decoder.draft_with(_often_wrong(drafter))
    settings = Params(temp=0.0, max_tokens=180, **params)
    with nullcontext() if forced else patch.object(Matcher, "forced", lambda matcher: []):
        events = list(model.stream([{"role": "user", "content": question}], settings))
    decoder.draft_with(drafter)
    (end,) = (event for event in events if isinstance(event, End))
    return end.stats


@cache
def _often_wrong(drafter: Any) -> OftenWrong:
    return OftenWrong(drafter, WRONG)


def kept(model: Model) -> str:
    """Return the share of a free answer's speed that one held to its form has, in pairs; one draft length for both."""
    said = []
    for drafts in (3, 8):
        found: dict[bool, list[float]] = {False: [], True: []}
        for turn in range(PAIRS + 1):
            for held in (False, True) if turn % 2 else (True, False):
                form = CONFIG_FORM if held else None
                stats = answer(model, CONFIG, num_draft_tokens=drafts, constraint=form)
                found[held] += [stats.generation_tps] * bool(turn)
        shares = sorted(held / free for free, held in zip(found[False], found[True], strict=True))
        said.append(
            f"with {drafts} drafts {median(shares):.3f} (quartiles {shares[PAIRS // 4]:.3f} and "
            f"{shares[-1 - PAIRS // 4]:.3f}; best run to best run {max(found[True]) / max(found[False]):.3f})"
        )
    return f"Held to its form the config file keeps of its free speed, median of {PAIRS} pairs: {'; '.join(said)}."


def first_tokens(model: Model) -> str:
    """Return how much later the first token comes with usual schemas than without, in turns; the prompt is read."""
    later = []
    for turn in range(6):
        for schema in USUAL:
            free, held = (first_token(model, None if one is None else Constraint.schema(one)) for one in (None, schema))
            later += [held - free] * bool(turn)
    return (
        f"The first token of an answer to one of {len(USUAL)} usual schemas comes {1000 * median(later):.1f} ms later "
        f"than without (at most {1000 * max(later):.1f}; vocabulary of the built-in model)."
    )


def processes(repetitions: int) -> str:
    """Return how much longer a whole `mlxmtp ask` takes for one token with a schema than without, in turns."""
    later = []
    command = [sys.executable, "-m", "mlxmtp", "ask", "-m", "pocket", "-q", "--max-tokens", "1", "--no-draft", QUESTION]
    for _ in range(repetitions):
        seconds = []
        for form in ([], ["--schema", "name, age int"]):
            start = time.perf_counter()
            # Its exit code is 1: one token is no document.
            subprocess.run([*command, *form], stdin=subprocess.DEVNULL, capture_output=True, check=False)
            seconds.append(time.perf_counter() - start)
        later.append(seconds[1] - seconds[0])
    return (
        f"A process (`mlxmtp ask --max-tokens 1`) takes {1000 * median(later):.0f} ms longer with a schema "
        f"({1000 * min(later):.0f} to {1000 * max(later):.0f}): llguidance is loaded and the vocabulary prepared."
    )


def first_token(model: Model, constraint: Constraint | None) -> float:
    """Return the seconds from the question to the first round, the check of the constraint included."""
    start = time.perf_counter()
    if constraint is not None:
        constraint.check()
    params = Params(temp=0.0, max_tokens=1, constraint=constraint)
    for _ in model.stream([{"role": "user", "content": QUESTION}], params):
        break
    return time.perf_counter() - start


def preparation(model: Model) -> list[str]:
    """Return what comes before the first token: once for a vocabulary, and for every answer."""
    grown = Grown(model)
    start = time.process_time()
    table = TokenTable(grown, GEMMA, model.config.stop_ids)  # type: ignore[arg-type]
    once = time.process_time() - start
    each, masks = [], []
    for _ in range(20):
        start = time.perf_counter()
        matcher = Matcher(TABLE, table)
        each.append(time.perf_counter() - start)
        start = time.perf_counter()
        matcher.mask()
        masks.append(time.perf_counter() - start)
    return [
        f"A vocabulary of {GEMMA:,} made-up words takes {once:.1f} s of processor time, once. A matcher of the table "
        f"is there in {1000 * median(each):.1f} ms (at most {1000 * max(each):.1f}), its first mask in "
        f"{1000 * median(masks):.2f} ms (at most {1000 * max(masks):.1f})."
    ]


if __name__ == "__main__":
    main()
