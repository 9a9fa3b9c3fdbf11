"""One round: the drafter proposes K tokens, the target checks them in one pass, the longest agreed prefix is kept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx

from mlxmtp.decode.exact import Passes
from mlxmtp.decode.logprobs import Logprob
from mlxmtp.decode.sampling import Filters, choose
from mlxmtp.limits import COPIED
from mlxmtp.models.drafter import DraftModel, Scores
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

    @classmethod
    def after(cls, new: Sequence[int], hidden: mx.array, position: int) -> "State":
        """Return the state after ``new`` tokens from ``position`` on, which were chosen from ``hidden`` [L, H]."""
        last = len(new) - 1
        return cls(mx.array(list(new[-1:]), mx.int32), hidden[last : last + 1], mx.array([position + last], mx.int32))


@dataclass(frozen=True, slots=True)
class Round:
    """Result of one round: the accepted part of the draft and one token of the target's own, unless a stop token or
    the token limit cut them. The prompt's own first token comes as a round with an empty draft. ``copied``: the draft
    is from the text before, not from the drafter. ``logprobs``: of the tokens, if they were asked for. ``given``: so
    many of the drafts, the first ones, are not the drafter's but a constraint's or copied."""

    tokens: tuple[int, ...]
    draft: tuple[int, ...]
    accepted: int
    copied: bool = False
    logprobs: tuple[Logprob, ...] = ()
    given: int = 0


class Dispatched(NamedTuple):
    """A round on its way. Its time is ``timed`` where it says what others of its length will take; ``traced``: the
    length that was traced before it or beside it."""

    k: int
    forced: int  # so many of its drafts are a constraint's, the first ones
    drafted: int  # and so many the drafter's, the last ones
    report: mx.array
    rows: tuple[mx.array, mx.array]  # hidden [k + 1, H], logits [k + 1, V]
    timed: bool
    traced: int | None

    @property
    def given(self) -> int:
        """Number of its drafts, the first ones, that were not the drafter's."""
        return self.k - self.drafted

    @property
    def copied(self) -> bool:
        """True if they are from the text before."""
        return self.given == COPIED and not self.forced


RoundFunction = Callable[..., Any]
"""(State, buffers, key uint32 [2]) -> (State, buffers, report, (hidden [K + 1, H], logits [K + 1, V]))

The report is int32 [2K + 2] = t_0 .. t_K, d_1 .. d_K, n. The last pair is what chose each t, for whom t will not do.
"""


class Parts(NamedTuple):
    """The functions that rounds of every length are made of, for one setting of the sampling filters.

    ``begin`` (buffers, offset) -> context, what the draft steps of a round share
    ``draft`` (token, hidden, position, buffers, context, key) -> the token at that position [1], the next hidden state
    ``check`` (tokens, offset, buffers, key) -> all that a round returns

    Compiled, a part is traced once for each shape of its arguments: so only ``check`` is traced for another draft
    length, which takes half to a third as long as to trace the whole round, and runs as fast (measured on a CPU).
    """

    begin: Callable[..., Any]
    draft: Callable[..., Any]
    check: Callable[..., Any]


def parts_with(
    target: Target,
    drafter: DraftModel | None,
    choose_draft: Callable[[Scores, mx.array, Any], mx.array],
    check: Callable[..., Any],
    *,
    compiled: bool,
) -> Parts:
    """Return parts with that ``check``; ``choose_draft`` (scores, position, key) makes a token of a draft step."""

    def begin(buffers: list[mx.array], offset: mx.array) -> Any:
        assert drafter is not None
        return drafter.context(buffers, offset)

    def draft(
        token: mx.array, hidden: mx.array, position: mx.array, buffers: list[mx.array], context: Any, key: Any
    ) -> tuple[mx.array, mx.array]:
        assert drafter is not None
        scores, hidden = drafter.step(target.embed(token), hidden, position, buffers, context)
        return choose_draft(scores, position, key), hidden

    if compiled:
        return Parts(mx.compile(begin), mx.compile(draft), mx.compile(check))
    return Parts(begin, draft, check)


def make_parts(
    target: Target,
    drafter: DraftModel | None,
    filters: Filters,
    *,
    compiled: bool = False,
    passes: Passes | None = None,
) -> Parts:
    """Return the parts of rounds; without a drafter only ``check`` can be called. ``passes``: for exact text."""

    def choose_draft(scores: Scores, position: mx.array, key: mx.array) -> mx.array:
        return choose(scores.values, key, position, filters, scores.ids).astype(mx.int32)

    def check(
        tokens: mx.array, offset: mx.array, buffers: list[mx.array], key: mx.array
    ) -> tuple[State, list[mx.array], mx.array, tuple[mx.array, mx.array]]:
        rows = len(tokens)
        unused, queries = (0, 0) if passes is None else (passes.unused(rows), passes.most)
        read = mx.concatenate([tokens, *[tokens[-1:]] * unused]) if unused else tokens
        view = FixedView(target.cache_spec, buffers, offset, rows + unused, queries=queries, unused=unused)
        hidden = target.hidden(read, view)
        positions = offset + mx.arange(1, rows + 1)
        logits = target.logits(hidden)
        if unused:
            hidden, logits = hidden[:rows], logits[:rows]
        chosen = choose(logits, key, positions, filters).astype(mx.int32)  # [K + 1]
        if rows == 1:
            report = mx.concatenate([chosen, mx.zeros((1,), mx.int32)])
            return State(chosen, hidden, offset + 1), view.buffers, report, (hidden, logits)
        drafts = tokens[1:]
        n = mx.cumprod((chosen[:-1] == drafts).astype(mx.int32)).sum(keepdims=True)  # [1]
        after = State(chosen[n], hidden[n], offset + n + 1)
        return after, view.buffers, mx.concatenate([chosen, drafts, n]), (hidden, logits)

    return parts_with(target, drafter, choose_draft, check, compiled=compiled)


def make_round(parts: Parts, k: int, *, waits: bool = False) -> RoundFunction:
    """Return the round with ``k`` draft tokens; k = 0 is plain decoding. The first of them, or all, may be ``given``.

    It ``waits`` for the drafts before the check is dispatched (`Rounds` says when that is worth it).

    draft     d_1 .. d_k      each from the drafter's scores, its own last hidden state and the token before; no steps
                              where all are given
    check     t_0 .. t_k      the target's choice after each of [bonus, d_1 .. d_k]
    accept    n = number of leading i with t_i = d_{i+1}
    keep      t_0 .. t_n      n accepted draft tokens and one of the target's own: the next bonus

    (Leviathan, Kalman, Matias 2023 with deterministic choice on both sides, see ``sampling.py``.) All arrays stay on
    the device in fixed shapes, so rounds can be dispatched without reading any result.
    """

    def drafted(state: State, buffers: list[mx.array], key: mx.array, given: Sequence[int]) -> list[mx.array]:
        context = parts.begin(buffers, state.offset)
        token, hidden, tokens = state.bonus, state.hidden, []
        positions = state.offset + mx.arange(1, k + 1)  # at once: a sum for each would be a kernel for each
        for i in range(k):
            token, hidden = parts.draft(token, hidden, positions[i : i + 1], buffers, context, key)
            token = mx.array([given[i]], mx.int32) if i < len(given) else token
            tokens.append(token)
        return tokens

    def round_(
        state: State, buffers: list[mx.array], key: mx.array, given: Sequence[int] = ()
    ) -> tuple[State, list[mx.array], mx.array, tuple[mx.array, mx.array]]:
        state = State(*state)
        drafts = [mx.array([*given], mx.int32)] if len(given) == k else drafted(state, buffers, key, given)
        tokens = mx.concatenate([state.bonus, *drafts]) if k else state.bonus
        if waits:
            mx.eval(tokens)
        after, written, report, rows = parts.check(tokens, state.offset, buffers, key)
        return State(*after), written, report, rows

    return round_
