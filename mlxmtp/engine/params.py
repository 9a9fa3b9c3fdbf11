"""Parameters of one answer: the caller's, else the checkpoint's generation_config, else defaults."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex

from mlxmtp.engine.constraint import Constraint
from mlxmtp.limits import DRAFTS, SAMPLING, TOKEN_COUNT, TOP_LOGPROBS

if TYPE_CHECKING:
    from mlxmtp.decode.sampling import Sampling

_RANGES = {**SAMPLING, "max_tokens": TOKEN_COUNT, "think_tokens": TOKEN_COUNT, "top_logprobs": TOP_LOGPROBS}


@dataclass(frozen=True, slots=True)
class Params:
    """Say how to answer; None leaves a value to the checkpoint's generation_config, then to greedy decoding.

    `max_tokens` None: until the context is full; `seed` None: a fresh one; `stop` None: the checkpoint's stop tokens,
    as always under a constraint and with tools.
    `stop_strings`: at one of them in the answer, not in a thought, it ends, and nothing of the string is shown.
    `think_tokens`: after so many tokens, its opening mark counted, a thought is closed. `constraint`: the form of the
    answer; a thought before it is free. `logit_bias` is added to logits by token id; `presence_penalty` is taken from
    those of tokens in the answer once, `frequency_penalty` for every time, `repetition_penalty` divides those of tokens
    in prompt and answer. `top_logprobs`: texts come with the log-probabilities of their tokens, by the model's own
    distribution, and of so many others in their places. `image_tokens`: of a picture, at most. Raises ValueError
    out of range.
    """

    max_tokens: int | None = None
    temp: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    num_draft_tokens: int | Literal["auto"] = "auto"
    draft_from: str = "mtp"
    think: bool = False
    think_tokens: int | None = None
    stop: Collection[int] | None = None
    stop_strings: Sequence[str] = ()
    constraint: Constraint | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    top_logprobs: int | None = None
    image_tokens: int | None = None

    def __post_init__(self) -> None:
        for name, allowed in _RANGES.items():
            value = getattr(self, name)
            if value is not None and value not in allowed:
                raise ValueError(f"{name} must be {allowed}, not {value}")
        if self.num_draft_tokens != "auto" and self.num_draft_tokens not in DRAFTS:
            raise ValueError(f"num_draft_tokens must be 'auto' or {DRAFTS}, not {self.num_draft_tokens}")
        if not isinstance(self.draft_from, str):
            raise ValueError("draft_from must be a text: 'mtp', 'copy' or 'mtp,copy'")
        check_stop(self.stop)
        if isinstance(self.stop_strings, str) or not all(self.stop_strings):
            raise ValueError("stop_strings must be a sequence of texts, none of them empty")

    def with_seed(self) -> int:
        """Return the given seed, else 32 fresh random bits."""
        return int.from_bytes(os.urandom(4), "big") if self.seed is None else int(self.seed)

    def token_limit(self, generation: Mapping[str, Any], room: int) -> int:
        """Return how many tokens may come: the given limit, else the checkpoint's, never more than there is room."""
        wanted = self.max_tokens or generation.get("max_new_tokens")
        return min(int(wanted), room) if wanted else room

    def sampling(self, generation: Mapping[str, Any], seed: int) -> Sampling:
        """Return the sampling these parameters mean for a checkpoint with this generation_config.

        As in transformers, a checkpoint samples only where it says `do_sample`; a temperature given here always counts.
        Raises ValueError for values no distribution has.
        """
        from mlxmtp.decode.penalties import Penalties
        from mlxmtp.decode.sampling import Sampling

        penalties = self.presence_penalty, self.frequency_penalty, self.repetition_penalty
        recommended = float(generation.get("temperature", 1.0)) if generation.get("do_sample") else 0.0
        return Sampling(
            temp=recommended if self.temp is None else self.temp,
            top_p=float(_first(self.top_p, generation.get("top_p"), 1.0)),
            top_k=int(_first(self.top_k, generation.get("top_k"), 0)),
            min_p=float(_first(self.min_p, generation.get("min_p"), 0.0)),
            seed=seed,
            penalties=Penalties(self.logit_bias, *penalties),
        )


def check_stop(stop: Collection[object] | None) -> None:
    """Raise ValueError for what are no token ids."""
    if stop is not None and (isinstance(stop, str) or not all(isinstance(one, SupportsIndex) for one in stop)):
        raise ValueError("stop takes token ids; texts at which an answer ends are stop_strings")


def _first(*choices: float | None) -> float:
    return next(choice for choice in choices if choice is not None)
