"""One answer: rounds in, events out, the thought's budget held, numbers counted."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING

from mlxmtp.engine.calls import CallReader
from mlxmtp.engine.events import (
    CLOSE,
    OPEN,
    Call,
    Calling,
    End,
    Event,
    FinishReason,
    Splitter,
    StopStrings,
    Text,
    Thinking,
    Waiting,
)  # fmt: skip
from mlxmtp.engine.logprobs import TextLogprobs
from mlxmtp.engine.stats import Meter, Stats, explain
from mlxmtp.errors import LoadError

if TYPE_CHECKING:
    from mlxmtp.decode.decoder import Decoder
    from mlxmtp.decode.logprobs import Logprob
    from mlxmtp.decode.prefill import SoftTokens
    from mlxmtp.decode.round import Round
    from mlxmtp.engine.constraint import Matcher
    from mlxmtp.engine.params import Params
    from mlxmtp.engine.seat import Seat
    from mlxmtp.engine.tokenizer import Tokenizer
    from mlxmtp.models.config import ModelConfig

OnPrefill = Callable[[int, int], None]  # (tokens read, tokens to read)


class Answer:
    """An answer on its way: iterate over its events once. Closing it, at any point, leaves the model ready."""

    def __init__(
        self,
        decoder: Decoder | Seat,
        config: ModelConfig,
        tokenizer: Tokenizer,
        stop_ids: frozenset[int],
        prompt: list[int],
        params: Params,
        *,
        on_prefill: OnPrefill | None = None,
        snapshot_at: Collection[int] = (),
        matcher: Matcher | None = None,
        calls: bool = False,
        media: Sequence[SoftTokens] = (),
        begun: int = 0,
    ) -> None:
        """`stop_ids`: the checkpoint's stop tokens, which the parameters may replace. `begun`: so many tokens at the
        prompt's end are the beginning of the answer.

        `calls`: tools may be called, so what the model writes as calls comes as such and not as text.
        """
        self._decoder, self._config, self._tokenizer = decoder, config, tokenizer
        self._prompt, self._params = prompt, params
        self._on_prefill, self._snapshot_at, self._matcher, self._calls = on_prefill, snapshot_at, matcher, calls
        self._media, self._begun = media, begun
        if prompt and max(prompt) >= config.vocab_size:
            told = f"tokenizer.json in {config.folder} knows token {max(prompt)}, the model has {config.vocab_size}"
            raise LoadError(f"{told}: take both from one checkpoint.")
        # Under a constraint the checkpoint's stop tokens end an answer, where it may end.
        wanted = None if matcher is not None else params.stop
        self._stop = stop_ids if wanted is None else frozenset(wanted)
        self._meter = Meter(len(prompt), params.with_seed())
        self.prompt: Sequence[int] = prompt
        self.tokens: list[int] = []  # so far, those of marks and the stop token among them
        self._strings = StopStrings(params.stop_strings)
        self._unfinished = False  # more rounds are asked for when those of now have come
        self._reopens: int | None = None  # and when they end with this token, which opens a thought
        self._near_ties: int | None = None  # known at the end
        self._asked = False  # the decoder has the prompt: what it says of reused tokens is about this answer
        self._events = self._run()

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        return next(self._events)

    @property
    def stats(self) -> Stats:
        """The numbers so far."""
        import mlx.core as mx

        if self._asked and not self._meter.began:
            self._meter.reused_tokens = self._decoder.reused
        decoder = self._decoder
        reason = explain(decoder.depth) + ("" if decoder.passes is None else ", exact text")
        return self._meter.stats(peak_memory=mx.get_peak_memory(), draft_reason=reason, near_ties=self._near_ties)

    @property
    def complete(self) -> bool:
        """True unless the parameters' constraint demands or allows more than what has come so far."""
        return self._matcher is None or (self._matcher.whole and not self._strings.found)

    def returns_after(self, token: int) -> bool:
        """Return True if more rounds may be asked for when those of now have ended with `token`."""
        return token not in self._stop and (self._unfinished or token == self._reopens)

    def close(self) -> None:
        """Stop here."""
        self._events.close()

    def _run(self) -> Generator[Event, None, None]:
        inside, strings = self._tokenizer.opens_in_thought(self._prompt), self._strings
        singly = bool(self._params.stop_strings)
        form = self._params.constraint  # with tools, text that is free has one, too
        in_form = form is not None and bool(form.calls or not self._calls)
        how = {"calls": self._calls, "singly": singly, "in_form": in_form}
        reading = _Reading(self._tokenizer, strings, inside=inside, **how)
        last: int | None = None
        self._asked, called = True, False
        # The rounds are closed here and now when this generator is: the cache must be exact by then.
        with closing(self._rounds()) as rounds:
            for round_ in rounds:
                if not round_.tokens:
                    yield Waiting()
                    continue
                if not self._meter.began:
                    self._meter.reused_tokens = self._decoder.reused
                last = round_.tokens[-1]
                spoken = len(round_.tokens) - (last in self._stop)
                events, read = reading.feed(round_.tokens[:spoken], round_.logprobs[:spoken])
                # What stands behind a stop string depends on the draft length.
                tokens = round_.tokens[:read] if strings.found else round_.tokens
                self._meter.add(replace(round_, tokens=tokens, accepted=min(round_.accepted, len(tokens))))
                self.tokens += tokens
                for event in _merged(events):
                    called |= isinstance(event, Call)
                    if isinstance(event, Call) or (isinstance(event, Text | Thinking) and event.text):
                        self._meter.show()
                    yield event
                if strings.found:
                    break
        self._near_ties = self._decoder.count_near_ties()
        reason: FinishReason = "length"
        if last in self._stop:
            waits = last == self._tokenizer.special_id("<|tool_response>")
            reason = "tool" if waits and (called or self._matcher is None) else "stop"  # at the end of a form all do
        # A character that the limit has cut in two is neither shown nor read again by a continuation.
        yield from _merged(reading.finish(cut=reason == "length"))
        yield End("stop" if strings.found else reason, self.stats, strings.stop)

    def _rounds(self) -> Generator[Round, None, None]:
        """Yield rounds; at its budget of tokens a thought is closed with the mark the model would have written."""
        from mlxmtp.decode.round import Round

        params, budget = self._params, self._params.think_tokens
        limit = params.token_limit(self._config.generation, self._config.max_positions - len(self._prompt))
        opening, close = self._tokenizer.special_id(OPEN), self._tokenizer.special_id(CLOSE)
        if budget is None or not params.think or opening is None or close is None:
            yield from self._decode([], limit, self._stop)
            return
        said, end, stop = list[int](), min(budget, limit), self._stop
        while len(said) < limit:
            self._unfinished, self._reopens = end < limit, opening if opening in stop else None
            with closing(self._decode(said, end - len(said), stop)) as rounds:
                for round_ in rounds:
                    said += round_.tokens
                    yield round_
            if not said or said[-1] in self._stop or len(said) >= limit or (len(said) < end and said[-1] != opening):
                return
            spent = self._thought(said, opening, close)
            if spent >= budget:
                said.append(close)
                if self._matcher is not None:
                    self._matcher.accept([close])
                yield Round((close,), (), 0)
            if 0 < spent < budget:
                end, stop = min(len(said) + budget - spent, limit), self._stop
            else:
                end, stop = limit, self._stop | {opening}

    def _thought(self, said: list[int], opening: int, close: int) -> int:
        """Return how many of the tokens `said` are of a thought that is open, its mark among them."""
        if not self._tokenizer.opens_in_thought([*self._prompt, *said]):
            return 0
        start = len(said) - said[::-1].index(close) if close in said else 0
        return len(said) - (said.index(opening, start) if opening in said[start:] else start)

    def _decode(self, said: Sequence[int], count: int, stop: frozenset[int]) -> Generator[Round, None, None]:
        """Return the rounds of at most `count` tokens that follow the prompt and what was said, up to one of `stop`."""
        sampling = self._params.sampling(self._config.generation, self._meter.seed)
        sampling = replace(sampling, penalties=replace(sampling.penalties, begun=self._begun))
        return self._decoder.rounds(
            [*self._prompt, *said],
            max_tokens=count,
            num_draft_tokens=self._params.num_draft_tokens,
            draft_from=self._params.draft_from.split(","),
            sampling=sampling,
            stop=stop,
            on_prefill=None if said else self._on_prefill,
            snapshot_at=() if said else self._snapshot_at,
            constraint=self._matcher,
            top_logprobs=self._params.top_logprobs,
            media=self._media,
            said=len(said),
        )


class _Reading:
    """Token ids in, events out, up to the first stop string in a text. `singly`: a token at a time.

    `in_form`: the answer has a form, in which a mark spelled in other tokens is text.
    """

    def __init__(
        self, tokenizer: Tokenizer, strings: StopStrings, *, inside: bool, calls: bool, singly: bool, in_form: bool
    ) -> None:
        self._detokenizer, self._strings = tokenizer.detokenizer(), strings
        self._splitter = Splitter(inside=inside)
        self._calls = CallReader(tokenizer) if calls else None
        self._told = TextLogprobs(tokenizer)
        self._singly = singly
        self._marks = {tokenizer.special_id(mark) for mark in (OPEN, CLOSE)}
        self._by_id = in_form and None not in self._marks

    def feed(self, tokens: Sequence[int], logprobs: Sequence[Logprob] = ()) -> tuple[list[Event], int]:
        """Return the events that are certain, and the number of tokens up to the end of a stop string.

        `logprobs`, if there are any, are those of the tokens.
        """
        if not logprobs and not self._singly:
            return self._feed(tokens), len(tokens)
        events: list[Event] = []
        for place, token in enumerate(tokens):
            events += self._feed_told(token, logprobs[place]) if logprobs else self._feed([token])
            if self._strings.found:
                return events, place + 1
        return events, len(tokens)

    def _feed(self, tokens: Sequence[int]) -> list[Event]:
        if self._calls is None and self._by_id:
            return self._before_stop([event for token in tokens for event in self._by_marks(token)])
        if self._calls is None:
            return self._before_stop(self._splitter.feed("".join(map(self._detokenizer.add, tokens))))
        parts = self._parts([part for token in tokens for part in self._calls.feed(token)])
        return self._before_stop([*parts, Calling()] if self._calls.inside else parts)

    def _by_marks(self, token: int) -> list[Text | Thinking]:
        feed = self._splitter.feed if token in self._marks else self._splitter.feed_plain
        return feed(self._detokenizer.add(token))

    def _feed_told(self, token: int, logprob: Logprob) -> list[Event]:
        before, events = self._in_text, self._feed([token])
        if before and self._in_text and token not in self._marks:  # no thought or call
            self._told.add(logprob)
        return self._told.beside(events)

    @property
    def _in_text(self) -> bool:
        return not self._splitter.inside and (self._calls is None or not self._calls.inside)

    def finish(self, *, cut: bool) -> list[Event]:
        """Return what had to wait; nothing after a stop string."""
        if self._strings.found:
            return []
        events = [] if self._calls is None else self._parts(self._calls.finish())
        rest = "" if cut else self._detokenizer.flush()
        found = self._before_stop([*events, *self._splitter.feed(rest), *self._splitter.finish()])
        return self._told.beside([*found, Text(held)] if (held := self._strings.finish()) else found)

    def _parts(self, parts: Sequence[int | Call]) -> list[Event]:
        events: list[Event] = []
        text = ""
        for part in parts:
            if isinstance(part, Call):
                events += [*self._splitter.feed(text + self._detokenizer.flush()), *self._splitter.finish(), part]
                text = ""
            elif self._by_id:
                events += self._by_marks(part)
            else:
                text += self._detokenizer.add(part)
        return [*events, *self._splitter.feed(text)]

    def _before_stop(self, events: Sequence[Event]) -> list[Event]:
        """Return events up to a stop string, which is looked for in texts and not in thoughts or calls."""
        found: list[Event] = []
        for event in events:
            if not isinstance(event, Text):
                if not isinstance(event, Calling) and (held := self._strings.finish()):  # it stands before these
                    found.append(Text(held))
                found.append(event)
            elif text := self._strings.feed(event.text):
                found.append(Text(text))
            if self._strings.found:
                break
        return found


def _merged(events: Sequence[Event]) -> Iterator[Event]:
    """Yield neighbours of one kind as one event."""
    for kind, run in groupby(events, type):
        if kind is Text:
            texts = [event for event in run if isinstance(event, Text)]
            yield Text("".join(one.text for one in texts), tuple(told for one in texts for told in one.logprobs))
        elif kind is Thinking:
            yield Thinking("".join(event.text for event in run if isinstance(event, Thinking)))
        else:
            yield from run
