"""Measure what a constraint costs, and what its forced tokens save, with the built-in pair.

    .venv/bin/python -m scripts.benchmarks.structured [--write docs/benchmarks.md]

The built-in model knows no JSON: its documents are nonsense of the right form, and nearly every round has a token that
is replaced. So they are the worst case of a constraint, and text that obeys it anyway is the best. About two minutes,
on a machine that does nothing else.
"""

from __future__ import annotations

import random
import time
from datetime import UTC, datetime
from statistics import median
from typing import Any

import mlxmtp
from mlxmtp.engine.constraint import Constraint, Matcher, TokenTable
from mlxmtp.engine.events import End
from mlxmtp.engine.model import Model
from mlxmtp.engine.params import Params
from mlxmtp.engine.stats import Stats
from scripts.benchmarks.harness.options import repeated, say
from scripts.benchmarks.harness.report import machine
from scripts.benchmarks.harness.section import write_section

QUESTION = "What is speculative decoding, and what does a drafter do in mlxmtp?"
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
ARMS: dict[str, dict[str, Any]] = {
    "free text, plain": {"num_draft_tokens": 0},
    "the same text, held to any text, plain": {"num_draft_tokens": 0, "constraint": ANY_TEXT},
    "free text, 3 drafts": {"num_draft_tokens": 3},
    "the same text, held to any text, 3 drafts": {"num_draft_tokens": 3, "constraint": ANY_TEXT},
    "table, plain": {"num_draft_tokens": 0, "constraint": TABLE},
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
    lines += ["", *preparation(model), "", f"{machine()}, {datetime.now(UTC):%Y-%m-%d}."]
    print("\n".join(lines))
    if options.write:
        write_section(options.write, "structured", "\n".join(lines), script="structured.py", heading="Constraints")


def answer(model: Model, **params: Any) -> Stats:
    """Return the numbers of one answer."""
    stream = model.stream([{"role": "user", "content": QUESTION}], Params(temp=0.0, max_tokens=240, **params))
    (end,) = (event for event in stream if isinstance(event, End))
    return end.stats


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
