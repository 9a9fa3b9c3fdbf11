"""A request for rounds, checked once."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import mlx.core as mx

from mlxmtp.decode.constraint import Constraint
from mlxmtp.decode.prefill import SoftTokens
from mlxmtp.decode.sampling import Sampling
from mlxmtp.errors import ContextOverflow
from mlxmtp.models.config import ModelConfig


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """The prompt, and what stays the same over all rounds of its answer; ``key`` is the seed on the device."""

    prompt: list[int]
    sampling: Sampling
    stop: Collection[int]
    constraint: Constraint | None = None
    top_logprobs: int | None = None
    media: Sequence[SoftTokens] = ()
    key: mx.array = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", frozenset(self.stop))
        object.__setattr__(self, "key", self.sampling.key())

    def room(self, config: ModelConfig, max_tokens: int) -> int:
        """Return how many tokens its answer may have. Raises ValueError for bad numbers, ContextOverflow for none."""
        prompt, vocab = self.prompt, config.vocab_size
        if not prompt or max_tokens < 1:
            raise ValueError("a prompt needs at least one token and an answer room for one")
        soft = {place for one in self.media for place in range(one.start, one.end)}
        if not all((place in soft) if token < 0 else token < vocab for place, token in enumerate(prompt)):
            raise ValueError(f"prompt ids must lie in 0 .. {vocab - 1}")
        if not all(0 <= token < vocab for token in self.sampling.penalties.bias):
            raise ValueError(f"tokens of a logit_bias must lie in 0 .. {vocab - 1}")
        limit = config.max_positions - len(prompt)
        if limit < 1:
            told = f"The prompt has {len(prompt)} tokens, the model takes {config.max_positions}"
            raise ContextOverflow(f"{told}: shorten it.")
        return min(max_tokens, limit)
