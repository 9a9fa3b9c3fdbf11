"""Measure what a constraint costs, and what its forced tokens save, with the built-in pair.

    .venv/bin/python -m scripts.benchmarks.structured [--write docs/benchmarks.md]

The built-in model knows no JSON: its documents are nonsense of the right form, and nearly every round has a token that
is replaced. So they are the worst case of a constraint, and text that obeys it anyway is the best. About two minutes,
on a machine that does nothing else.
"""

from __future__ import annotations

import random
import time
from contextlib import nullcontext
from datetime import UTC, datetime
from statistics import median
from typing import Any
from unittest.mock import patch

import mlxmtp
from mlxmtp.engine.constraint import Constraint, Matcher, TokenTable
from mlxmtp.engine.events import End
from mlxmtp.engine.model import Model
from mlxmtp.engine.params import Params
from mlxmtp.engine.stats import Stats
from scripts.benchmarks.harness.options import repeated, say
from scripts.benchmarks.harness.report import machine
from scripts.benchmarks.harness.section import write_section

QUESTION = "List all commands."
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
USUAL = [  # schemas of people and agents
    {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}, "required": ["name"]},
    {"enum": ["positive", "neutral", "negative"]},
    {"type": "array", "items": ROW},
    {},
]
ARMS: dict[str, dict[str, Any]] = {
    "free text, plain": {"num_draft_tokens": 0},
    "the same text, held to any text, plain": {"num_draft_tokens": 0, "constraint": ANY_TEXT},
    "free text, 3 drafts": {"num_draft_tokens": 3},
    "the same text, held to any text, 3 drafts": {"num_draft_tokens": 3, "constraint": ANY_TEXT},
    "table, plain": {"num_draft_tokens": 0, "constraint": TABLE},
    "table, drafter alone": {"constraint": TABLE, "forced": False},
    "table, drafter and forced tokens": {"constraint": TABLE},
}
GEMMA = 262_144  # tokens


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


def main() -> None:
    """Measure and report."""
    options = repeated(__doc__, 5).parse_args()
    model = mlxmtp.load("pocket")
    found: dict[str, list[Stats]] = {name: [] for name in ARMS}
    for turn in range(options.repetitions + 1):  # the first builds kernels
        for name, params in ARMS.items():
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
    lines += ["", *preparation(model), "", first_tokens(model), "", f"{machine()}, {datetime.now(UTC):%Y-%m-%d}."]
    print("\n".join(lines))
    if options.write:
        write_section(options.write, "structured", "\n".join(lines), script="structured.py", heading="Constraints")


def answer(model: Model, forced: bool = True, **params: Any) -> Stats:
    """Return the numbers of one answer, with drafts of what is `forced` or without."""
    stream = model.stream([{"role": "user", "content": QUESTION}], Params(temp=0.0, max_tokens=240, **params))
    with nullcontext() if forced else patch.object(Matcher, "forced", lambda matcher: []):
        (end,) = (event for event in stream if isinstance(event, End))
    return end.stats


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
