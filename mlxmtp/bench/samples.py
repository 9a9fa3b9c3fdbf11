"""Measured results as values: a sample is one text decoded with one draft length."""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

DraftSetting = int | Literal["auto"]
"""Draft tokens per round: 0 is plain decoding, `auto` as many as seem best."""

_WRITTEN = {"digits": 7}  # of seconds in a report: the rest lies below the resolution of the clock


def draft_label(length: DraftSetting) -> str:
    """Return `plain`, `1 draft`, `3 drafts` or `auto`."""
    return {0: "plain", 1: "1 draft", "auto": "auto"}.get(length, f"{length} drafts")


@dataclass(frozen=True, slots=True)
class Case:
    """One model, and prompts of one length (None: as long as they are): draft lengths are compared within it."""

    model: str
    length: int | None

    @property
    def title(self) -> str:
        return self.model if self.length is None else f"{self.model}, {self.length} prompt tokens"


class Round(NamedTuple):
    """One round after the first token: counts of tokens, and seconds since the round before was read.

    `tokens` is `accepted + 1` unless the token limit cut the round.
    """

    drafted: int
    accepted: int
    tokens: int
    seconds: float

    @property
    def complete(self) -> bool:
        """False for a round that the token limit cut: how much of its draft was accepted is not known."""
        return self.tokens > self.accepted


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first token (counted from 1) in which a text differs from the plain one, and how near the two tokens were.

    `margin` is the lead of the plain token in the scores that decide (logits over temperature, noise included), in a
    pass of its own; `resolution` is the distance of two numbers of the dtype there, or a quantized KV cache's step.
    """

    at: int
    plain: int
    other: int
    plain_text: str
    other_text: str
    margin: float
    resolution: float
    near_tie: bool = field(init=False)
    """True where rounding alone explains the difference."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "near_tie", abs(self.margin) <= 8 * self.resolution)


@dataclass(frozen=True, slots=True)
class Sample:
    """One text decoded with one draft length. Seconds count from the request; `peak_memory` is bytes with weights.

    `generation_tps` is of the tokens after the first one, which is the prefill's. `near_ties` counts tokens that the
    last bits of 16-bit numbers may decide (None: numbers are wider).
    """

    model: str
    kind: str
    prompt: str
    length: int | None
    prompt_tokens: int
    num_draft_tokens: DraftSetting
    repetition: int
    prefill_seconds: float
    first_token_seconds: float
    total_seconds: float
    prompt_tps: float = field(init=False)
    generation_tps: float = field(init=False)
    peak_memory: int
    same_text: bool | None = field(init=False)
    divergence: Divergence | None = field(metadata={"key": "parting"})
    tokens: tuple[int, ...]
    rounds: tuple[Round, ...] = field(metadata=_WRITTEN)
    near_ties: int | None = None

    def __post_init__(self) -> None:
        prompt_tps = self.prompt_tokens / self.prefill_seconds if self.prefill_seconds > 0 else 0.0
        object.__setattr__(self, "prompt_tps", prompt_tps)
        generation_tps = self.decoded / self.decode_seconds if self.decode_seconds > 0 else 0.0
        object.__setattr__(self, "generation_tps", generation_tps)
        object.__setattr__(self, "same_text", None if self.num_draft_tokens == 0 else self.divergence is None)

    @property
    def case(self) -> Case:
        return Case(self.model, self.length)

    @property
    def decoded(self) -> int:
        return len(self.tokens) - 1

    @property
    def decode_seconds(self) -> float:
        return self.total_seconds - self.first_token_seconds


@dataclass(frozen=True, slots=True)
class DrafterTiming:
    """Seconds of rounds of one draft length with the drafter, and with one that proposes at no cost."""

    case: Case = field(metadata={"inline": True})
    num_draft_tokens: int
    with_drafter: tuple[float, ...] = field(metadata=_WRITTEN)
    without_its_cost: tuple[float, ...] = field(metadata=_WRITTEN)
