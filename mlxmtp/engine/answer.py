"""One answer: rounds in, events out, the thought's budget kept, numbers counted."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from mlxmtp.engine.channels import CLOSE, Splitter
from mlxmtp.engine.events import End, Event, FinishReason, Text, Thinking
from mlxmtp.engine.params import Params
from mlxmtp.engine.stats import Meter, Stats
from mlxmtp.engine.tokenizer import Tokenizer

if TYPE_CHECKING:
    from mlxmtp.decode.decoder import Round
    from mlxmtp.decode.sampling import Sampling
    from mlxmtp.decode.snapshots import CacheState
    from mlxmtp.models.config import ModelConfig


class Drafting(Protocol):
    """What is asked of the draft length's controller (`mlxmtp.decode.draft_length.DraftLength`)."""

    limit: int
    fixed: int | None

    def best(self) -> int:
        """The draft length that is expected to be fastest now."""

    def gain(self) -> float | None:
        """Its speed, or that of the best length tried, in units of the plain speed; None until measured."""

    def accepted(self) -> float | None:
        """Expected share of first draft tokens that are accepted; None before anything was drafted."""

    def price(self) -> float | None:
        """Time of one more draft token in units of a plain round; None until measured."""

    def learned(self) -> dict[str, Any]:
        """What another process can begin with, as JSON takes it; empty until there is something to know."""

    def start_from(self, learned: Mapping[str, Any]) -> None:
        """Begins with what `learned` gave; raises ValueError for anything else."""


def explain(depth: Drafting) -> str:
    """One phrase for the statistics: the length, what it gains, and the two numbers that decide."""
    if depth.limit == 0:
        return "no drafter"
    if depth.fixed is not None:
        return f"drafting {depth.fixed}, as asked" if depth.fixed else "not drafting, as asked"
    best, gain = depth.best(), depth.gain()
    if gain is None:
        said = f"drafting {best} so far"
    elif best == 0:
        said = f"drafting is off, at best it would give {gain:.2f} times the plain speed"
    else:
        said = f"drafting {best} gives {gain:.2f} times the plain speed"
    why = _why(depth)
    return f"{said} ({why})" if why else said


def _why(depth: Drafting) -> str:
    accepted, price = depth.accepted(), depth.price()
    parts = [] if accepted is None else [f"{100 * accepted:.0f} % of first drafts accepted"]
    if price is not None:
        parts.append(f"a draft token costs {price:.2f} of a plain pass")
    return ", ".join(parts)


OnPrefill = Callable[[int, int], None]
"""Called with (tokens read, tokens to read) while the prompt is read."""


class DecoderLike(Protocol):
    """What is asked of a decoder: the contract of `mlxmtp.decode.decoder.Decoder`."""

    reused: int

    @property
    def depth(self) -> Drafting:
        """The draft length's controller."""

    def rounds(
        self,
        prompt_ids: Sequence[int],
        *,
        max_tokens: int,
        num_draft_tokens: int | Literal["auto"],
        sampling: Sampling,
        stop: Collection[int],
        on_prefill: OnPrefill | None,
        snapshot_at: Collection[int],
    ) -> Iterator[Round]:
        """A generator that decodes until a stop token (the last one yielded) or `max_tokens`."""

    def export_state(self, length: int | None = None) -> CacheState:
        """What was read and written, with its K/V, now or after `length` tokens."""

    def import_state(self, held: CacheState) -> None:
        """Goes on from what `held` gave; raises ValueError if the shapes are another model's."""

    def close(self) -> None:
        """Lets go of the networks."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of a decoder: prompt ids, choices, who watches the prompt's progress, where to come back to."""

    prompt: list[int]
    params: Params
    on_prefill: OnPrefill | None = None
    snapshot_at: Collection[int] = ()


class Answer:
    """An answer on its way: iterate over its events once; `stats` can be asked at any moment.

    Closing it, at any point, leaves the model ready for the next request.
    """

    def __init__(self, events: Generator[Event, None, None], stats: Callable[[], Stats]) -> None:
        self._events = events
        self._stats = stats

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        return next(self._events)

    @property
    def stats(self) -> Stats:
        """The numbers so far."""
        return self._stats()

    def close(self) -> None:
        """Stop here."""
        self._events.close()


def answer(decoder: DecoderLike, config: ModelConfig, tokenizer: Tokenizer, request: Request) -> Answer:
    """The answer to a request, on its way."""
    meter = Meter(len(request.prompt), request.params.with_seed())

    def stats() -> Stats:
        if inspect.getgeneratorstate(events) != inspect.GEN_CREATED and not meter.began:
            meter.reused_tokens = decoder.reused
        return meter.stats(peak_memory=_peak_memory(), draft_reason=explain(decoder.depth))

    events = _events(decoder, config, tokenizer, request, meter, stats)
    return Answer(events, stats)


def _events(
    decoder: DecoderLike,
    config: ModelConfig,
    tokenizer: Tokenizer,
    request: Request,
    meter: Meter,
    stats: Callable[[], Stats],
) -> Generator[Event, None, None]:
    params = request.params
    stop = config.stop_ids if params.stop is None else frozenset(params.stop)
    detokenizer = tokenizer.detokenizer()
    splitter = Splitter(inside=tokenizer.opens_in_thought(request.prompt))
    last: int | None = None
    rounds = _rounds(decoder, config, tokenizer, request, stop, meter.seed)
    # The rounds are closed here and now when this generator is: the cache must be exact by then.
    with closing(rounds):
        for round_ in rounds:
            if not meter.began:
                meter.reused_tokens = decoder.reused
            meter.add(round_)
            last = round_.tokens[-1]
            text = "".join(detokenizer.add(token) for token in round_.tokens if token not in stop)
            for event in _merged(splitter.feed(text)):
                if event.text:
                    meter.show()
                yield event
    reason = _finish_reason(last, stop, tokenizer)
    # A character that the limit has cut in two is neither shown nor read again by a continuation.
    rest = "" if reason == "length" else detokenizer.flush()
    yield from _merged([*splitter.feed(rest), *splitter.finish()])
    yield End(reason, stats())


def _rounds(
    decoder: DecoderLike,
    config: ModelConfig,
    tokenizer: Tokenizer,
    request: Request,
    stop: Collection[int],
    seed: int,
) -> Generator[Round, None, None]:
    """The rounds of an answer. A thought that reaches its budget is closed with the mark the model would have written.

    The cut is at a token, not at a round, so the draft length does not move it.
    """
    from mlxmtp.decode.decoder import Round

    params, prompt = request.params, request.prompt
    limit = params.token_limit(config.generation, config.max_positions - len(prompt))
    sampling = params.sampling(config.generation, seed)
    close = tokenizer.special_id(CLOSE)
    budget = params.think_tokens if params.think and close is not None else None

    def more(so_far: list[int], count: int, snapshot_at: Collection[int]) -> Iterator[Round]:
        rounds = decoder.rounds(
            so_far,
            max_tokens=count,
            num_draft_tokens=params.num_draft_tokens,
            sampling=sampling,
            stop=stop,
            on_prefill=None if len(so_far) > len(prompt) else request.on_prefill,
            snapshot_at=snapshot_at,
        )
        with closing(cast("Generator[Round, None, None]", rounds)):
            yield from rounds

    said: list[int] = []
    for round_ in more(prompt, limit if budget is None else min(limit, budget), request.snapshot_at):
        said += round_.tokens
        yield round_
    if budget is None or close is None or len(said) < budget or len(said) >= limit or said[-1] in stop:
        return
    if tokenizer.opens_in_thought([*prompt, *said]):
        said.append(close)
        yield Round((close,), (), 0)
    if len(said) < limit:
        yield from more([*prompt, *said], limit - len(said), ())


def _finish_reason(last: int | None, stop: Collection[int], tokenizer: Tokenizer) -> FinishReason:
    if last is None or last not in stop:
        return "length"
    return "tool" if last == tokenizer.special_id("<|tool_response>") else "stop"


def _merged(events: Sequence[Text | Thinking]) -> Iterator[Text | Thinking]:
    """Neighbours of one kind as one event."""
    for kind, run in groupby(events, type):
        yield kind("".join(event.text for event in run))


def _peak_memory() -> int:
    import mlx.core as mx

    return mx.get_peak_memory()
