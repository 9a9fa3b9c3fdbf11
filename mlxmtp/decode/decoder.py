"""Token ids in, rounds out: the loop around ``round.py``.

Contract: whenever control is outside ``rounds`` (between two rounds, after closing it, an exception or Ctrl-C),
``tokens[:rows]`` is what the cache holds; ``rows`` is ``len(tokens) - 1``, or as far as an interrupted prefill came.
After work that the device failed to do, the cache is empty.
"""

import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, cast

import mlx.core as mx

from mlxmtp.decode.compile import Compiled, Rounds
from mlxmtp.decode.constraint import LONG_RUN, OFTEN, Constraint
from mlxmtp.decode.copying import Copying
from mlxmtp.decode.draft_length import DraftLength
from mlxmtp.decode.exact import Passes, room_for
from mlxmtp.decode.logprobs import Logprob
from mlxmtp.decode.penalties import Counts
from mlxmtp.decode.prefill import Beginning, SoftTokens, checked_prompt, drained, first_logits, marks_of, read_in_chunks
from mlxmtp.decode.request import Request, fixed_length
from mlxmtp.decode.round import Dispatched, Round, State
from mlxmtp.decode.sampling import Filters, Sampling, choose
from mlxmtp.decode.snapshots import CacheState
from mlxmtp.decode.texts import HeldText, HeldTexts
from mlxmtp.limits import COPIED, MAX_DRAFT
from mlxmtp.models.device import Interrupted, failure, interrupting, rounds_in_flight
from mlxmtp.models.drafter import DraftModel
from mlxmtp.models.kv_cache import KVCache
from mlxmtp.models.target import Target

OnPrefill = Callable[[int, int], None]
AHEAD = 512  # rows reserved when an answer begins: growing costs a new trace of every round in use


class Decoder:
    """Decoding on one target, with or without a drafter, and the KV cache of the text so far."""

    def __init__(
        self,
        target: Target,
        drafter: DraftModel | None = None,
        *,
        in_flight: int | None = None,
        compiled: Compiled = "background",
        chunk: int | None = None,
        passes: Passes | None = None,
    ) -> None:
        """``in_flight``: rounds dispatched ahead; ``chunk``: prompt rows read at once (None: what suits the device);
        ``passes``: keep to these, for exact text."""
        self.target, self.drafter, self.passes, self.chunk = target, drafter, passes, chunk
        self.reused = 0
        self._go_on_with(HeldText(KVCache(target.cache_spec, target.dtype)))
        self._answer: list[int] = []  # that rounds were last made for, behind its prompt
        self.depth, self._copying = DraftLength(), Copying()
        self._in_flight = rounds_in_flight() if in_flight is None else in_flight
        self._replaced = 0.0  # share of constrained rounds, of late, with a token that was refused
        self.compiled = compiled
        self._rounds = Rounds(target, drafter, compiled, passes)
        self._set_aside: list[tuple[DraftModel | None, Rounds]] = []
        self.texts: HeldTexts | None = None  # others than this one
        self._reserved = 0  # rows that the cache has at least, for texts to come
        self._near_ties: mx.array | None = None  # of this answer; in float32 near ones make no difference
        self._has_compiled = False
        self._request: object = None  # the last one: rounds of an earlier one must not go on
        self._sent: deque[Dispatched] = deque()  # rounds that nobody has read yet
        self._used: set[tuple[int, bool, Filters, bool, int]] = set()

    def _go_on_with(self, text: HeldText) -> None:
        self._cache, self.tokens, self.rows, self._snapshots = text.cache, text.tokens, text.rows, text.snapshots

    def rounds(
        self,
        prompt_ids: Sequence[int],
        *,
        max_tokens: int,
        num_draft_tokens: int | Literal["auto"] = "auto",
        draft_from: Collection[str] = ("mtp",),
        sampling: Sampling = Sampling(),  # noqa: B008  (frozen)
        stop: Collection[int] = (),
        on_prefill: OnPrefill | None = None,
        snapshot_at: Collection[int] = (),
        constraint: Constraint | None = None,
        media: Sequence[SoftTokens] = (),
        top_logprobs: int | None = None,
        said: int = 0,
    ) -> Generator[Round, None, None]:
        """Yield rounds until a token of ``stop`` (the last one then) or ``max_tokens`` new tokens.

        ``reused`` says how much of the prompt the cache held; ``on_prefill(done, total)`` counts its tokens, layer by
        layer, and what it raises ends the reading.
        ``draft_from``: "mtp" and "copy", where drafts of automatic length come from. ``snapshot_at``: later prompts may
        begin with so many tokens of this one and then differ, so a snapshot is taken at the last of these places, and
        at earlier ones where it is worth it. ``constraint``: a language that the text stays in. ``media``: what stands
        at negative ids of the prompt. ``top_logprobs``: tell how likely tokens were, and so many others in their places
        (None: do not). ``said``: so many tokens at the prompt's end are of this answer. Raises ValueError for an empty
        prompt or a bad number, ContextOverflow without room for an answer, later DeviceFailed, or RuntimeError if other
        rounds have begun.
        """
        prompt, room = checked_prompt(self.target.config, prompt_ids, max_tokens, media)
        if not all(0 <= token < self.target.config.vocab_size for token in sampling.penalties.bias):
            raise ValueError(f"tokens of a logit_bias must lie in 0 .. {self.target.config.vocab_size - 1}")
        fixed, sources, key = fixed_length(num_draft_tokens, draft_from), frozenset(draft_from), sampling.key()
        begin, stops, counts = len(prompt), frozenset(stop), Counts(len(prompt) - said - sampling.penalties.begun)
        asked = Request(begin, said > 0, counts, fixed, sources, sampling, key, stops, constraint, top_logprobs)
        return self._generate(prompt, room, asked, self._begin(prompt, sampling, on_prefill, snapshot_at, media))

    def read(
        self,
        prompt_ids: Sequence[int],
        *,
        sampling: Sampling,
        on_prefill: OnPrefill | None = None,
        snapshot_at: Collection[int] = (),
        media: Sequence[SoftTokens] = (),
    ) -> Generator[int, None, Beginning]:
        """Read a prompt for a lane to go on with: yield the tokens that are on their way after every chunk.

        Raises as ``rounds`` does. The cache in what is returned is this object's own, until it reads something else.
        """
        prompt, _ = checked_prompt(self.target.config, prompt_ids, 1, media)
        self._request, self._near_ties = object(), None
        self._settle()
        with self._computing():
            self._prepare(prompt, 1)
            state, _ = yield from self._begin(prompt, sampling, on_prefill, snapshot_at, media)
            return Beginning(cast("int", state.bonus.item()), state.hidden, self._cache)

    @property
    def live(self) -> HeldText:
        """The text so far."""
        return HeldText(self._cache, self.tokens, self.rows, self._snapshots)

    def export_state(self, length: int | None = None) -> CacheState:
        """Return what can be gone on from, as it was after ``length`` tokens; ValueError if no snapshot is there.

        Raises DeviceFailed if the last round was never computed.
        """
        self._settle()
        return self.live.state(length)

    def count_near_ties(self) -> int | None:
        """Return how many tokens of this answer the last bits may decide; None in float32. Raises DeviceFailed."""
        with self._computing():
            return None if self._near_ties is None else cast("int", self._near_ties.item())

    def import_state(self, state: CacheState) -> None:
        """Go on from ``state``, or hold it as one of several texts: another may be on its way. Raises ValueError if the
        buffers are another model's; nothing is changed then."""
        text = HeldText.of(state, self.target.cache_spec, self.target.dtype)
        if self.texts is not None:
            self.texts.add(text)
            return
        self._request = object()
        self._go_on_with(text)

    def reserve(self, rows: int) -> None:
        """Make room for ``rows`` positions now: no text up to there makes a buffer grow, and no short one shrink."""
        with self._computing():
            self._reserved = rows + (self._in_flight + 1) * (COPIED + 1)
            self._cache.reserve(self._reserved)

    def forget(self) -> None:
        """Empty the cache: the next ``rounds`` reads its whole prompt."""
        self._request, self.tokens, self.rows, self._near_ties = object(), [], 0, None

    def begin_anew(self) -> None:
        """Begin a new text; the one so far is held, if texts are."""
        if self.texts is not None:
            self.texts.add(self.live)
        self.forget()
        self._go_on_with(HeldText(KVCache(self.target.cache_spec, self.target.dtype)))

    def hold_texts(self, limit: int) -> None:
        """Keep other texts than the last one, in at most ``limit`` bytes, for prompts that go on with them."""
        self.texts = HeldTexts(limit)

    def draft_with(self, drafter: DraftModel | None) -> None:
        """Draft with another drafter from now on, in the same text; rounds of the one before stay compiled."""
        self._set_aside.append((self.drafter, self._rounds))
        known = next((rounds for one, rounds in self._set_aside if one is drafter), None)
        self._set_aside = [item for item in self._set_aside if item[0] is not drafter]
        self.drafter, self._rounds = drafter, known or Rounds(self.target, drafter, self.compiled, self.passes)

    def close(self) -> None:
        """Let go of networks and traces, on the thread that decoded; nothing can be asked afterwards."""
        for rounds in (self._rounds, *(rounds for _, rounds in self._set_aside)):
            rounds.close()

    def _generate(
        self, prompt: list[int], room: int, asked: Request, reading: Generator[int, None, tuple[State, mx.array]]
    ) -> Generator[Round, None, None]:
        self._request = asked
        longest = MAX_DRAFT if self.passes is None else self.passes.longest
        copying = self._copying if asked.copies and self.passes is None else None  # of too many rows for exact text
        self.depth.configure(asked.fixed, longest if asked.drafts and self.drafter is not None else 0, copying)
        if not (asked.goes_on and self._answer and self._answer == prompt[: len(self._answer)]):
            self.depth.begin(prompt)
            self._near_ties = None
        self._settle()
        with self._computing():
            self._prepare(prompt, room)
            self._prepare_rounds(asked.sampling.filters)
            state, logits = drained(reading)
            report = [cast("int", state.bonus.item()), 0]
        state, new, _, told = self._kept(asked, state, report, (state.hidden, logits), room)
        self._answer = self.tokens = self.tokens + new
        self.depth.follow(self.tokens)
        yield Round(tuple(new), (), 0, logprobs=told)
        queue, clock, room, outside = self._sent, time.perf_counter(), room - 1, 0.0
        while room > 0:
            if new[-1] in asked.stop:
                return
            state, done, report = self._advance(state, asked, room)
            draft, now = report[done.k + 1 :][: done.k], time.perf_counter()
            state, new, accepted, told = self._kept(asked, state, report, done.rows, room)
            self.depth.observe(
                done.k, accepted, now - clock, new,
                timed=done.timed, traced=done.traced, given=done.given, copied=done.copied, outside=outside,
            )  # fmt: skip
            room -= len(new)
            self.tokens += new
            self.rows = len(self.tokens) - 1
            self.depth.follow(self.tokens)
            if done.forced and not done.drafted:
                draft = draft[: max(done.forced, accepted)]  # without what fills them up
            left, given = time.perf_counter(), min(done.given, len(draft))
            yield Round(tuple(new), tuple(draft), min(accepted, len(new)), done.copied, told, given)
            back = time.perf_counter()
            clock, outside = (now, back - left) if queue else (back, 0.0)

    def _advance(self, state: State, asked: Request, room: int) -> tuple[State, Dispatched, list[int]]:
        """Dispatch as many rounds as may be in flight and read the oldest: the last state, that round, its report."""
        queue, constraint, filters = self._sent, asked.constraint, asked.sampling.filters
        alone = bool(asked.sampling.penalties) or (constraint is not None and self._replaced > OFTEN)
        with self._computing():
            self._check(asked)
            while not queue or (len(queue) <= (0 if alone else self._in_flight) and room > len(queue)):
                forced = [] if constraint is None or self.depth.fixed == 0 else list(constraint.forced())
                ahead = sum(one.k + 1 for one in queue)
                if (most := self._most(asked.begin, ahead)) is None:
                    break
                k = min(self.depth.choose(room, self._traced(filters)), most)
                if queue and (k == COPIED or len(forced) >= LONG_RUN):  # the text must be known up to where they begin
                    break
                given = self._copying.proposed if k == COPIED else []
                if forced := [] if queue or given else forced:
                    checked = self._rounds.traced(filters, self._cache.capacity, drafting=False)
                    k, given = self.depth.beside_forced(forced, k, room, most, self._traced(filters), checked)
                state, sent = self._dispatch(state, asked, ahead, k, most, given, len(forced))
                queue.append(sent)
            report = cast("list[int]", queue[0].report.tolist())
            self._check(asked)
        return state, queue.popleft(), report  # not before: what Ctrl-C leaves is waited for

    def _check(self, request: object) -> None:
        """Leave the work of a request if another has begun since."""
        if request is not self._request:
            told = "another request has begun on this model: take one to its end, or close it, first"
            raise Interrupted(RuntimeError(told))

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Empty the cache and raise DeviceFailed where MLX fails.

        Metal counts an array as computed when its work has been sent, and tells of a failure (memory, a reset, a
        timeout) only at the next wait: whatever was written since may be anything, and nothing computes it again.
        """
        try:
            yield
        except Interrupted as error:
            raise error.reason from error.reason.__cause__
        except RuntimeError as error:
            self._sent.clear()
            self.begin_anew()
            if self.texts is not None:
                self.texts.clear()  # for other decoders, too
            raise failure(error) from error

    def _settle(self) -> None:
        """Wait for rounds that were sent and never read: those behind a stop token, or of an answer that was closed."""
        with self._computing():
            while self._sent:
                mx.eval(self._sent.popleft().report)

    def _kept(
        self, asked: Request, state: State, report: list[int], rows: tuple[mx.array, mx.array], room: int
    ) -> tuple[State, list[int], int, tuple[Logprob, ...]]:
        """Return what a round with that report comes to: next state, new tokens, drafts accepted, logprobs.

        ``rows``: hidden [K + 1, H] and logits [K + 1, V] that predicted its tokens. ``state`` is the last one that was
        dispatched; penalties and constraints may choose other tokens than the round did, and then go on from those.
        """
        (*report, accepted), (hidden, logits) = report, rows
        k = (len(report) - 1) // 2
        chosen, draft = report[: k + 1], report[k + 1 :]
        if asked.sampling.penalties:
            with self._computing():
                chosen, logits = asked.penalized(self.tokens, draft, logits)
            accepted = next((i for i, token in enumerate(draft) if token != chosen[i]), k)
            state = State.after(chosen[: accepted + 1], hidden, len(self.tokens))
        # Under a constraint also rows behind a refused token may serve.
        new = chosen[: min(accepted + 1 if asked.constraint is None else len(chosen), room)]
        new = new[: next((i for i, token in enumerate(new, 1) if token in asked.stop), len(new))]
        if asked.constraint is not None:
            with self._computing():
                new, replaced = asked.obeying(new, draft, logits, len(self.tokens), followed=bool(self._sent))
            self._replaced += (replaced - self._replaced) / 16
            if replaced:  # rounds in flight go on from a token that was refused
                self._sent.clear()
                state = State.after(new, hidden, len(self.tokens))
                accepted = len(new) - (draft[len(new) - 1 : len(new)] != new[-1:])
        with self._computing():
            self._check(asked)
            if self.target.dtype.size < mx.float32.size and asked.sampling.greedy:  # not awaited
                ties = asked.near_ties(logits[: len(new)], len(self.tokens))
                self._near_ties = ties if self._near_ties is None else self._near_ties + ties
                mx.async_eval(self._near_ties)
            return state, new, accepted, asked.logprobs(rows[1], new)

    def _prepare(self, prompt: list[int], room: int) -> None:
        """Take the text that ``prompt`` goes on with, and make room for it and its answer."""
        text = self.live if self.texts is None else self.texts.choose(self.live, prompt)
        self._go_on_with(text)
        # What lies beyond is given up now: buffers that shrink, or rings on their way back, no longer hold it.
        self.rows = text.shared(prompt)
        if self.passes is None:
            rows = len(prompt) + min(room, AHEAD) + (self._in_flight + 1) * (COPIED + 1)
            self._cache.shrink(max(rows, self._reserved))  # a short text must not attend to a long one's rows
            self._cache.reserve(rows)
        else:
            self._cache.resize(room_for(self.target.cache_spec.window, len(prompt) + AHEAD, 0).capacity)

    def _prepare_rounds(self, filters: Filters) -> None:
        """Have kernels built while the prompt is read."""
        self.depth.attend_to(self._cache.capacity)
        for k in (*self.depth.likely(), *([] if self.depth.copying is None else [COPIED])):
            self._rounds.build(k, filters)

    def _begin(
        self,
        prompt: list[int],
        sampling: Sampling,
        on_prefill: OnPrefill | None,
        snapshot_at: Collection[int],
        media: Sequence[SoftTokens],
    ) -> Generator[int, None, tuple[State, mx.array]]:
        """Read what is new of a prompt, with a pause after every chunk; return the state then and the logits [1, V] of
        its bonus."""
        self.reused, request = 0, self._request
        marks = marks_of(prompt, snapshot_at)
        start, hidden = self._rewind(prompt)
        missed = 0 < start == self._snapshots.due and start in marks  # a reading was interrupted before it was taken
        if missed and prompt[start - 1] >= 0 and self._cache.can_rewind(start - 1):
            start -= 1
        self.tokens, self.rows, self.reused = prompt[:start], start, start

        def chunk() -> int | None:
            self._check(request)
            return self.chunk

        def on_written(n: int) -> None:
            self.tokens, self.rows = prompt[:n], n

        def on_read(n: int) -> None:
            if on_prefill is not None:
                with interrupting():
                    on_prefill(n, len(prompt))
            self._check(request)

        for end in sorted({*marks, len(prompt)}):
            if end <= start or (end in marks[:-1] and not self._snapshots.worth(self._cache, end)):
                continue
            about, self._snapshots.due = (self.target, self._cache, prompt[:end], start), end
            hidden = yield from read_in_chunks(*about, on_written, on_read, chunk, media)
            start = end
            if end in marks:
                self._snapshots.take(self._cache, end, hidden)
        assert hidden is not None, "either a snapshot knows the last hidden state or a token was read"
        logits, position = first_logits(self.target, hidden), mx.array([len(prompt)], mx.int32)
        bonus = choose(logits, sampling.key(), position, sampling.filters).astype(mx.int32)
        return State(bonus, hidden, position), logits

    def _rewind(self, prompt: list[int]) -> tuple[int, mx.array | None]:
        """Rewind to the longest prefix of ``prompt`` that the cache can hold; return its length and, where it is known,
        the hidden state [1, H] after it."""
        self._snapshots.forget_beyond(self.rows)
        place, same = self._snapshots.last(), min(self.rows, len(prompt) - 1)
        known = place is not None and place.length == len(prompt)
        if not known and self._cache.can_rewind(same):
            return same, None
        if place is None:
            self._cache.newest = -1
            return 0, None
        self.rows = 0  # until all rings are back, the cache holds nothing
        self._cache.restore(place.rings, place.newest)
        return place.length, place.hidden if known else None

    def _traced(self, filters: Filters) -> set[int]:
        """Return the draft lengths whose rounds can run at once, COPIED among them."""
        rounds, capacity = self._rounds, self._cache.capacity
        return rounds.traced(filters, capacity) | ({COPIED} & rounds.traced(filters, capacity, drafting=False))

    def _most(self, begin: int, ahead: int) -> int | None:
        """Return how many drafts the next round may have; None: rounds in flight have to be read first.

        For exact text the capacity depends on the position, so no round may lie on both sides of where it changes.
        """
        if self.passes is None:
            return COPIED
        first, last = len(self.tokens) - 1 + len(self._sent), len(self.tokens) - 1 + ahead  # where it may begin
        capacity, end = room_for(self.target.cache_spec.window, begin + AHEAD, first)
        self._cache.resize(capacity)
        return min(self.passes.longest, end - 1 - last) if last < end else None

    def _dispatch(
        self, state: State, asked: Request, ahead: int, k: int, most: int, given: list[int], forced: int
    ) -> tuple[State, Dispatched]:
        """Dispatch one more round; up to ``ahead`` rows are written by rounds not read yet.

        Of its ``k`` drafts, at most ``most``, the first may be ``given``, as many as are ``forced`` by a constraint.
        """
        filters, rounds, wanted = asked.sampling.filters, self._rounds, k
        drafting = not given or len(given) < k
        self._cache.reserve(len(self.tokens) + ahead + max(k, min(most, MAX_DRAFT)))  # another length may be traced
        self.depth.attend_to(self._cache.capacity)
        rounds.build(k, filters)
        capacity = self._cache.capacity
        traced = {length for length in rounds.traced(filters, capacity, drafting=drafting) if length <= most}
        if not given and self.depth.fixed is None and traced and k not in traced and rounds.built(k, filters):
            k = self.depth.among(traced)  # the other is traced while the device works on this one
        unused = 0 if self.passes is None else self.passes.unused(k + 1)
        self._cache.newest = max(self._cache.newest, len(self.tokens) - 1 + ahead + k + unused)  # it can write
        function, compiled = rounds.get(k, filters, capacity, drafting=drafting)
        if compiled and not self._has_compiled:
            self._has_compiled = True
            self.depth.forget_times()
        use = (k, drafting, filters, compiled, capacity)
        state, self._cache.buffers, report, rows = function(state, self._cache.buffers, asked.key, given)
        mx.async_eval(report, *state, *self._cache.buffers)
        if k != wanted:
            rounds.trace(wanted, filters, self._cache.buffers, capacity)
        new = wanted if compiled and wanted not in traced else None
        # The first use of a shape is no measure, nor is an uncompiled round once others are compiled.
        timed = use in self._used and compiled == self._has_compiled and new is None
        self._used.add(use)
        return State(*state), Dispatched(k, min(forced, k), k - len(given), report, rows, timed, new)
