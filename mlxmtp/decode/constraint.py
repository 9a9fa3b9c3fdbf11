"""Tokens under a constraint: the protocol that a grammar on token ids follows, and the choice among what it allows.

A constrained token is the target's own choice where the constraint allows it, else the choice by the same filters and
noise among what is allowed. It depends on the text, the seed and the position alone, like every other token.
"""

from collections.abc import Sequence
from typing import Any, Protocol, cast

import mlx.core as mx

from mlxmtp.decode.sampling import Filters, choose

OFTEN = 0.25  # share of rounds with a replaced token from which no round is dispatched behind one that is not read
LONG_RUN = 4  # forced tokens for which rounds in flight are awaited: a round of these earns more than they do


class Constraint(Protocol):
    """A language of token ids, at a place in its text. A stop token is allowed where the text may end."""

    def accept(self, tokens: Sequence[int]) -> int:
        """Go on by the leading tokens that the language allows; return their number."""

    def forced(self) -> Sequence[int]:
        """Return tokens that spell what must follow; others may spell it, too. Empty where there is a choice."""

    def mask(self) -> bytes:
        """Return the tokens allowed here as bits, token 0 in the lowest of the first byte. Raises where none is."""


def choose_allowed(logits: mx.array, mask: bytes, key: mx.array, position: int, filters: Filters) -> int:
    """Return the token for ``logits`` [1, V] at ``position`` among those of ``mask``."""
    allowed = int.from_bytes(mask, "little")
    if allowed & (allowed - 1) == 0:  # a single one: no need to wait for the device
        return allowed.bit_length() - 1
    bits = (mx.array(cast("Any", memoryview(mask)))[:, None] >> mx.arange(8, dtype=mx.uint8)) & 1  # [V / 8, 8]
    able = bits.reshape(1, -1)[:, : logits.shape[-1]].astype(mx.bool_)
    masked = mx.where(able, logits, -mx.inf)
    return cast("int", choose(masked, key, mx.array([position], mx.int32), filters).item())
