"""An answer as it was asked for, over all of its rounds."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import mlx.core as mx

from mlxmtp.decode.constraint import Constraint, choose_allowed
from mlxmtp.decode.logprobs import Logprob, logprobs
from mlxmtp.decode.penalties import Counts
from mlxmtp.decode.sampling import Sampling, choose, near_ties
from mlxmtp.errors import MlxmtpError
from mlxmtp.limits import DRAFTS


def fixed_length(num_draft_tokens: int | Literal["auto"], draft_from: Collection[str]) -> int | None:
    """Return the length that drafts are to have, None for automatic. Raises ValueError for what cannot be."""
    if num_draft_tokens != "auto" and num_draft_tokens not in DRAFTS:
        raise ValueError(f"num_draft_tokens must be 'auto' or {DRAFTS}, not {num_draft_tokens}")
    if not draft_from or not set(draft_from) <= {"mtp", "copy"}:
        raise ValueError(f"draft_from holds 'mtp', 'copy' or both, not {draft_from!r}")
    return None if num_draft_tokens == "auto" else int(num_draft_tokens)


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """Rounds that begin at position ``begin``; ``counts`` knows where the answer did.

    ``goes_on``: rounds before these gave the answer's beginning. ``fixed`` is the length of its drafts (None:
    automatic), ``key`` its seed on the device.
    """

    begin: int
    goes_on: bool
    counts: Counts
    fixed: int | None
    draft_from: frozenset[str]
    sampling: Sampling
    key: mx.array
    stop: frozenset[int]
    constraint: Constraint | None
    top_logprobs: int | None

    @property
    def drafts(self) -> bool:
        """True if the drafter may draft."""
        return "mtp" in self.draft_from

    @property
    def copies(self) -> bool:
        """True if drafts may be copied from the text."""
        return self.fixed is None and "copy" in self.draft_from

    def penalized(self, text: Sequence[int], draft: Sequence[int], logits: mx.array) -> tuple[list[int], mx.array]:
        """Return the tokens that a round after ``text`` would have chosen with penalties, and their logits [K + 1, V].

        Compiled rounds know no penalties: the counts of all tokens so far would have to be a part of their state.
        """
        self.counts.grow(text)
        logits = self.sampling.penalties.apply(logits, self.counts, draft)
        positions = len(text) + mx.arange(len(draft) + 1)
        return cast("list[int]", choose(logits, self.key, positions, self.sampling.filters).tolist()), logits

    def obeying(
        self, chosen: Sequence[int], draft: list[int], logits: mx.array, position: int, *, followed: bool
    ) -> tuple[list[int], bool]:
        """Return the tokens of a round under the constraint, those ``chosen`` or others; true if there are others.

        The first stands at ``position``. A row of ``logits`` counts as long as the tokens before are the ``draft``, and
        none was replaced if another round has ``followed``, which then has written over rows of this one.
        """
        constraint, new, replaced, taken = self.constraint, list[int](), False, 0
        assert constraint is not None
        last = len(chosen) - 1
        for row, own in enumerate(chosen):
            token = own
            if row == taken:  # all that may count at once: the constraint's code is not in the caches after a round
                ends = (i for i in range(row, last) if chosen[i] in self.stop or chosen[i] != draft[i])
                taken += constraint.accept(chosen[row : next(ends, last) + 1])
            if row == taken:
                mask, replaced = constraint.mask(), True
                place = position + row
                token = choose_allowed(logits[row : row + 1], mask, self.key, place, self.sampling.filters)
                taken += constraint.accept([token])
                if row == taken:
                    raise MlxmtpError("The constraint refuses a token that it allows: please report it.")
            new.append(token)
            if token in self.stop or [token] != draft[row : row + 1] or (replaced and followed):
                break
        return new, replaced

    def near_ties(self, logits: mx.array, position: int) -> mx.array:
        """Return how many of the tokens from ``position`` on were chosen by next to nothing."""
        positions = position + mx.arange(logits.shape[0])
        return near_ties(logits, self.key, positions, self.sampling.filters)

    def logprobs(self, logits: mx.array, tokens: Sequence[int]) -> tuple[Logprob, ...]:
        """Return those of ``tokens`` if they are wanted; ``logits`` are the round's own."""
        return () if self.top_logprobs is None else logprobs(logits, tokens, self.top_logprobs)
