"""Several texts in one round after another: a lane of slots, each with a text that joins, goes on and leaves.

Contract: between two calls ``stream.tokens`` is what came of each text. The text depends on its prompt and settings,
never on its slot or on what its neighbours do.
"""

import time
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import mlx.core as mx

from mlxmtp.decode.acceptance import Acceptance, Kind
from mlxmtp.decode.batch_round import Slots
from mlxmtp.decode.compile import BatchRounds
from mlxmtp.decode.decoder import AHEAD
from mlxmtp.decode.draft_length import GAP, WORTHWHILE, DraftLength
from mlxmtp.decode.mixed_sampling import choices, kind_of
from mlxmtp.decode.round import Round, State
from mlxmtp.decode.round_times import TOKEN
from mlxmtp.decode.sampling import Sampling
from mlxmtp.limits import MAX_DRAFT, SLACK
from mlxmtp.models.device import failure, rounds_in_flight
from mlxmtp.models.kv_cache import KVCache, aligned

LENGTHS = (0, 1, 3)
"""Drafts of several texts: rows add up, and each length is a trace for each number of slots."""
_CROWD = 0.7  # exponent: a draft token for B texts costs B ** 0.7 of one, a plain round a little more than one (CPU)
_PATIENCE = 12  # rounds with half of the slots empty before there are fewer: another number is another trace
_FORGETS = 0.2  # weight of the last round among their times


@dataclass(slots=True, eq=False)
class Stream:
    """A text in a lane: its prompt and what came of it. ``room``: how many more tokens may come; ``limit``: the most
    draft tokens, None for what is best for all."""

    tokens: list[int]
    room: int
    sampling: Sampling
    stop: Collection[int] = ()
    limit: int | None = None
    newest: int = -1  # highest position written in its slot
    here: bool = False
    acceptance: Acceptance = field(default_factory=lambda: Acceptance(MAX_DRAFT))

    @property
    def rows(self) -> int:
        """Positions with keys and values: all but the last token's."""
        return len(self.tokens) - 1

    @property
    def needed(self) -> int:
        """Positions that it has and will have, as far as room is made for them."""
        return len(self.tokens) + min(self.room, AHEAD)

    @property
    def over(self) -> bool:
        return self.room <= 0 or self.tokens[-1] in self.stop

    def expected(self, most: int) -> list[float]:
        """Return the expected tokens of a round with 0, 1, ... ``most`` drafts."""
        tokens = self.acceptance.tokens(most)[: most + 1]
        return tokens if self.limit is None else [tokens[min(k, self.limit)] for k in range(len(tokens))]


class _Sent(NamedTuple):
    k: int
    report: mx.array
    streams: list[Stream | None]
    timed: bool
    traced: int | None  # the length that was traced before it or beside it


class Lane:
    """Slots for texts: as many as there are texts, rounded up to a power of two."""

    def __init__(self, rounds: BatchRounds, *, in_flight: int | None = None) -> None:
        self._rounds = rounds
        self._in_flight = rounds_in_flight() if in_flight is None else in_flight
        self._streams: list[Stream | None] = []
        self._sent: deque[_Sent] = deque()
        self._depths: dict[int, DraftLength] = {}  # by number of slots: what drafts cost depends on it
        self._used: set[tuple[object, ...]] = set()
        self._has_compiled = False
        self._ended = 0.0
        self.seconds = 0.0  # that a round takes, of late; 0 before one was timed
        self._half_empty = 0  # rounds for which so few texts have been here
        self._half_used = 0  # and for which they have been so short
        self._last = 1  # slots of the last round
        self.acceptance = Acceptance(MAX_DRAFT).kinds  # of the texts so far, for those that join
        self._empty()

    def _empty(self) -> None:
        for stream in filter(None, self._streams):
            stream.here = False
        self._streams, self._cache = [], self._rounds.cache(1)
        self._sent.clear()
        self._state = self._rounds.state(0)
        self._slots: Slots | None = None
        self._kinds: tuple[int, ...] = ()

    @property
    def streams(self) -> list[Stream]:
        """The texts that are here."""
        return [stream for stream in self._streams if stream is not None]

    @property
    def capacity(self) -> int:
        return self._cache.capacity

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return sum(buffer.nbytes for buffer in self._cache.buffers)

    def nbytes_with(self, rows: int, expected: int) -> int:
        """Return the bytes after a text of so many rows has joined, among ``expected`` ones."""
        spec = self._cache.spec
        capacity = max(self._cache.capacity_for(rows + self._margin), aligned(spec.window + SLACK))
        return self._slots_for(expected) * spec.nbytes(self._cache.dtype, capacity)

    def _slots_for(self, expected: int) -> int:
        """Return the number of slots when another text has come: no more, as long as one is empty."""
        if None in self._streams:
            return len(self._streams)
        return 1 << (max(len(self._streams) + 1, expected) - 1).bit_length()

    def join(self, stream: Stream, text: KVCache, hidden: mx.array, *, expected: int = 1) -> None:
        """Take in a text: ``text`` holds all positions but the last token's, ``hidden`` [1, H] predicted that token.

        ``expected``: so many texts will soon be here, so that they need not begin with fewer slots.
        """
        with self._computing():
            if None not in self._streams:
                self._arrange(range(len(self._streams)), self._slots_for(expected))
            slot = self._streams.index(None)
            self._cache.reserve(max(stream.needed, text.newest + 1) + self._margin)
            self._cache.put(slot, text, stream.rows)
            bonus, states, offset = self._state
            bonus[slot], states[slot], offset[slot] = stream.tokens[-1], hidden[0], stream.rows
            self._state = State(bonus, states, offset)
            mx.eval(*self._state)
        stream.newest, stream.here = text.newest, True
        stream.acceptance.start_from(self.acceptance)
        self._streams[slot], self._slots = stream, None

    def leave(self, stream: Stream, *, keep: bool = False) -> KVCache | None:
        """Free the slot of a text; ``keep`` returns its keys and values."""
        if not stream.here:
            return None
        stream.here = False
        stream.acceptance.kinds = self.acceptance  # others have left since it came
        self.acceptance = stream.acceptance.learned()
        slot = self._streams.index(stream)
        with self._computing():
            text = self._cache.take(slot, stream.rows, max(stream.newest, stream.rows - 1)) if keep else None
            self._state.offset[slot] = 1  # what is still written there lies at the beginning
            self._streams[slot], self._slots = None, None
            if not self.streams:
                self._settle()
                self._empty()
        return text

    def step(self) -> list[tuple[Stream, Round]]:
        """Return what the next round gives every text; a text that is over leaves by `leave`."""
        if not self.streams:
            return []
        with self._computing():
            self._narrow()
        began = time.perf_counter()
        with self._computing():
            while not self._sent or (len(self._sent) <= self._in_flight and self._goes_on(len(self._sent))):
                self._sent.append(self._dispatch())
            report = cast("list[list[int]]", self._sent[0].report.tolist())
        sent, ended = self._sent.popleft(), time.perf_counter()
        steps = [
            (stream, self._taken(stream, sent.k, row))
            for stream, row in zip(sent.streams, report, strict=True)
            if stream is not None and stream.here and not stream.over
        ]
        since = began if not self._in_flight or self._ended == 0 else self._ended
        took, outside = ended - since, began - since
        if sent.timed and outside <= GAP * took:
            self.seconds += (took - self.seconds) * (_FORGETS if self.seconds else 1.0)
        accepted = sum(one.accepted for _, one in steps) // max(len(steps), 1)  # that some do is no sign that it pays
        depth = self._depth(len(sent.streams))
        depth.observe(sent.k, accepted, took, timed=sent.timed, traced=sent.traced, outside=outside)
        self._ended = ended
        return steps

    def _goes_on(self, rounds: int) -> bool:
        """Return whether a text may go on after so many rounds, which give it a token each at least."""
        return any(one.room > rounds for one in self.streams)

    @property
    def _margin(self) -> int:
        return (self._in_flight + 1) * (MAX_DRAFT + 1)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Empty the lane and raise DeviceFailed where MLX fails: whatever was written may be anything."""
        try:
            yield
        except RuntimeError as error:
            self._empty()
            raise failure(error) from error

    def _settle(self) -> None:
        while self._sent:
            mx.eval(self._sent.popleft().report)

    def _narrow(self) -> None:
        """Give half of the slots up if they have been empty for some rounds, and rows behind all texts likewise."""
        held = [i for i, one in enumerate(self._streams) if one is not None]
        self._half_empty = self._half_empty + 1 if 2 * len(held) <= len(self._streams) else 0
        if self._half_empty > _PATIENCE:
            self._half_empty = 0
            self._arrange(held, len(self._streams) // 2)
        rows = max(one.needed for one in self.streams) + self._margin
        self._half_used = self._half_used + 1 if 2 * rows < self._cache.capacity else 0
        if self._half_used > _PATIENCE:
            self._half_used = 0
            self._cache.shrink(rows)

    def _arrange(self, held: Sequence[int], slots: int) -> None:
        """Put the texts of the slots ``held`` into the first of ``slots``."""
        index = [*held, *[held[0] if held else 0] * (slots - len(held))]
        if self._streams:
            self._cache.arrange(index)
            at = mx.array(index, mx.int32)
            self._state = State(*(part[at] for part in self._state))
            self._state.offset[len(held) :] = 1
        else:
            self._cache, self._state = self._rounds.cache(slots), self._rounds.state(slots)
        self._streams = [self._streams[i] for i in held] + [None] * (slots - len(held))
        self._slots = None

    def _dispatch(self) -> _Sent:
        streams, slots = list(self._streams), len(self._streams)
        here, self._last = self.streams, slots
        self._refresh()
        ahead = sum(one.k + 1 for one in self._sent)
        self._cache.reserve(max(len(one.tokens) for one in here) + ahead + MAX_DRAFT)
        kind, capacity, depth = (slots, *self._kinds), self._cache.capacity, self._depth(slots)
        depth.attend_to(capacity)
        traced = self._rounds.traced(kind, capacity)
        wanted = k = depth.choose(max(one.room for one in here), traced)
        self._rounds.build(k, kind)
        if depth.fixed is None and traced and k not in traced and self._rounds.built(k, kind):
            k = depth.among(traced)  # the other is traced while the device works on this one
        function, compiled = self._rounds.get(k, kind, capacity)
        if compiled and not self._has_compiled:
            self._has_compiled = True
            for other in self._depths.values():
                other.forget_times()
        use = (k, kind, compiled, capacity)
        new = wanted if compiled and wanted not in traced else None
        timed = use in self._used and compiled == self._has_compiled and new is None
        self._used.add(use)
        for one in here:
            one.newest = max(one.newest, one.rows + ahead + k)
        assert self._slots is not None
        state, self._cache.buffers, report = function(self._state, self._cache.buffers, self._slots)
        self._state = State(*state)
        mx.async_eval(report, *self._state, *self._cache.buffers)
        if k != wanted:
            self._rounds.trace(wanted, kind, self._cache.buffers, capacity)
        return _Sent(k, report, streams, timed, new)

    def _refresh(self) -> None:
        """Bring what is asked of the texts to the device, after one has joined or left."""
        if self._slots is not None:
            return
        limits = [-1 if one is None else MAX_DRAFT if one.limit is None else one.limit for one in self._streams]
        here = self.streams
        samplings = [(here[0] if one is None else one).sampling for one in self._streams]
        self._kinds = tuple(sorted({kind_of(one.filters) for one in samplings}))
        self._slots = Slots(mx.array(limits, mx.int32), choices(samplings))
        depth = self._depth(len(self._streams))
        asked = [one.limit for one in here if one.limit is not None]
        depth.fixed = max(asked) if len(asked) == len(here) else None

    def _taken(self, stream: Stream, k: int, row: Sequence[int]) -> Round:
        """Return what a row of the report gives a text: up to a stop token, within its room."""
        chosen, draft, accepted = row[: k + 1], row[k + 1 : -1], row[-1]
        new = chosen[: min(accepted + 1, stream.room)]
        new = new[: next((i for i, token in enumerate(new, 1) if token in stream.stop), len(new))]
        stream.tokens += new
        stream.room -= len(new)
        draft = draft[: stream.limit]
        stream.acceptance.observe(len(draft), accepted)
        return Round(tuple(new), tuple(draft), min(accepted, len(new)))

    @property
    def depth(self) -> DraftLength:
        """The choice of draft lengths for as many texts as are here, or were in the last round."""
        return self._depth(len(self._streams) or self._last)

    def _depth(self, slots: int) -> DraftLength:
        if slots not in self._depths:
            limit, together = max(LENGTHS) if self._rounds.drafts else 0, _Together(self)
            if slots == 1:
                depth = DraftLength(MAX_DRAFT if limit else 0, _accepted=together)
            else:
                about = {"token": TOKEN * slots**_CROWD, "worthwhile": WORTHWHILE * slots}
                depth = DraftLength(limit, lengths=LENGTHS, _accepted=together, **about)
            self._depths[slots] = depth
        return self._depths[slots]

    def learned(self) -> dict[str, Any]:
        """Return what `DraftLength.learned` returns, by number of slots."""
        depths = list(self._depths.items())  # asked from another thread, too
        return {str(slots): learned for slots, depth in depths if (learned := depth.learned())}

    def start_from(self, learned: Mapping[str, Any]) -> None:
        """Begin with what `learned` gave. Raises ValueError for anything else."""
        for slots, known in learned.items():
            self._depth(int(slots)).start_from(known)


class _Together(Acceptance):
    """Acceptance of drafts on average over the texts of a lane, each of which keeps its own account."""

    def __init__(self, lane: Lane) -> None:
        super().__init__(MAX_DRAFT)
        self._lane = lane

    def tokens(self, most: int | None = None) -> list[float]:
        """Return the expected tokens of a round per text."""
        return self.by_kind(most)[0][1]

    def by_kind(self, most: int | None = None) -> list[tuple[float, list[float]]]:
        """Return the same as of one kind."""
        each = [stream.expected(MAX_DRAFT if most is None else most) for stream in self._lane.streams]
        if not each:
            usual = Acceptance(MAX_DRAFT)
            usual.start_from(self._lane.acceptance)
            return [(1.0, usual.tokens(most))]
        return [(1.0, [sum(of_length) / len(each) for of_length in zip(*each, strict=True)])]

    def observe(self, drafted: int, accepted: int) -> None:
        """Leave that to the texts."""

    def knows(self) -> bool:
        """Return True if texts have left."""
        return self._lane.acceptance != self.kinds

    def learned(self) -> list[Kind]:
        """Return the kinds of the texts that have left."""
        return self._lane.acceptance

    def start_from(self, kinds: Sequence[Kind]) -> None:
        """Begin with what `learned` gave."""
        self._lane.acceptance = list(kinds)
