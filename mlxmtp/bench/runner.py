"""Running a plan: model after model, every text with all draft lengths in turn before the next repetition."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import product
from typing import TYPE_CHECKING, Any

from mlxmtp.bench.report import ModelInfo, Plan, Result, SamplingUsed
from mlxmtp.bench.samples import Case, Divergence, DrafterTiming, Sample, draft_label
from mlxmtp.bench.suite import Text, to_length
from mlxmtp.engine.media import Media, Medium
from mlxmtp.engine.params import Params
from mlxmtp.engine.tokenizer import Tokenizer
from mlxmtp.errors import ContextOverflow
from mlxmtp.hub.inventory import quantization
from mlxmtp.hub.store import Checkpoint
from mlxmtp.limits import Exact
from mlxmtp.models.config import read_config
from mlxmtp.models.tensors import drafter_bits

if TYPE_CHECKING:
    from mlxmtp.bench.harness import Harness

_TIMED_ROUNDS = 24

OnProgress = Callable[[str, int], None]
"""Called with what comes next and how many of the model's measured runs are done."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text as token ids of one model."""

    kind: str
    name: str
    ids: tuple[int, ...]
    media: tuple[Medium, ...] = ()  # at its negative ids


def prompts_of(
    texts: Sequence[Text],
    plan: Plan,
    tokenizer: Tokenizer,
    context: int,
    name: str,
    media: Media,
    params: Params,
) -> dict[int | None, tuple[Prompt, ...]]:
    """Bring the texts to every length of the plan, shortest first. `media` and `params`: of the model and of answers.

    Raises ContextOverflow if one does not fit, LoadError for pictures and a model that does not see.
    """
    pictures = {text.image: media.prepare(text.image, params.image_tokens) for text in texts if text.image is not None}

    def encode(messages: Sequence[Mapping[str, Any]]) -> list[int]:
        return tokenizer.prompt_ids(media.prepared(messages, params.image_tokens), think=params.think)

    def require_fit(tokens: int, what: str) -> None:
        if tokens + plan.max_tokens > context:
            raise ContextOverflow(
                f"{what} and {plan.max_tokens:,} new ones do not fit the {context:,} of '{name}': "
                "take a smaller -p or -n."
            )

    found: dict[int | None, tuple[Prompt, ...]] = {}
    for length in sorted(plan.lengths, key=lambda n: -1 if n is None else n):
        if length is not None:
            require_fit(length, f"A prompt of {length:,} tokens")
        prompts = []
        for text in texts:
            alike = [other for other in texts if other.kind == text.kind]
            ids = text.ids(encode) if length is None else to_length(text, alike, length, encode)
            require_fit(len(ids), f"The prompt {text.kind}/{text.name} has {len(ids):,} tokens: it")
            seen = (pictures[text.image],) if text.image is not None else ()
            prompts.append(Prompt(text.kind, text.name, tuple(ids), seen))
        found[length] = tuple(prompts)
    return found


@dataclass
class Runner:
    """One model's part of the plan, with its prompts by length in tokens. Without a drafter all decoding is plain.

    for each prompt length           shortest first, because buffers only grow
        warm up                      every draft length, on the longest prompt
        for each repetition and text
            for each draft length    plain, 1, 3, auto: A B A B, so that a drift of the machine meets all alike
        time the drafter             a round's time into drafter and verifying
    """

    target: Checkpoint
    drafter: Checkpoint | None
    draft_bits: int | None
    kv_bits: int | None
    exact: Exact
    tokenizer: Tokenizer
    params: Params
    prompts: Mapping[int | None, tuple[Prompt, ...]]
    plan: Plan

    def __post_init__(self) -> None:
        self._lengths = self.plan.num_draft_tokens if self.drafter is not None else (0,)
        self.runs = sum(map(len, self.prompts.values())) * self.plan.repetitions * len(self._lengths)
        """The number of measured runs."""
        self._done = 0

    def results(self, on_progress: OnProgress) -> Iterator[Result]:
        """Load, warm up and measure; yield results as they come. Raises LoadError."""
        from mlxmtp.bench.harness import Harness, release

        plan, self._on_progress = self.plan, on_progress
        self._report(f"loading {self.target.name}")
        release()  # what an earlier model has left
        drafter = None if self.drafter is None else self.drafter.folder
        harness = Harness.load(
            self.target.folder, drafter, self.params, tokenizer=self.tokenizer,
            draft_bits=self.draft_bits, kv_bits=self.kv_bits, exact=self.exact,
        )  # fmt: skip
        described = False
        for length, prompts in self.prompts.items():
            case = Case(self.target.name, length)
            longest = max(prompts, key=lambda prompt: len(prompt.ids))
            by_length = {len(prompt.ids): prompt for prompt in prompts}
            for prompt in map(by_length.__getitem__, harness.to_prepare(by_length)):
                self._report(f"{case.model}: compiling")
                harness.prepare(prompt.ids, plan.max_tokens, self._lengths, prompt.media)
            for number, drafts in product(range(plan.warmups), self._lengths):
                self._report(f"{case.model}: warm-up {number + 1}, {draft_label(drafts)}")
                harness.run(longest.ids, plan.max_tokens, drafts, longest.media)
            for repetition, prompt in product(range(plan.repetitions), prompts):
                for sample in self._samples(harness, case, prompt, repetition):
                    if not described:
                        yield self._model_info(harness)
                        described = True
                    yield sample
            # Where only `auto` drafts, 3 is about the length that it takes.
            k = max(one for one in self._lengths if one != "auto") or (3 if "auto" in self._lengths else 0)
            if k:
                self._report(f"{case.model}: drafter against checking")
                yield DrafterTiming(case, k, *map(tuple, harness.time_drafter(longest.ids, k, _TIMED_ROUNDS)))

    def _report(self, what: str) -> None:
        self._on_progress(what, self._done)

    def _samples(self, harness: "Harness", case: Case, prompt: Prompt, repetition: int) -> Iterator[Sample]:
        plain: tuple[int, ...] = ()
        for length in self._lengths:
            self._report(f"{case.model}: {prompt.kind}/{prompt.name}, {draft_label(length)}")
            if self.plan.cooldown:
                time.sleep(self.plan.cooldown)
            run = harness.run(prompt.ids, self.plan.max_tokens, length, prompt.media)
            plain = plain or run.tokens
            self._done += 1
            yield Sample(
                model=case.model,
                kind=prompt.kind,
                prompt=prompt.name,
                length=case.length,
                prompt_tokens=len(prompt.ids),
                num_draft_tokens=length,
                repetition=repetition,
                divergence=self._divergence(harness, prompt, plain, run.tokens),
                **run._asdict(),
            )

    def _divergence(
        self, harness: "Harness", prompt: Prompt, plain: tuple[int, ...], other: tuple[int, ...]
    ) -> Divergence | None:
        def text(token: int) -> str:
            detokenizer = self.tokenizer.detokenizer()
            return detokenizer.add(token) + detokenizer.flush()

        at = next((i for i, (a, b) in enumerate(zip(plain, other, strict=False)) if a != b), None)
        if at is None:
            return None
        margin = harness.margin([*prompt.ids, *plain[:at]], plain[at], other[at], prompt.media)
        return Divergence(at + 1, plain[at], other[at], text(plain[at]), text(other[at]), *margin)

    def _model_info(self, harness: "Harness") -> ModelInfo:
        drafter = self.drafter
        drafted = None
        if drafter is not None:
            config = read_config(drafter.folder)
            bits = drafter_bits(config, self.draft_bits, cpu=harness.device == "CPU")
            stored = config.quantization is not None or bits is None
            drafted = quantization(config) if stored else f"{bits}bit"
        return ModelInfo(
            name=self.target.name,
            quantization=quantization(read_config(self.target.folder)),
            drafter=None if drafter is None else drafter.name,
            drafter_quantization=drafted,
            draft_bits=self.draft_bits,
            kv_bits=self.kv_bits,
            device=harness.device,
            dtype=harness.dtype,
            compiled=harness.compiled,
            exact=harness.exact,
            sampling=SamplingUsed(**{one.name: getattr(harness.sampling, one.name) for one in fields(SamplingUsed)}),
        )
