"""The model as people use it: messages or token ids in, events or rounds out.

Knows nothing of terminals and of where models come from. The decoder below it knows nothing of text.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, cast

from mlxmtp.engine.drafting import Drafting, explain
from mlxmtp.engine.events import End, Event, FinishReason, Text, Thinking
from mlxmtp.engine.params import Params
from mlxmtp.engine.prompt import Message, Tokenizer
from mlxmtp.engine.stats import Meter, Stats
from mlxmtp.engine.thinking import Splitter
from mlxmtp.errors import ContextOverflow, LoadError

if TYPE_CHECKING:
    from mlxmtp.decode.decoder import Round
    from mlxmtp.decode.sampling import Sampling
    from mlxmtp.models.config import ModelConfig

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
    ) -> Iterator[Round]:
        """A generator that decodes until a stop token (the last one yielded) or `max_tokens`."""


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


class Model:
    """A target with or without its drafter, and the tokenizer if the checkpoint has one."""

    def __init__(
        self,
        decoder: DecoderLike,
        config: ModelConfig,
        tokenizer: Tokenizer | None = None,
        *,
        name: str = "",
        drafter: str | None = None,
    ) -> None:
        self.config = config
        self.name = name or config.folder.name
        self.drafter = drafter
        self._decoder = decoder
        self._tokenizer = tokenizer

    @classmethod
    def load(
        cls,
        folder: Path,
        drafter: Path | None = None,
        *,
        name: str = "",
        drafter_name: str | None = None,
        draft_bits: int | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> Model:
        """Read target, drafter and tokenizer from their folders (a tokenizer that was read before can be given).

        Raises LoadError for files that are missing, damaged or do not belong together.
        """
        from mlxmtp.decode.decoder import Decoder
        from mlxmtp.models.load import load_drafter, load_target

        if tokenizer is None and (folder / "tokenizer.json").is_file():
            tokenizer = Tokenizer.load(folder)
        target = load_target(folder)
        network = None if drafter is None else load_drafter(drafter, target, bits=draft_bits)
        return cls(
            Decoder(target, network),
            target.config,
            tokenizer,
            name=name or str(folder),
            drafter=None if drafter is None else drafter_name or str(drafter),
        )

    @property
    def tokenizer(self) -> Tokenizer:
        """The text side; raises LoadError when the checkpoint has none."""
        if self._tokenizer is None:
            raise LoadError(
                f"{self.config.folder} has no tokenizer.json, so it works with token ids only: "
                "use rounds(), or add the tokenizer's files."
            )
        return self._tokenizer

    def rounds(
        self,
        prompt_ids: Sequence[int],
        *,
        max_tokens: int,
        num_draft_tokens: int | Literal["auto"] = "auto",
        temp: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        seed: int = 0,
        stop: Collection[int] | None = None,
    ) -> Iterator[Round]:
        """Decode token ids, round by round, with exactly these settings (the checkpoint decides only on `stop`).

        `stop=None` means the checkpoint's stop tokens (the last token yielded then is one of them), `()` none.
        Raises ContextOverflow when the prompt leaves no room in the context, ValueError for values out of range.
        """
        from mlxmtp.decode.sampling import Sampling

        return self._decoder.rounds(
            prompt_ids,
            max_tokens=max_tokens,
            num_draft_tokens=num_draft_tokens,
            sampling=Sampling(temp=temp, top_p=top_p, top_k=top_k, min_p=min_p, seed=seed),
            stop=self.config.stop_ids if stop is None else stop,
            on_prefill=None,
        )

    def stream(self, messages: Sequence[Message], params: Params | None = None) -> Answer:
        """Answer a conversation: `Text` and `Thinking` as they come, `End` last.

        Raises LoadError without a tokenizer, ContextOverflow when the conversation is longer than the context.
        """
        params = params or Params()
        return self.stream_ids(self.tokenizer.prompt_ids(messages, think=params.think), params)

    def stream_ids(
        self, prompt_ids: Sequence[int], params: Params | None = None, *, on_prefill: OnPrefill | None = None
    ) -> Answer:
        """Answer a prompt that is token ids already; otherwise as `stream`."""
        params = params or Params()
        tokenizer = self.tokenizer
        check_length(len(prompt_ids), self.config.max_positions, self.name)
        meter = Meter(len(prompt_ids), params.with_seed())

        def stats() -> Stats:
            meter.reused_tokens = self._decoder.reused
            return meter.stats(peak_memory=_peak_memory(), draft_reason=explain(self._decoder.depth))

        return Answer(self._events(prompt_ids, params, tokenizer, meter, stats, on_prefill), stats)

    def _events(
        self,
        prompt_ids: Sequence[int],
        params: Params,
        tokenizer: Tokenizer,
        meter: Meter,
        stats: Callable[[], Stats],
        on_prefill: OnPrefill | None,
    ) -> Generator[Event, None, None]:
        generation = self.config.generation
        stop = self.config.stop_ids if params.stop is None else frozenset(params.stop)
        rounds = self._decoder.rounds(
            prompt_ids,
            max_tokens=params.token_limit(generation, self.config.max_positions - len(prompt_ids)),
            num_draft_tokens=params.num_draft_tokens,
            sampling=params.sampling(generation, meter.seed),
            stop=stop,
            on_prefill=on_prefill,
        )
        detokenizer = tokenizer.detokenizer()
        splitter = Splitter(inside=tokenizer.opens_in_thought(prompt_ids))
        last: int | None = None
        # The rounds are closed here and now when this generator is: the cache must be exact by then.
        with closing(cast("Generator[Round, None, None]", rounds)):
            for round_ in rounds:
                meter.add(round_)
                last = round_.tokens[-1]
                text = "".join(detokenizer.add(token) for token in round_.tokens if token not in stop)
                for event in _merged(splitter.feed(text)):
                    meter.show()
                    yield event
        yield from _merged([*splitter.feed(detokenizer.flush()), *splitter.finish()])
        yield End(_finish_reason(last, stop, tokenizer), stats())


def context_of(folder: Path) -> int:
    """The longest context in tokens of the model in `folder`, from its JSON alone. Raises LoadError."""
    from mlxmtp.models.config import read_config

    return read_config(folder).max_positions


def check_length(prompt: int, context: int, name: str) -> None:
    """Raise ContextOverflow unless a prompt of that many tokens leaves room for an answer."""
    if prompt >= context:
        raise ContextOverflow(
            f"The prompt has {prompt:,} tokens and the context of '{name}' holds {context:,}: give less material."
        )


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
