"""Carrying out a plan: every model after the other, every text in all ways in turn, before the next repetition.

for each length          shortest first, because buffers only grow
    warm up              every way, on the longest prompt
    for each repetition
        for each text
            for each way     plain, 1, 3, auto: A B A B, so that a drift of the machine meets all alike
    split                a round's time into drafter and checking
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxmtp.bench.samples import Arm, Case, Checking, Parting, RoundTime, Sample, shown_arm
from mlxmtp.bench.suite import Text, to_length
from mlxmtp.errors import ContextOverflow

if TYPE_CHECKING:
    from mlxmtp.bench.harness import Rig, Take
    from mlxmtp.engine.params import Params
    from mlxmtp.engine.tokenizer import Tokenizer

_SPLIT_ROUNDS = 24

OnProgress = Callable[[str, int], None]
"""Called with what comes next and how many of the plan's measured runs are done."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure. `lengths` are prompt tokens (None: as the texts are), `cooldown` seconds before each run.

    `arms` begins with 0: everything is compared with plain decoding.
    """

    arms: tuple[Arm, ...]
    lengths: tuple[int | None, ...] = (None,)
    tokens: int = 256
    repetitions: int = 3
    warmups: int = 1
    cooldown: float = 0.0


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text as this model reads it."""

    kind: str
    name: str
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Entrant:
    """A model to measure: folders, text side, choices, and the prompts by length."""

    name: str
    folder: Path
    drafter: Path | None
    drafter_name: str | None
    draft_bits: int | None
    kv_bits: int | None
    tokenizer: Tokenizer
    params: Params
    prompts: Mapping[int | None, tuple[Prompt, ...]]

    def arms(self, plan: Plan) -> tuple[Arm, ...]:
        """Without a drafter there is only plain decoding."""
        return plan.arms if self.drafter is not None else (0,)

    def runs(self, plan: Plan) -> int:
        """Measured runs."""
        texts = sum(len(prompts) for prompts in self.prompts.values())
        return texts * plan.repetitions * len(self.arms(plan))

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(len(prompt.ids) for prompts in self.prompts.values() for prompt in prompts)


def prompts_of(
    texts: Sequence[Text], plan: Plan, tokenizer: Tokenizer, context: int, name: str, *, think: bool = False
) -> dict[int | None, tuple[Prompt, ...]]:
    """The texts in every length of the plan, shortest first. Raises ContextOverflow where one leaves no room."""

    def encode(messages: Sequence[Mapping[str, str]]) -> list[int]:
        return tokenizer.prompt_ids(messages, think=think)

    found: dict[int | None, tuple[Prompt, ...]] = {}
    for length in sorted(plan.lengths, key=lambda n: -1 if n is None else n):
        if length is not None and length + plan.tokens > context:
            raise ContextOverflow(_no_room(f"A prompt of {length:,} tokens", plan.tokens, context, name))
        prompts = []
        for text in texts:
            alike = [other for other in texts if other.kind == text.kind]
            ids = text.ids(encode) if length is None else to_length(text, alike, length, encode)
            if len(ids) + plan.tokens > context:
                what = f"The prompt {text.kind}/{text.name} has {len(ids):,} tokens: it"
                raise ContextOverflow(_no_room(what, plan.tokens, context, name))
            prompts.append(Prompt(text.kind, text.name, tuple(ids)))
        found[length] = tuple(prompts)
    return found


def _no_room(what: str, tokens: int, context: int, name: str) -> str:
    return f"{what} and {tokens:,} new ones do not fit the {context:,} of '{name}': take a smaller -p or -n."


class Run:
    """One model's part of the plan. `dtype`, `device`, `sampling` and `compiled` are known once `results` has begun."""

    def __init__(self, entrant: Entrant, plan: Plan, on_progress: OnProgress) -> None:
        self._entrant, self._plan, self._say = entrant, plan, on_progress
        self._arms = entrant.arms(plan)
        self._done = 0
        self.dtype = self.device = ""
        self.compiled = True
        self.sampling: dict[str, Any] = {}

    def results(self) -> Iterator[Sample | Checking]:
        """Load, warm up, measure; samples as they come. Raises LoadError."""
        from mlxmtp.bench.harness import Rig, release

        entrant = self._entrant
        self._say(f"loading {entrant.name}", self._done)
        release()  # what an earlier model has left
        bits = {"draft_bits": entrant.draft_bits, "kv_bits": entrant.kv_bits}
        rig = Rig.load(entrant.folder, entrant.drafter, entrant.params, **bits)
        self.dtype, self.device, self.sampling = rig.dtype, rig.device, asdict(rig.sampling)
        for length, prompts in entrant.prompts.items():
            case = Case(entrant.name, length)
            longest = max(prompts, key=lambda prompt: len(prompt.ids))
            self._warm(rig, longest)
            for repetition in range(self._plan.repetitions):
                for prompt in prompts:
                    yield from self._group(rig, case, prompt, repetition)
            yield from self._split(rig, case, longest)

    def _warm(self, rig: Rig, longest: Prompt) -> None:
        entrant, plan = self._entrant, self._plan
        self._say(f"{entrant.name}: compiling", self._done)
        rig.prepare(longest.ids, plan.tokens, self._arms)
        self.compiled = rig.compiled
        for number in range(plan.warmups):
            for arm in self._arms:
                self._say(f"{entrant.name}: warm-up {number + 1}, {shown_arm(arm)}", self._done)
                rig.take(longest.ids, plan.tokens, arm)

    def _group(self, rig: Rig, case: Case, prompt: Prompt, repetition: int) -> Iterator[Sample]:
        plan = self._plan
        plain: Take | None = None
        for arm in self._arms:
            self._say(f"{case.model}: {prompt.kind}/{prompt.name}, {shown_arm(arm)}", self._done)
            if plan.cooldown:
                time.sleep(plan.cooldown)
            take = rig.take(prompt.ids, plan.tokens, arm)
            plain = plain or take
            self._done += 1
            yield Sample(
                case.model,
                prompt.kind,
                prompt.name,
                case.length,
                len(prompt.ids),
                arm,
                repetition,
                take.prefill,
                take.first,
                take.total,
                take.peak_memory,
                take.tokens,
                tuple(RoundTime(step.drafted, step.accepted, step.kept, step.seconds) for step in take.steps),
                self._parting(rig, prompt, plain.tokens, take.tokens),
            )

    def _parting(self, rig: Rig, prompt: Prompt, plain: tuple[int, ...], other: tuple[int, ...]) -> Parting | None:
        at = next((i for i, (a, b) in enumerate(zip(plain, other, strict=True)) if a != b), None)
        if at is None:
            return None
        tie = rig.tie([*prompt.ids, *plain[:at]], plain[at], other[at])
        texts = (self._spelled(plain[at]), self._spelled(other[at]))
        return Parting(at + 1, plain[at], other[at], *texts, tie.margin, tie.resolution)

    def _spelled(self, token: int) -> str:
        text = self._entrant.tokenizer.detokenizer()
        return text.add(token) + text.flush()

    def _split(self, rig: Rig, case: Case, prompt: Prompt) -> Iterator[Checking]:
        """What a draft token costs the drafter and what it costs the target, at the longest fixed length."""
        fixed = [arm for arm in self._arms if isinstance(arm, int)]
        k = max(fixed) or (3 if "auto" in self._arms else 0)
        if k:
            self._say(f"{case.model}: drafter against checking", self._done)
            split = rig.split(prompt.ids, k, _SPLIT_ROUNDS)
            yield Checking(case, k, split.drafted, split.free)
