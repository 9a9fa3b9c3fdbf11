"""One round: the drafter proposes K tokens, the target checks them in one pass, the longest agreed prefix is kept."""

from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx

from mlxmtp.decode.sampling import Filters, choose
from mlxmtp.models.drafter import DraftModel
from mlxmtp.models.kv_cache import FixedView
from mlxmtp.models.target import Target


class State(NamedTuple):
    """State of decoding, on the device.

    ``bonus`` [1] int32 is the newest kept token, not yet in the cache; ``hidden`` [1, H] the post-norm state
    that predicted it; ``offset`` [1] int32 the bonus token's position = number of valid cache rows.
    """

    bonus: mx.array
    hidden: mx.array
    offset: mx.array


RoundFunction = Callable[..., Any]
"""(State, buffers, key uint32 [2]) -> (State, buffers, report, (hidden [K + 1, H], logits [K + 1, V]))

The report is int32 [2K + 2] = t_0 .. t_K, d_1 .. d_K, n. The last pair is what chose each t, for whom t will not do.
"""


def make_round(target: Target, drafter: DraftModel | None, k: int, filters: Filters) -> RoundFunction:
    """Return the round with ``k`` draft tokens; k = 0 is plain decoding. Without a drafter they are an argument [k].

    draft     d_1 .. d_k      each from the drafter's scores, its own last hidden state and the token before
    check     t_0 .. t_k      the target's choice after each of [bonus, d_1 .. d_k]
    accept    n = number of leading i with t_i = d_{i+1}
    keep      t_0 .. t_n      n accepted draft tokens and one of the target's own: the next bonus

    (Leviathan, Kalman, Matias 2023 with deterministic choice on both sides, see ``sampling.py``.) All arrays stay on
    the device in fixed shapes, so rounds can be dispatched without reading any result.
    """

    def draft(state: State, buffers: list[mx.array], key: mx.array, *given: mx.array) -> mx.array:
        """The bonus token and the draft tokens [k + 1]."""
        if drafter is None or k == 0:
            return mx.concatenate([state.bonus, *given]) if given else state.bonus
        context = drafter.context(buffers, state.offset)
        token, hidden, tokens = state.bonus, state.hidden, [state.bonus]
        positions = state.offset + mx.arange(1, k + 1)  # at once: a sum for each would be a kernel for each
        for i in range(k):
            scores, hidden = drafter.step(target.embed(token), hidden, context)
            token = choose(scores.values, key, positions[i : i + 1], filters, scores.ids)
            tokens.append(token.astype(mx.int32))
        return mx.concatenate(tokens)

    def round_(
        state: State, buffers: list[mx.array], key: mx.array, *given: mx.array
    ) -> tuple[State, list[mx.array], mx.array, tuple[mx.array, mx.array]]:
        state = State(*state)
        tokens = draft(state, buffers, key, *given)
        view = FixedView(target.cache_spec, buffers, state.offset, k + 1)
        hidden = target.hidden(tokens, view)
        positions = state.offset + mx.arange(1, k + 2)
        logits = target.logits(hidden)
        chosen = choose(logits, key, positions, filters).astype(mx.int32)  # [k + 1]
        if k == 0:
            report = mx.concatenate([chosen, mx.zeros((1,), mx.int32)])
            return State(chosen, hidden, state.offset + 1), view.buffers, report, (hidden, logits)
        drafts = tokens[1:]
        n = mx.cumprod((chosen[:-1] == drafts).astype(mx.int32)).sum(keepdims=True)  # [1]
        after = State(chosen[n], hidden[n], state.offset + n + 1)
        return after, view.buffers, mx.concatenate([chosen, drafts, n]), (hidden, logits)

    return round_
