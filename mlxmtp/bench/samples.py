"""What a run leaves behind: one sample for each text decoded in one way, ready to be written and read again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Arm = int | Literal["auto"]
"""A way to decode: so many draft tokens per round, 0 for none, or as many as seem best."""


class Case(NamedTuple):
    """What arms are compared on: one model, and prompts of one length (None: as long as they are)."""

    model: str
    length: int | None


class RoundTime(NamedTuple):
    """One round after the first token: counts of tokens, and seconds since the one before it was read.

    `kept` is `accepted + 1` unless the token limit cut the round.
    """

    drafted: int
    accepted: int
    kept: int
    seconds: float

    @property
    def whole(self) -> bool:
        """Whether all of it counts: of a round that was cut nobody knows what else was accepted."""
        return self.kept > self.accepted


@dataclass(frozen=True, slots=True)
class Parting:
    """The first token (counted from 1) in which a text differs from the plain one, and how near the two tokens were.

    `margin` is the lead of the plain token in the scores that decide, in a pass of its own; `resolution` is the
    distance of neighbouring numbers at the size of the top score, or what a step of packed keys and values makes of it.
    """

    at: int
    plain: int
    other: int
    plain_text: str
    other_text: str
    margin: float
    resolution: float

    @property
    def near_tie(self) -> bool:
        """Whether rounding alone explains it."""
        return abs(self.margin) <= 8 * self.resolution


@dataclass(frozen=True, slots=True)
class Sample:
    """One text decoded in one way. Seconds count from the request, `peak_memory` is bytes with the weights."""

    model: str
    kind: str
    prompt: str
    length: int | None
    prompt_tokens: int
    arm: Arm
    repetition: int
    prefill_seconds: float
    first_token_seconds: float
    total_seconds: float
    peak_memory: int
    tokens: tuple[int, ...]
    rounds: tuple[RoundTime, ...]
    parting: Parting | None = None

    @property
    def case(self) -> Case:
        """The comparison it belongs to."""
        return Case(self.model, self.length)

    @property
    def group(self) -> tuple[Case, str, str, int]:
        """All arms of one group decoded the same text, one after the other."""
        return self.case, self.kind, self.prompt, self.repetition

    @property
    def decoded(self) -> int:
        """Tokens after the first one, which is the prefill's."""
        return len(self.tokens) - 1

    @property
    def decode_seconds(self) -> float:
        """From the first token to the last."""
        return self.total_seconds - self.first_token_seconds

    @property
    def generation_tps(self) -> float:
        """Tokens per second after the first token."""
        return self.decoded / self.decode_seconds if self.decode_seconds > 0 else 0.0

    @property
    def prompt_tps(self) -> float:
        """Tokens of the prompt per second of reading it."""
        return self.prompt_tokens / self.prefill_seconds if self.prefill_seconds > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """As the schema has it; `generation_tps` and `prompt_tps` are there for the reader's convenience."""
        return {
            "model": self.model,
            "kind": self.kind,
            "prompt": self.prompt,
            "length": self.length,
            "prompt_tokens": self.prompt_tokens,
            "num_draft_tokens": self.arm,
            "repetition": self.repetition,
            "prefill_seconds": self.prefill_seconds,
            "first_token_seconds": self.first_token_seconds,
            "total_seconds": self.total_seconds,
            "prompt_tps": self.prompt_tps,
            "generation_tps": self.generation_tps,
            "peak_memory": self.peak_memory,
            "same_text": None if self.arm == 0 else self.parting is None,
            "parting": None if self.parting is None else _parting_to_dict(self.parting),
            "tokens": list(self.tokens),
            "rounds": [[r.drafted, r.accepted, r.kept, round(r.seconds, 7)] for r in self.rounds],
        }

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Sample:
        """Raises KeyError, TypeError or ValueError for something else."""
        parting = row["parting"]
        return cls(
            str(row["model"]),
            str(row["kind"]),
            str(row["prompt"]),
            None if row["length"] is None else int(row["length"]),
            int(row["prompt_tokens"]),
            "auto" if row["num_draft_tokens"] == "auto" else int(row["num_draft_tokens"]),
            int(row["repetition"]),
            float(row["prefill_seconds"]),
            float(row["first_token_seconds"]),
            float(row["total_seconds"]),
            int(row["peak_memory"]),
            tuple(int(token) for token in row["tokens"]),
            tuple(RoundTime(int(d), int(a), int(k), float(s)) for d, a, k, s in row["rounds"]),
            None if parting is None else Parting(**{key: parting[key] for key in Parting.__slots__}),
        )


def _parting_to_dict(parting: Parting) -> dict[str, Any]:
    return {**{key: getattr(parting, key) for key in Parting.__slots__}, "near_tie": parting.near_tie}


@dataclass(frozen=True, slots=True)
class Checking:
    """Seconds of rounds with `k` draft tokens: by the drafter, and by one that costs nothing. The rest is checking."""

    case: Case
    k: int
    drafted: tuple[float, ...]
    free: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """As the schema has it."""
        return {
            "model": self.case.model,
            "length": self.case.length,
            "num_draft_tokens": self.k,
            "with_drafter": [round(s, 7) for s in self.drafted],
            "without_its_cost": [round(s, 7) for s in self.free],
        }

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Checking:
        """Raises KeyError, TypeError or ValueError for something else."""
        case = Case(str(row["model"]), None if row["length"] is None else int(row["length"]))
        seconds = (tuple(float(s) for s in row[key]) for key in ("with_drafter", "without_its_cost"))
        return cls(case, int(row["num_draft_tokens"]), *seconds)


def shown_arm(arm: Arm) -> str:
    """`plain`, `1 draft`, `3 drafts`, `auto`."""
    if arm == "auto":
        return "auto"
    return "plain" if arm == 0 else f"{arm} draft" if arm == 1 else f"{arm} drafts"
