"""Record what a draft would earn at every position of a text: the material of `simulate_depth.py`.

    .venv/bin/python -m scripts.benchmarks.record_traces scripts/benchmarks/simulation/traces/pocket.json
    .venv/bin/python -m scripts.benchmarks.record_traces .../traces/ordinary.json build/ordinary/pair

Counts only, no clock. Decodes texts with the built-in pair, or with that of a folder, which has prompts beside it
(scripts/pocket/ordinary.py makes one of middling acceptance). At every position it also runs a round with 8 draft
tokens and keeps how many the target accepts, then goes on by a single token. A text becomes a string of digits, one for
each position, from which any way of choosing draft lengths can be replayed exactly: after a round with K drafts at
position p, min(K, digit[p]) are accepted and the next round stands at p + min(K, digit[p]) + 1.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

import mlxmtp.models  # noqa: F401  (OpenBLAS before the first product)
from mlxmtp.chat.material import gather
from mlxmtp.chat.message import join
from mlxmtp.decode.prefill import read_prompt
from mlxmtp.decode.round import RoundFunction, State, make_parts, make_round
from mlxmtp.decode.sampling import Sampling, choose
from mlxmtp.engine.tokenizer import Tokenizer
from mlxmtp.models.kv_cache import KVCache
from mlxmtp.models.load import load_drafter, load_target
from scripts.benchmarks.first_answers import first_answers
from scripts.benchmarks.harness.arms import TEXTS, random_words

ROOT = Path(__file__).resolve().parents[2]
POCKET = ROOT / "assets" / "pocket"
DRAFT = 8
GREEDY, SAMPLED, NOISE = Sampling(), Sampling(temp=1.0, seed=7), Sampling(temp=3.0, seed=7)


@dataclass(frozen=True, slots=True)
class Plan:
    """One text: the prompt, and stretches of (tokens, sampling). `stops`: whether a stop token ends it."""

    kind: str
    name: str
    prompt: tuple[str, str]
    stretches: tuple[tuple[int, Sampling], ...]
    stops: bool


def plans() -> Iterator[Plan]:
    """Answers, random words, and answers that turn into noise and back, each with its own kind."""
    questions = [text for kind in ("chat", "code", "list") for text in TEXTS[kind]]
    for index in range(6):
        yield Plan("random words", f"words {index}", random_words(index), ((160, GREEDY),), False)
    for text in questions[::4]:
        yield Plan("answer", text, (text, ""), ((150, GREEDY),), True)
    for text in questions[1::4]:
        yield Plan("answer, temperature 1", text, (text, ""), ((150, SAMPLED),), True)
    turns = ((60, GREEDY), (50, NOISE), (60, GREEDY), (50, NOISE))
    for text in questions[2:9:5]:
        yield Plan("greedy and temperature 3 in turn", text, (text, ""), turns, False)
    for index in range(6, 8):
        yield Plan("random words, temperature 1", f"words {index}", random_words(index), ((130, SAMPLED),), False)
    with tempfile.TemporaryDirectory() as folder:
        for row in first_answers(Path(folder)):
            said = join([gather(str(row.file)).text if row.file else "", row.question])
            sampling = Sampling(temp=row.temp, seed=row.seed, top_k=64, top_p=0.95)  # as the model's defaults are
            yield Plan("first answer", row.name, (said, ""), ((row.tokens or 150, sampling),), True)


def plans_of(pair: Path) -> Iterator[Plan]:
    """Answers to the prompts of a pair, greedy and sampled in turn."""
    for number, prompt in enumerate(json.loads((pair / "prompts.json").read_text(encoding="utf-8"))):
        sampling, kind = (SAMPLED, "ordinary, temperature 1") if number % 2 else (GREEDY, "ordinary")
        yield Plan(kind, f"prompt {number + 1}", (prompt, ""), ((128, sampling),), True)


class Recorder:
    """A pair, and its rounds by draft length and filters, compiled once."""

    def __init__(self, pair: Path) -> None:
        self._target = load_target(pair / "target")
        self._drafter = load_drafter(pair / "drafter", self._target)
        self._tokenizer = Tokenizer.load(pair / "target")
        self._rounds: dict[Any, RoundFunction] = {}

    def record(self, plan: Plan) -> str:
        """One digit for each position of the text."""
        said, begun = plan.prompt
        prompt = self._tokenizer.prompt_ids([{"role": "user", "content": said}])
        prompt += self._tokenizer.encode(begun) if begun else []
        cache = KVCache(self._target.cache_spec, self._target.dtype)
        cache.reserve(len(prompt) + sum(count for count, _ in plan.stretches) + DRAFT + 1)
        hidden = read_prompt(self._target, cache, prompt, 0)
        first = plan.stretches[0][1]
        position = mx.array([len(prompt)], mx.int32)
        bonus = choose(self._target.logits(hidden), first.key(), position, first.filters).astype(mx.int32)
        state, digits = State(bonus, hidden, position), ""
        for count, sampling in plan.stretches:
            for _ in range(count):
                if plan.stops and state.bonus.item() in self._target.config.stop_ids:
                    return digits
                state, accepted = self._look(state, cache, sampling)
                digits += str(accepted)
        return digits

    def _look(self, state: State, cache: KVCache, sampling: Sampling) -> tuple[State, int]:
        """How many of 8 drafts are accepted here, and the state one token on. The plain pass writes over the rows."""
        _, cache.buffers, report, _ = self._round(DRAFT, sampling)(state, cache.buffers, sampling.key())
        seen = report.tolist()
        after, cache.buffers, plain, _ = self._round(0, sampling)(state, cache.buffers, sampling.key())
        if plain[0].item() != seen[0]:
            raise SystemExit("a round and a plain pass disagree: the trace would be of no text")
        return State(*after), seen[-1]

    def _round(self, k: int, sampling: Sampling) -> RoundFunction:
        key = (k, sampling.filters)
        if key not in self._rounds:
            self._rounds[key] = make_round(make_parts(self._target, self._drafter, sampling.filters, compiled=True), k)
        return self._rounds[key]


def main(arguments: Sequence[str]) -> None:
    """Record into the file named, which is written after every text; what is in it already is left as it is."""
    path, pair = Path(arguments[0]), Path(arguments[1]) if arguments[1:] else None
    recorder = Recorder(pair or POCKET)
    texts: list[dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))["texts"] if path.exists() else []
    who = "the built-in pair" if pair is None else "a pair of scripts/pocket/ordinary.py"
    note = f"Accepted of 8 drafts at every position; written by scripts/benchmarks/record_traces.py with {who}."
    for plan in plans() if pair is None else plans_of(pair):
        if any((text["kind"], text["name"]) == (plan.kind, plan.name) for text in texts):
            continue
        digits = recorder.record(plan)
        texts.append({"kind": plan.kind, "name": plan.name, "accepted": digits})
        share = sum(digit != "0" for digit in digits) / max(len(digits), 1)
        print(f"{plan.kind}: {plan.name}: {len(digits)} positions, first draft accepted {share:.0%}", flush=True)
        path.write_text(json.dumps({"note": note, "texts": texts}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
