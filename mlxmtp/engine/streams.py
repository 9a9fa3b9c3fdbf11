"""Several answers at once on one model: prompts are read in pieces between rounds, rounds are shared.

Everything runs on the thread that calls `step`. An answer that is the only one runs as it would without this module, in
rounds of its own. Answers that cannot share rounds (`Seat.alone`) keep such rounds beside the others, one answer at a
time.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import mlx.core as mx

from mlxmtp.decode.compile import BatchRounds
from mlxmtp.decode.decoder import Decoder, OnPrefill
from mlxmtp.decode.lane import Lane, Stream
from mlxmtp.decode.prefill import Beginning
from mlxmtp.decode.request import fixed_length
from mlxmtp.decode.round import Round
from mlxmtp.decode.snapshots import Snapshots
from mlxmtp.decode.texts import WORTH, HeldText
from mlxmtp.engine.events import End, Event, Waiting
from mlxmtp.engine.pieces import Pace
from mlxmtp.engine.seat import Seat
from mlxmtp.errors import MlxmtpError
from mlxmtp.machine.chip import this_machine
from mlxmtp.models.chunks import chunk_rows
from mlxmtp.models.config import SLIDING
from mlxmtp.models.device import failure, memory_limit
from mlxmtp.models.kv_cache import aligned

if TYPE_CHECKING:
    from mlxmtp.engine.answer import Answer

LANES = (4096, 16384, 65536)
"""Tokens up to which texts share a lane: every text of a lane costs what attending to the longest costs."""

_FILLED = 0.7  # share of the memory beside the weights that keys and values may take: some are copied now and then
_FORGETS = 0.3  # weight of the last measurement


@dataclass(slots=True, eq=False)
class Running:
    """An answer on its way among others; `tag` is whatever its owner calls it."""

    answer: Answer
    seat: Seat
    tag: Any = None


class _Reading(NamedTuple):
    """A prompt being read by `decoder`."""

    seat: Seat
    decoder: Decoder
    steps: Generator[int, None, Beginning]


class _Solo(NamedTuple):
    """Rounds of one answer alone."""

    seat: Seat
    decoder: Decoder
    rounds: Generator[Round, None, None]


class _OthersCome(Exception):
    """Raised out of the reading of a prompt that began as the only one."""


class Streams:
    """Answers side by side, at most `parallel` of them; `begin` adds one, `step` takes all of them further."""

    def __init__(self, decoder: Decoder, parallel: int, *, alone: bool = False) -> None:
        """`alone`: answers share no rounds, so that each is as exact as it would be by itself."""
        self.decoder, self.parallel, self._alone = decoder, parallel, alone
        self.beside: Decoder | None = None
        """The one of answers alone that come while the other is in use."""
        self._rounds = BatchRounds(decoder.target, decoder.drafter, decoder.compiled)
        self._lanes = [Lane(self._rounds) for _ in range(len(LANES) + 1)]
        for lane in self._lanes:
            lane.acceptance = decoder.depth.acceptance()
        self.most = 0
        """The most answers that were in rounds at a time; whoever wants that of a while sets it back."""
        self._running: list[Running] = []
        self._waiting: list[Seat] = []
        self._seats: dict[Stream, Seat] = {}
        self._reading: _Reading | None = None
        self._done = 0  # tokens of its prompt that are on their way
        self._solo: _Solo | None = None
        self._pace = Pace()
        self._read, self._spent = 0, 0.0  # rows of this prompt since the last round, and seconds
        self._solo_seconds = 0.0  # that a round of an answer alone takes, of late
        left = (memory_limit() or this_machine().usable) - mx.get_active_memory()  # beside weights and these texts
        self._memory = _FILLED * max(0, left + sum(one.nbytes for one in (decoder.live, *(decoder.texts or ()))))

    @property
    def running(self) -> Sequence[Running]:
        """The answers that have not ended, those that wait for a place among them."""
        return tuple(self._running)

    def begin(self, ask: Callable[[Seat], Answer], tag: Any = None) -> Running:
        """Add the answer that `ask` has the model give at a seat (`Model.seated`)."""
        seat = Seat(self.decoder, self._wait, self._free, never_shared=self._alone or self.parallel == 1)
        running = Running(ask(seat), seat, tag)
        self._running.append(running)
        return running

    def cancel(self, running: Running) -> None:
        """Close an answer; its place is free at once."""
        if running in self._running:
            self._running.remove(running)
        running.answer.close()

    def close(self) -> None:
        """Cancel all answers and let go of networks and traces."""
        for running in self.running:
            self.cancel(running)
        self._rounds.close()
        if self.beside is not None:
            self.beside.begin_anew()  # its text is held, if texts are
            self.beside.close()
            self.beside = None

    def learned(self) -> dict[str, Any]:
        """Return what was found out about drafting in rounds of several texts, as JSON."""
        return self._lanes[0].learned()

    def start_from(self, learned: Mapping[str, Any]) -> None:
        """Begin with what `learned` returned. Raises ValueError for anything else."""
        for lane in self._lanes:
            lane.start_from(learned)

    def step(self) -> list[tuple[Running, Event | Exception]]:
        """Read a piece of a prompt, decode a round of every text, and return what has come of it.

        After a prompt that ends within its piece comes the next one before the round: answers that are asked for
        together begin together, and a round costs the same with empty slots.
        An answer is over with its `End`, or with an exception, which concerns no other answer.
        """
        found = self._pull()  # those that have just begun ask for their rounds
        self._admit()
        began = time.perf_counter()
        self._read_on()
        self._admit()
        self._spent += time.perf_counter() - began
        if self._reading is not None and self._read < self._pace.rows:
            return found + self._pull()
        self.most = max(self.most, len(self._seats) + (self._solo is not None))
        began = time.perf_counter()
        rounds = sum(self._decode(lane) for lane in self._lanes if lane.streams) + self._decode_alone()
        self._pace.observe(self._spent + time.perf_counter() - began, self._read, rounds)
        self._read, self._spent = 0, 0.0
        return found + self._pull()

    def _wait(self, seat: Seat) -> None:
        """Put a seat, which wants rounds, into the line, and to its front if the answer has begun."""
        self._waiting.insert(0 if seat.asked.options["said"] else len(self._waiting), seat)

    def _free(self, seat: Seat) -> None:
        """Free what a seat occupies; its text is kept, if texts are, or by the seat if its answer may go on with it."""
        if seat in self._waiting:
            self._waiting.remove(seat)
        if self._reading is not None and self._reading.seat is seat:
            self._reading.steps.close()
            self._reading = None
        if self._solo is not None and self._solo.seat is seat:
            self._leave_solo()
        if seat.stream is not None and seat.lane is not None:
            stream, lane = seat.stream, seat.lane
            seat.stream = None
            del self._seats[stream]
            texts, rows = self.decoder.texts, stream.rows
            keep = rows >= WORTH and (texts is not None or self._returns(seat, stream))
            try:
                text = lane.leave(stream, keep=keep and self._make_room(self._nbytes(rows)))
            except MlxmtpError as error:  # nothing of the others is left in the lane either
                self._fail(lane, error)
                return
            if text is not None:
                held = HeldText(text, stream.tokens[:rows], rows, Snapshots(seat.snapshot))
                if texts is None:
                    seat.text = held
                else:
                    texts.add(held)

    def _pull(self) -> list[tuple[Running, Event | Exception]]:
        """Return the events of answers that can go on."""
        found: list[tuple[Running, Event | Exception]] = []
        for running in self.running:
            while running in self._running and running.seat.ready:
                try:
                    event: Event | Exception = next(running.answer)
                except Exception as error:  # noqa: BLE001  (told where this answer is awaited, the others go on)
                    event = error
                if not isinstance(event, Waiting):
                    found.append((running, event))
                if isinstance(event, End | Exception):
                    self._running.remove(running)
                    running.seat.text = None
        return found

    def _admit(self) -> None:
        """Give places to those who wait, first come, first served."""
        solo = None if self._solo is None or self._solo.seat.alone else self._solo.seat
        if solo is not None and len(self._running) > 1 and self._reading is None and self._fits(solo):
            self._share_solo()
        for seat in list(self._waiting):
            busy = len(self._seats) + (self._reading is not None) + (self._solo is not None)
            if busy >= self.parallel or self._reading is not None:
                return
            if seat.alone and self._solo is not None:
                continue  # until that one has ended
            only = seat.never_shared or len(self._running) == 1
            decoder = self._idle_decoder(seat.asked.prompt)
            if not only and (self._seats or self._solo) and not self._fits(seat, reads=decoder):
                return  # until another has left
            self._waiting.remove(seat)
            try:
                self._go_on_with_text(seat, decoder)
                if only:
                    self._begin_solo(seat, decoder, partial(self._read_alone, seat, decoder))
                else:
                    self._begin_reading(seat, decoder)
            except Exception as error:  # noqa: BLE001  (raised again where this answer is awaited)
                seat.end(error)

    def _returns(self, seat: Seat, stream: Stream) -> bool:
        """Return True if the answer may go on after these rounds, because of its thought's budget."""
        answer = next((one.answer for one in self._running if one.seat is seat), None)
        return stream.over and answer is not None and answer.returns_after(stream.tokens[-1])

    def _lane_of(self, seat: Seat) -> Lane:
        return self._lanes[bisect_left(LANES, seat.rows)]

    def _nbytes(self, rows: int) -> int:
        """Return the bytes of keys and values of one text, and of a snapshot of its rings."""
        spec, dtype, capacity = self.decoder.target.cache_spec, self.decoder.target.dtype, aligned(rows)
        return spec.nbytes(dtype, capacity) + spec.nbytes(dtype, capacity, (SLIDING,))

    def _fits(self, seat: Seat, expected: int = 1, *, reads: Decoder | None = None) -> bool:
        """Return True if there is memory for a text in its lane, among ``expected`` ones, and for a decoder that
        ``reads`` it first, which may go on in a text that is there."""
        lane, prompt, text = self._lane_of(seat), seat.asked.prompt, None
        bytes_ = 0 if seat.alone else lane.nbytes_with(seat.rows, expected) - lane.nbytes
        if reads is not None:
            best, stays = (reads.live, True) if reads.texts is None else reads.texts.best(reads.live, prompt)
            text = best if stays and best.usable(prompt) >= WORTH else None
            bytes_ += max(0, self._nbytes(seat.rows) - (0 if text is None else text.nbytes))
        return self._make_room(bytes_, text)

    def _make_room(self, nbytes: int, stays: HeldText | None = None) -> bool:
        """Return True if there is memory for so many more bytes of keys and values: held texts give way to them, and
        texts of idle decoders, but for one that ``stays``."""
        decoders = [one for one in (self.beside, self.decoder) if one is not None]
        kept = None if stays is None else stays.cache
        idle = [one for one in decoders if one.live.cache is not kept and one not in self.busy()]
        used = sum(lane.nbytes for lane in self._lanes) + sum(one.live.nbytes for one in decoders if one not in idle)
        used += sum(one.nbytes for one in self.decoder.texts or () if one is stays)
        left = self._memory - used - nbytes
        if left < 0:
            return False
        while sum(one.live.nbytes for one in idle) > left:
            idle.pop(0).begin_anew()
        if self.decoder.texts is not None:
            self.decoder.texts.keep_within(left - sum(one.live.nbytes for one in idle), stays)
        return True

    def busy(self, *, alone: bool = False) -> list[Decoder]:  # `alone`: only by answers that share no rounds
        return [one.decoder for one in (self._reading, self._solo) if one and (one.seat.alone or not alone)]

    def _idle_decoder(self, prompt: list[int]) -> Decoder:
        """Return a decoder that neither reads nor decodes: the one beside only if it is worth it for ``prompt``."""
        busy = self.busy()
        if self.beside is None and self.decoder in busy:
            about = self.decoder.target, self.decoder.drafter
            self.beside = Decoder(*about, compiled=self.decoder.compiled, passes=self.decoder.passes)
            self.beside.texts = self.decoder.texts
            if known := self.decoder.depth.learned():
                self.beside.depth.start_from(known)
        if self.beside is None or self.beside in busy:
            return self.decoder
        if self.decoder in busy:
            return self.beside
        held = max(text.usable(prompt) for text in (self.decoder.live, *(self.decoder.texts or ())))
        return self.beside if self.beside.live.usable(prompt) >= held + WORTH else self.decoder

    def _go_on_with_text(self, seat: Seat, decoder: Decoder) -> None:
        """Give a decoder what a seat has kept of rounds in a lane."""
        if seat.text is not None:
            text, seat.text = seat.text, None
            try:
                decoder.import_state(text.state())
            except RuntimeError as error:
                raise failure(error) from error

    def _begin_reading(self, seat: Seat, decoder: Decoder) -> None:
        wanted = seat.asked
        options = {name: wanted.options[name] for name in ("sampling", "snapshot_at", "media")}
        steps = decoder.read(wanted.prompt, on_prefill=wanted.on_prefill, **options)
        self._reading, self._done, seat.in_pieces = _Reading(seat, decoder, steps), 0, True

    def _begin_solo(self, seat: Seat, decoder: Decoder, on_prefill: OnPrefill | None = None) -> None:
        wanted = seat.asked
        seat.decoder, seat.lane = decoder, None
        rounds = decoder.rounds(wanted.prompt, max_tokens=wanted.max_tokens, on_prefill=on_prefill, **wanted.options)
        self._solo = _Solo(seat, decoder, rounds)

    def _read_alone(self, seat: Seat, decoder: Decoder, done: int, total: int) -> None:
        """Take in how far the prompt of an only answer is read; it is read in pieces when others have come."""
        seat.found(decoder.reused)
        if seat.asked.on_prefill is not None:
            seat.asked.on_prefill(done, total)
        if len(self._running) > 1 and not seat.never_shared:
            raise _OthersCome

    def _leave_solo(self) -> None:
        assert self._solo is not None
        self._solo.rounds.close()
        self._solo = None

    def _share_solo(self) -> None:
        """Bring the answer that was the only one to the others: it goes on from its text so far."""
        assert self._solo is not None
        seat, decoder = self._solo.seat, self._solo.decoder
        self._leave_solo()
        wanted = seat.asked
        if wanted.came:
            wanted.prompt, wanted.max_tokens = [*wanted.prompt, *wanted.came], wanted.max_tokens - len(wanted.came)
            wanted.on_prefill, wanted.options["snapshot_at"], wanted.came = None, (), []
        self._begin_reading(seat, decoder)

    def _read_on(self) -> None:
        """Read a piece of a prompt."""
        if self._reading is None:
            return
        seat, decoder, steps = self._reading
        wanted = seat.asked
        longest = chunk_rows(decoder.target.config, len(wanted.prompt), decoder.target.dtype.size)
        decoder.chunk = min(longest, self._pace.rows) if self._seats or self._solo else None
        try:
            before, self._done = self._done, next(steps)
            seat.found(decoder.reused)
            self._read += self._done - max(before, decoder.reused)
        except StopIteration as over:
            seat.found(decoder.reused)
            self._read += 1  # so that answers which end with their first token do not keep others waiting for ever
            try:
                self._begin_rounds(seat, decoder, over.value)
            finally:
                self._reading = None  # not before: nothing may take the decoder's text
        except Exception as error:  # noqa: BLE001  (raised again where this answer is awaited)
            self._reading = None
            seat.end(error)
        finally:
            decoder.chunk = None

    def _begin_rounds(self, seat: Seat, decoder: Decoder, begun: Beginning) -> None:
        """Decode an answer whose prompt has been read."""
        if not seat.alone and (self._solo is not None or self._fits(seat)):
            seat.snapshot = None if decoder.texts is None else decoder.live.snapshots.last()
            self._join(seat, begun)
            return
        seat.asked.options["snapshot_at"] = ()  # taken
        try:
            self._begin_solo(seat, decoder)  # reads the last token again
        except Exception as error:  # noqa: BLE001  (raised again where this answer is awaited)
            seat.end(error)

    def _join(self, seat: Seat, begun: Beginning) -> None:
        """Give a text whose prompt has been read a slot beside the others."""
        wanted, options = seat.asked, seat.asked.options
        fixed = fixed_length(options["num_draft_tokens"], options["draft_from"])
        text, most = [*wanted.prompt, begun.token], wanted.max_tokens - 1
        stream = Stream(text, most, options["sampling"], options["stop"], fixed)
        seat.take(Round((begun.token,), (), 0))
        if stream.over:
            seat.end()
            return
        sharing = sum(one.seat.wanted is None or not one.seat.alone for one in self._running)
        lane, expected = self._lane_of(seat), min(self.parallel, sharing)
        expected = expected if self._fits(seat, expected) else 1
        try:
            lane.join(stream, begun.cache, begun.hidden, expected=expected)
        except MlxmtpError as error:
            self._fail(lane, error)
            seat.end(error)
            return
        seat.stream, seat.lane = stream, lane
        self._seats[stream] = seat
        self._read, self._spent = 0, 0.0

    def _decode(self, lane: Lane) -> float:
        """Decode a round of a lane; return the seconds that one takes, of late."""
        capacity = lane.capacity
        try:
            steps = lane.step()
        except MlxmtpError as error:
            self._fail(lane, error)
            return 0.0
        for stream, round_ in steps:
            if (seat := self._seats.get(stream)) is None:  # the lane failed as another left
                continue
            seat.take(round_)
            if stream.over:
                self._free(seat)
                seat.end()
        if lane.capacity > capacity:
            self._make_room(0)
        return lane.seconds

    def _fail(self, lane: Lane, error: Exception) -> None:
        """End the answers whose lane the device could not compute."""
        for stream, seat in list(self._seats.items()):
            if seat.lane is lane:
                del self._seats[stream]
                seat.stream = None
                seat.end(error)

    def _decode_alone(self) -> float:
        """Decode a round of the answer that shares none; return the seconds that one takes, of late."""
        if self._solo is None:
            return 0.0
        seat, began = self._solo.seat, time.perf_counter()
        try:
            round_ = next(self._solo.rounds)
            wanted = seat.asked
            if wanted.came:  # else a prompt was read, too
                seconds = time.perf_counter() - began
                self._solo_seconds += (seconds - self._solo_seconds) * (_FORGETS if self._solo_seconds else 1.0)
            wanted.came += round_.tokens
            seat.found(self._solo.decoder.reused)
            seat.take(round_)
            if len(wanted.came) >= wanted.max_tokens or round_.tokens[-1] in wanted.options["stop"]:
                self._leave_solo()  # now: another that begins before the next step must not take it along
                seat.end()
        except StopIteration:
            self._solo = None
            seat.end()
        except _OthersCome:
            self._share_solo()
        except Exception as error:  # noqa: BLE001  (raised again where this answer is awaited)
            self._solo = None
            seat.end(error)
        return self._solo_seconds
