"""One answer: rounds in, events out, the thought's budget held, numbers counted."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import closing
from itertools import groupby
from typing import TYPE_CHECKING

from mlxmtp.engine.events import CLOSE, End, Event, FinishReason, Splitter, Text, Thinking
from mlxmtp.engine.stats import Meter, Stats, explain

if TYPE_CHECKING:
    from mlxmtp.decode.decoder import Decoder, Round
    from mlxmtp.engine.constraint import Matcher
    from mlxmtp.engine.params import Params
    from mlxmtp.engine.tokenizer import Tokenizer
    from mlxmtp.models.config import ModelConfig

OnPrefill = Callable[[int, int], None]  # (tokens read, tokens to read)


class Answer:
    """An answer on its way: iterate over its events once. Closing it, at any point, leaves the model ready."""

    def __init__(
        self,
        decoder: Decoder,
        config: ModelConfig,
        tokenizer: Tokenizer,
        prompt: list[int],
        params: Params,
        *,
        on_prefill: OnPrefill | None = None,
        snapshot_at: Collection[int] = (),
        matcher: Matcher | None = None,
    ) -> None:
        self._decoder, self._config, self._tokenizer = decoder, config, tokenizer
        self._prompt, self._params = prompt, params
        self._on_prefill, self._snapshot_at, self._matcher = on_prefill, snapshot_at, matcher
        # Under a constraint the checkpoint's stop tokens end an answer, where it may end.
        wanted = None if matcher is not None else params.stop
        self._stop = config.stop_ids if wanted is None else frozenset(wanted)
        self._meter = Meter(len(prompt), params.with_seed())
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
        return self._meter.stats(peak_memory=mx.get_peak_memory(), draft_reason=explain(self._decoder.depth))

    @property
    def complete(self) -> bool:
        """True unless the parameters' constraint demands more than what has come so far."""
        return self._matcher is None or self._matcher.complete

    def close(self) -> None:
        """Stop here."""
        self._events.close()

    def _run(self) -> Generator[Event, None, None]:
        detokenizer = self._tokenizer.detokenizer()
        splitter = Splitter(inside=self._tokenizer.opens_in_thought(self._prompt))
        last: int | None = None
        self._asked = True
        # The rounds are closed here and now when this generator is: the cache must be exact by then.
        with closing(self._rounds()) as rounds:
            for round_ in rounds:
                if not self._meter.began:
                    self._meter.reused_tokens = self._decoder.reused
                self._meter.add(round_)
                last = round_.tokens[-1]
                text = "".join(detokenizer.add(token) for token in round_.tokens if token not in self._stop)
                for event in _merged(splitter.feed(text)):
                    if event.text:
                        self._meter.show()
                    yield event
        reason: FinishReason = "length"
        if last in self._stop:
            reason = "tool" if last == self._tokenizer.special_id("<|tool_response>") else "stop"
        # A character that the limit has cut in two is neither shown nor read again by a continuation.
        rest = "" if reason == "length" else detokenizer.flush()
        yield from _merged([*splitter.feed(rest), *splitter.finish()])
        yield End(reason, self.stats)

    def _rounds(self) -> Generator[Round, None, None]:
        """Yield rounds; at its budget of tokens a thought is closed with the mark the model would have written."""
        from mlxmtp.decode.decoder import Round

        params = self._params
        limit = params.token_limit(self._config.generation, self._config.max_positions - len(self._prompt))
        close = self._tokenizer.special_id(CLOSE)
        budget = params.think_tokens if params.think and close is not None else None
        said: list[int] = []
        with closing(self._decode(said, limit if budget is None else min(limit, budget))) as rounds:
            for round_ in rounds:
                said += round_.tokens
                yield round_
        if budget is None or close is None or len(said) < budget or len(said) >= limit or said[-1] in self._stop:
            return
        if self._tokenizer.opens_in_thought([*self._prompt, *said]):
            said.append(close)
            if self._matcher is not None:
                self._matcher.accept([close])
            yield Round((close,), (), 0)
        if len(said) < limit:
            yield from self._decode(said, limit - len(said))

    def _decode(self, said: Sequence[int], count: int) -> Generator[Round, None, None]:
        """Return the rounds of at most `count` tokens that follow the prompt and what was said."""
        return self._decoder.rounds(
            [*self._prompt, *said],
            max_tokens=count,
            num_draft_tokens=self._params.num_draft_tokens,
            sampling=self._params.sampling(self._config.generation, self._meter.seed),
            stop=self._stop,
            on_prefill=None if said else self._on_prefill,
            snapshot_at=() if said else self._snapshot_at,
            constraint=self._matcher,
        )


def _merged(events: Sequence[Text | Thinking]) -> Iterator[Text | Thinking]:
    """Yield neighbours of one kind as one event."""
    for kind, run in groupby(events, type):
        yield kind("".join(event.text for event in run))
