"""An answer as it was asked for, over all of its rounds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import mlx.core as mx

from mlxmtp.decode.constraint import Constraint
from mlxmtp.decode.logprobs import Logprob, logprobs
from mlxmtp.decode.sampling import Sampling, choose


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """An answer that begins at position ``begin``; ``key`` is its seed on the device."""

    begin: int
    sampling: Sampling
    key: mx.array
    stop: frozenset[int]
    constraint: Constraint | None
    top_logprobs: int | None

    def penalized(self, text: Sequence[int], draft: Sequence[int], logits: mx.array) -> tuple[list[int], mx.array]:
        """Return the tokens that a round after ``text`` would have chosen with penalties, and their logits [K + 1, V].

        Compiled rounds know no penalties: the counts of all tokens so far would have to be a part of their state.
        """
        logits = self.sampling.penalties.apply(logits, text, self.begin, draft)
        positions = len(text) + mx.arange(len(draft) + 1)
        return cast("list[int]", choose(logits, self.key, positions, self.sampling.filters).tolist()), logits

    def logprobs(self, logits: mx.array, tokens: Sequence[int]) -> tuple[Logprob, ...]:
        """Return those of ``tokens`` if they are wanted; ``logits`` are the round's own."""
        return () if self.top_logprobs is None else logprobs(logits, tokens, self.top_logprobs)
