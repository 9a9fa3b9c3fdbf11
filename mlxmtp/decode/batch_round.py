"""One round of several texts: the rows of all in one pass of the target, each accepted by itself.

Activations are [texts * (K + 1), H]; only attention and the K/V writes know the slots (``models/slots.py``). A row is
addressed by the position of its own text, so that one accepts four drafts and its neighbour none costs neither of them
anything. What one text differs in from another is data, so texts come and go without a new trace.
"""

from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx

from mlxmtp.decode.mixed_sampling import Choices, choose_each
from mlxmtp.decode.round import Parts, State, parts_with
from mlxmtp.models.drafter import DraftModel, Scores
from mlxmtp.models.slots import fixed_view
from mlxmtp.models.target import Target


class Slots(NamedTuple):
    """Settings of the text in each slot: ``limit`` int32 [B], the most drafts that may be accepted, -1 in a slot
    without a text, which stays where it is; ``choices``, settings of sampling."""

    limit: mx.array
    choices: Choices


BatchFunction = Callable[..., tuple[State, list[mx.array], mx.array]]
"""(State of B rows, buffers, Slots) -> (State, buffers, report int32 [B, 2K + 2] = t_0 .. t_K, d_1 .. d_K, n)"""


def make_batch_parts(
    target: Target, drafter: DraftModel | None, kinds: tuple[int, ...], *, compiled: bool = False
) -> Parts:
    """Return the parts of rounds for texts with these kinds of settings, as ``make_parts`` does for one text."""

    def choose_draft(scores: Scores, position: mx.array, choices: Choices) -> mx.array:
        return choose_each(scores.values, Choices(*choices), position, kinds, scores.ids)

    def check(
        tokens: mx.array, offset: mx.array, buffers: list[mx.array], slots: Slots
    ) -> tuple[State, list[mx.array], mx.array]:
        count, length = tokens.shape
        limit, choices = slots
        view = fixed_view(target.cache_spec, buffers, offset, length)
        hidden = target.hidden(tokens.reshape(-1), view)
        rows = Choices(*choices).repeated(length)
        chosen = choose_each(target.logits(hidden), rows, view.positions + 1, kinds).reshape(count, length)
        drafts = tokens[:, 1:]
        agreed = mx.cumprod((chosen[:, :-1] == drafts).astype(mx.int32), axis=1).sum(axis=1)
        n = mx.minimum(agreed, limit)  # [B]
        last = mx.maximum(n, 0)[:, None]
        bonus = mx.take_along_axis(chosen, last, axis=1)[:, 0]
        hidden = mx.take_along_axis(hidden.reshape(count, length, -1), last[:, :, None], axis=1)[:, 0]
        report = mx.concatenate([chosen, drafts, n[:, None]], axis=1)
        return State(bonus, hidden, offset + n + 1), view.buffers, report

    return parts_with(target, drafter, choose_draft, check, compiled=compiled)


def make_batch_round(parts: Parts, k: int, *, waits: bool = False) -> BatchFunction:
    """Return the round with ``k`` draft tokens for every text, as ``make_round`` does for one."""

    def round_(state: State, buffers: list[mx.array], slots: Slots) -> tuple[State, list[mx.array], mx.array]:
        token, hidden, offset = state
        tokens = [token]
        if k:
            context = parts.begin(buffers, offset)
            positions = mx.split(offset + mx.arange(1, k + 1)[:, None], k)  # [1, B] each
            for position in positions:
                token, hidden = parts.draft(token, hidden, position[0], buffers, context, slots.choices)
                tokens.append(token)
        if waits:
            mx.eval(tokens)
        after, written, report = parts.check(mx.stack(tokens, axis=1), offset, buffers, slots)
        return State(*after), written, report

    return round_
