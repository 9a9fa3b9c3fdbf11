"""The model as people use it: messages or token ids in, events or rounds out. Knows nothing of terminals."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property, partial
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from mlxmtp.engine.answer import Answer, OnPrefill
from mlxmtp.engine.call_grammar import form_or_calls, text_or_calls
from mlxmtp.engine.constraint import Matcher, TokenTable
from mlxmtp.engine.events import Event
from mlxmtp.engine.media import IMAGE_TOKENS, Media, Medium, expanded, media_in
from mlxmtp.engine.params import Params, check_stop
from mlxmtp.engine.tokenizer import Message, Tokenizer, Tool, stop_ids
from mlxmtp.engine.written import Written
from mlxmtp.errors import ContextOverflow, LoadError
from mlxmtp.limits import STREAMS, Exact
from mlxmtp.machine.chip import this_machine
from mlxmtp.machine.memory import held_bytes
from mlxmtp.machine.pace import Pace
from mlxmtp.machine.speed import round_costs

if TYPE_CHECKING:
    from mlxmtp.decode.decoder import Decoder
    from mlxmtp.decode.round import Round
    from mlxmtp.decode.texts import HeldText
    from mlxmtp.engine.seat import Seat
    from mlxmtp.engine.streams import Streams
    from mlxmtp.models.config import ModelConfig

_AROUND = 16  # more tokens than a template puts behind a question, and those that change with the text beside them


class Model:
    """A target with or without its drafter, and the tokenizer if the checkpoint has one."""

    def __init__(
        self,
        decoder: Decoder,
        config: ModelConfig,
        tokenizer: Tokenizer | None = None,
        *,
        name: str = "",
        drafter: str | None = None,
        kv_bits: int | None = None,
        exact: Exact = "auto",
        label: Mapping[str, str] | None = None,
    ) -> None:
        """`label`: `kv_file.label_of` the weights, if others may be in their folder by now."""
        from mlxmtp.engine import kv_file

        self.config, self.exact = config, exact
        self._label = label or kv_file.label_of(config.folder, kv_bits)
        self.name = name or config.folder.name
        self.drafter = drafter
        self.kv_bits = kv_bits  # of keys and values of full layers; None: as they are computed
        self._decoder, self._tokenizer = decoder, tokenizer
        self._seat: Seat | None = None  # of one answer among several, instead of the decoder
        self._streams: Streams | None = None  # the last ones
        self._known_together: dict[str, Any] = {}  # about drafting in rounds of several texts, from before
        self._tables: list[TokenTable] = []  # the one of the vocabulary, once a constraint needed it

    @classmethod
    def load(
        cls,
        folder: Path,
        drafter: Path | None = None,
        *,
        name: str = "",
        drafter_name: str | None = None,
        draft_bits: int | None = None,
        kv_bits: int | None = None,
        exact: Exact = "auto",
        tokenizer: Tokenizer | None = None,
        constrained: bool = False,
    ) -> Model:
        """Read target, drafter and tokenizer from their folders (a tokenizer that was read before can be given).

        `constrained`: answers will be held to a form or call tools, so the vocabulary is prepared meanwhile. `exact`:
        "on" for texts that are the same bit for bit with any drafts, "auto" where that costs nothing. Raises LoadError
        for files that are missing, damaged or do not belong together, or where exact texts cannot be had.
        """
        from concurrent.futures import ThreadPoolExecutor

        from mlxmtp.decode.decoder import Decoder
        from mlxmtp.decode.exact import find_passes
        from mlxmtp.engine import kv_file
        from mlxmtp.models.config import read_config
        from mlxmtp.models.load import load_drafter, load_target

        if exact not in get_args(Exact):
            raise ValueError(f"exact must be 'on', 'off' or 'auto', not {exact!r}")
        if tokenizer is None and (folder / "tokenizer.json").is_file():
            tokenizer = Tokenizer.load(folder)
        with ThreadPoolExecutor(1) as beside:  # Python works on the vocabulary while the weights come from the disk
            config = read_config(folder)
            table = beside.submit(_table_of, config, tokenizer) if constrained and tokenizer else None
            label = kv_file.label_of(folder, kv_bits)
            target = load_target(folder, kv_bits=kv_bits)
            if kv_file.label_of(folder, kv_bits) != label:
                raise LoadError(f"{folder} was replaced while it was read: open it again.")
            network = None if drafter is None else load_drafter(drafter, target, bits=draft_bits)
            decoder, name = Decoder(target, network, passes=find_passes(target, exact)), name or str(folder)
        shown = None if drafter is None else drafter_name or str(drafter)
        about: dict[str, Any] = {"drafter": shown, "kv_bits": kv_bits, "exact": exact, "label": label}
        model = cls(decoder, target.config, tokenizer, name=name, **about)
        model._tables += [] if table is None else [table.result()]
        return model

    @property
    def tokenizer(self) -> Tokenizer:
        """The text side; raises LoadError when the checkpoint has none."""
        if self._tokenizer is None:
            told = f"{self.config.folder} has no tokenizer.json, so it works with token ids only"
            raise LoadError(f"{told}: use rounds(), or add the tokenizer's files.")
        return self._tokenizer

    @cached_property
    def media(self) -> Media:
        """The senses of the checkpoint."""
        return Media(self.config)

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end an answer: of config.json, generation_config.json, the tokenizer and the turn format."""
        return stop_ids(self.config, self._tokenizer)

    @property
    def fingerprint(self) -> str:
        """A hash of the checkpoint's files, as they were read."""
        return self._label["model"]

    def prepare_constraints(self) -> None:
        """Make the vocabulary ready for constraints now, a second or more, so that no answer has to wait for that."""
        _ = self._token_table

    @property
    def _token_table(self) -> TokenTable:
        if not self._tables:
            self._tables.append(_table_of(self.config, self.tokenizer))
        return self._tables[0]

    def rounds(
        self,
        prompt_ids: Sequence[int],
        *,
        max_tokens: int,
        num_draft_tokens: int | Literal["auto"] = "auto",
        draft_from: str | Collection[str] = ("mtp",),
        temp: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        seed: int = 0,
        stop: Collection[int] | None = None,
        media: Sequence[object] | None = None,
        image_tokens: int = IMAGE_TOKENS,
    ) -> Iterator[Round]:
        """Decode token ids, round by round, with exactly these settings; `stop` None: at the checkpoint's stop tokens.

        `draft_from`: "mtp" (the drafter), "copy" (the text so far), or both. `media`: paths, bytes of files or Pillow's
        pictures, one for each `image_token_id` and `audio_token_id` in the prompt, in order; `image_tokens`: at most so
        many for a picture. Raises ContextOverflow when the prompt leaves no room in the context, ValueError for values
        out of range or another number of placeholders, UsageError for media that cannot be read.
        """
        from mlxmtp.decode.sampling import Sampling

        check_stop(stop)
        prepared = [self.media.prepare(one, image_tokens) for one in media or ()]
        if (video := next((one for one in prepared if one.times), None)) is not None:
            raise ValueError(f"{video.name} is a video, whose times are text: give its frames, or ask with messages")
        ids = expanded(prompt_ids, prepared, self.media.marks)
        return self._decoder.rounds(
            ids,
            media=self.media.soft(ids, prepared),
            max_tokens=max_tokens,
            num_draft_tokens=num_draft_tokens,
            draft_from=draft_from.split(",") if isinstance(draft_from, str) else draft_from,
            sampling=Sampling(temp=temp, top_p=top_p, top_k=top_k, min_p=min_p, seed=seed),
            stop=self.stop_ids if stop is None else stop,
        )

    def stream(
        self,
        messages: Sequence[Message],
        params: Params | None = None,
        *,
        on_prefill: OnPrefill | None = None,
        continues: bool = False,
        question: str = "",
        tools: Sequence[Tool] = (),
        written: Written | None = None,
        snapshot_at: Collection[int] | None = None,
    ) -> Answer:
        """Answer a conversation: `Text` and `Thinking` as they come, `End` last.

        `tools`: declarations (`engine/declarations.py`) of what may be called: calls come as `Call`, with arguments of
        their schema. `written`: answers to be read as they were written. `continues`: the last message is the
        beginning of the answer. `question`: the end of the last message; a snapshot is taken before it, in case another
        is asked. `snapshot_at`: as in `stream_ids`, in place of where it would be taken. Contents may be lists of
        parts, `{"type": "text", "text": …}` and `{"type": "image", "image": path, bytes or Pillow's}`. Raises LoadError
        without tokenizer or tower, UsageError for media that cannot be read, a constraint that cannot be used and tools
        that the model does not know, ContextOverflow.
        """
        params = params or Params()
        if tools:
            if (form := params.constraint) is None:
                params = replace(params, constraint=text_or_calls(tools, self.tokenizer, self.stop_ids))
            else:
                form.check()
                params = replace(params, constraint=form_or_calls(form, tools, self.tokenizer))
        messages = messages if written is None else written.with_thoughts(messages)
        if media := media_in(messages):
            messages = self.media.prepared(messages, params.image_tokens)
            media = media_in(messages)
        if continues:
            before, begun = self.tokenizer.continued_ids(messages, think=params.think, tools=tools)
            return self.stream_ids(
                before + begun, params, on_prefill=on_prefill, begun=begun, calls=bool(tools), media=media
            )
        ids = self.tokenizer.prompt_ids(messages, think=params.think, tools=tools)
        lasting = 0 if snapshot_at else self.tokenizer.lasting(messages, ids, think=params.think, tools=tools)
        if written is not None:
            ids, places = written.splice(ids, messages, self.tokenizer)
            lasting = places[lasting]
        if snapshot_at is None:
            before = [max(0, len(ids) - len(self.tokenizer.encode(question)) - _AROUND)] if question else []
            snapshot_at = [lasting, *before]
        options: dict[str, Any] = {"calls": bool(tools), "media": media}
        return self.stream_ids(ids, params, on_prefill=on_prefill, snapshot_at=snapshot_at, **options)

    def stream_ids(
        self,
        prompt_ids: Sequence[int],
        params: Params | None = None,
        *,
        on_prefill: OnPrefill | None = None,
        snapshot_at: Collection[int] = (),
        begun: Sequence[int] = (),
        calls: bool = False,
        media: Sequence[Medium] = (),
    ) -> Answer:
        """Answer a prompt of token ids; `snapshot_at`: with how many of them later prompts may begin.

        `begun`: its last tokens, which constraint and penalties take for the beginning of the answer. `calls`: tools
        are declared in it, so calls come as `Call`. `media`: what stands at its negative ids, in order.
        """
        check_length(len(prompt_ids), self.config.max_positions, self.name)
        ids, params, matcher = list(prompt_ids), params or Params(), None
        if params.constraint is not None:
            if not calls:  # else a part of it is made here
                params.constraint.check()
            in_thought = self.tokenizer.opens_in_thought(ids)
            matcher = Matcher(params.constraint, self._token_table, begun, in_thought=in_thought)
        about = self._seat or self._decoder, self.config, self.tokenizer, self.stop_ids
        options: dict[str, Any] = {"on_prefill": on_prefill, "snapshot_at": snapshot_at}
        options["media"] = self.media.soft(ids, media) if media else ()
        return Answer(*about, ids, params, matcher=matcher, calls=calls, begun=len(begun), **options)

    def seated(self, seat: Seat) -> Model:
        """Return this model for one answer among several: what it streams is decoded at `seat`."""
        _ = self.media  # with it, its towers
        other = copy(self)
        other._seat = seat
        return other

    def streams(self, parallel: int) -> Streams:
        """Return a scheduler of at most `parallel` answers at once; while it has any, nothing else may be asked."""
        from mlxmtp.engine.streams import Streams

        if parallel not in STREAMS:
            raise ValueError(f"parallel must be {STREAMS}, not {parallel}")
        streams, self._known_together = Streams(self._decoder, parallel, alone=self.exact == "on"), self._together()
        streams.start_from(self._known_together)
        self._streams = streams
        return streams

    def stream_many(
        self, conversations: Iterable[Sequence[Message]], params: Params | None = None, *, parallel: int = 4
    ) -> Generator[tuple[int, Event], None, None]:
        """Answer conversations side by side: yield their events as they come, each with the conversation's number.

        At most `parallel` are answered at once; another is taken whenever one has ended. Every answer is the one that
        `stream` would give. Nothing else may be asked meanwhile. Raises what one of them raises; the others are given
        up then.
        """
        streams, waiting = self.streams(parallel), enumerate(conversations)
        try:
            while True:
                for index, messages in islice(waiting, parallel - len(streams.running)):
                    streams.begin(partial(self._stream_at, messages, params), index)
                if not streams.running:
                    return
                for running, event in streams.step():
                    if isinstance(event, Exception):
                        raise event
                    yield running.tag, event
        finally:
            streams.close()

    def _stream_at(self, messages: Sequence[Message], params: Params | None, seat: Seat) -> Answer:
        return self.seated(seat).stream(messages, params)

    def hold_texts(self, limit: int | None = None) -> None:
        """Keep keys and values of several conversations, in at most `limit` bytes (None: `held_bytes`)."""
        self._decoder.hold_texts(held_bytes(this_machine().memory) if limit is None else limit)

    def learned(self) -> dict[str, Any]:
        """Return what was found out about drafting here, as JSON; empty until there is something to know."""
        learned, together = self._decoder.depth.learned(), self._together()
        return {**learned, "together": together} if together else learned

    def _together(self) -> dict[str, Any]:
        """Return what was found out in rounds of several texts."""
        return {**self._known_together, **({} if self._streams is None else self._streams.learned())}

    def expect(self, pace: Pace) -> None:
        """Begin with the times of rounds that a machine of that pace should take."""
        from mlxmtp.decode.draft_length import LENGTHS

        drafter = getattr(self._decoder.drafter, "config", None)
        if drafter is not None:
            self._decoder.depth.expect(round_costs(self.config, drafter, pace, LENGTHS))

    def start_from(self, learned: Mapping[str, Any]) -> None:
        """Begin with what `learned` returned in another process. Raises ValueError for anything else."""
        from mlxmtp.decode.draft_length import DraftLength

        together = learned.get("together", {})
        if not isinstance(together, dict) or not all(size.isdecimal() for size in together):
            raise ValueError("this is not what was learned of several texts")
        for known in together.values():
            DraftLength().start_from(known)
        if len(learned) > bool(together):
            self._decoder.depth.start_from(learned)
        self._known_together = together

    def close(self) -> None:
        """Free the memory for another model, on the thread that asked: MLX keeps traces, with weights, per thread."""
        self._decoder.close()

    def cache_label(self) -> str:
        """Return a hexadecimal word, another one for every model, version of it, MLX and layout of keys and values."""
        return sha256(repr(sorted(self._label.items())).encode()).hexdigest()

    def save_cache(self, path: Path, length: int | None = None) -> int:
        """Write the keys and values of the conversation so far to `path`, a `.safetensors` file; return its bytes.

        `length`: as they were after so many tokens, a `snapshot_at` of the last request; ValueError for another.
        """
        from mlxmtp.engine import kv_file

        return kv_file.save(self._decoder, path, self._label, length)

    def reusable(self, prompt_ids: Sequence[int]) -> int:
        """Return how many tokens of a prompt need not be read: some text that is held begins with them."""
        return max((text.usable(prompt_ids) for text in self._held()), default=0)

    def save_beginnings(self, path_of: Callable[[Sequence[int]], Path | None], limit: int) -> None:
        """Write the texts that are held, the last one first, as they were at their last and their first snapshot.

        Each goes where `path_of` its tokens is a file; left out is what would take more than `limit` bytes with those
        before, or could not be held again.
        """
        from mlxmtp.engine import kv_file

        most, left = limit if self._decoder.texts is None else self._decoder.texts.limit, limit
        for text in reversed([*self._held()]):
            places = [place.length for place in text.snapshots if place.length <= text.rows]
            for length in dict.fromkeys([*places[-1:], *places[:1]]):
                if (path := path_of(text.tokens[:length])) is None:
                    continue
                state = text.state(length)
                if sum(one.nbytes for one in state.buffers) <= min(most, left):
                    left -= kv_file.write(state, path, self._label)

    def _held(self) -> Iterator[HeldText]:
        yield from self._decoder.texts or ()
        beside, busy = (None, []) if self._streams is None else (self._streams.beside, self._streams.busy(alone=True))
        for decoder in (beside, self._decoder):
            if decoder is not None and decoder not in busy:
                yield decoder.live

    def load_cache(self, path: Path) -> int:
        """Import what `save_cache` wrote and return its tokens. Raises CacheRefused, and then changes nothing."""
        from mlxmtp.engine import kv_file

        return kv_file.load(self._decoder, path, self._label)


def context_of(folder: Path) -> int:
    """Return the longest context in tokens of the model in `folder`, from its JSON alone. Raises LoadError."""
    from mlxmtp.models.config import read_config

    return read_config(folder).max_positions


def check_length(prompt: int, context: int, name: str) -> None:
    """Raise ContextOverflow unless a prompt of that many tokens leaves room for an answer."""
    if prompt >= context:
        raise ContextOverflow(
            f"The prompt has {prompt:,} tokens and the context of '{name}' holds {context:,}: give less material."
        )


def _table_of(config: ModelConfig, tokenizer: Tokenizer) -> TokenTable:
    return TokenTable(tokenizer, config.vocab_size, stop_ids(config, tokenizer))
