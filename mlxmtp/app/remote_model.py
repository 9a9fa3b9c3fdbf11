"""The model of a running server in place of one here: `ask --url`, `chat --url`, `map --url`."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any

from mlxmtp.app.open import Checkpoint, LearnedDrafting, Opener, OpenModel
from mlxmtp.app.remote import Chunks, Remote, arguments_in, sent
from mlxmtp.app.remote_media import Sent, as_sent
from mlxmtp.engine.answer import Answer, OnPrefill
from mlxmtp.engine.events import Call, End, Event, FinishReason, Text, Thinking
from mlxmtp.engine.media import Media, media_in
from mlxmtp.engine.model import Model
from mlxmtp.engine.params import Params
from mlxmtp.engine.stats import Stats
from mlxmtp.engine.tokenizer import Message, Prompt, Tokenizer, Tool
from mlxmtp.engine.written import Written
from mlxmtp.environment import server_key
from mlxmtp.errors import ModelNotFound
from mlxmtp.limits import SAMPLING
from mlxmtp.settings import Settings

if TYPE_CHECKING:
    from mlxmtp.engine.seat import Seat
    from mlxmtp.engine.streams import Streams

_CONTEXT = 32_768  # where a server does not say
_BYTES, _FORMAT = 4, 8  # of a token, about, and the tokens around a message
_LOOK = 0.1  # seconds after which a stop is noticed while nothing comes

_REASONS: dict[str, FinishReason] = {"length": "length", "tool_calls": "tool"}
_NAMES = {name: name for name in SAMPLING} | {"temp": "temperature"}
_NAMES |= {"max_tokens": "max_completion_tokens", "think_tokens": "thinking_budget"}


class RemoteOpener(Opener):
    """Opens the server's model. Nothing is read here, and no memory is needed."""

    def __post_init__(self) -> None:
        """Raise UsageError for what is no address."""
        self._remote = Remote(self.loaded.settings.url or "", server_key())
        self._contexts: dict[str, int] = {}

    def target(self, name: str | None) -> Checkpoint:
        """Return the server's model; a `name` counts if it came with the command. Raises MlxmtpError."""
        model = self._remote.model(name if self.loaded.origins.get("model") == "flag" else None)
        self._contexts[model.name] = model.context or _CONTEXT
        return Checkpoint(model.name, Path(self._remote.url))

    def drafter(self, target: Checkpoint, settings: Settings, *, off: bool = False) -> Checkpoint | None:
        """Return none: the server has its own."""
        return None

    def has_drafter(self, target: Checkpoint) -> bool:
        return False

    def has(self, name: str) -> bool:
        try:
            return self._remote.model(name).name == name
        except ModelNotFound:
            return False

    def names(self) -> list[str]:
        return [*self._contexts]

    def tokenizer(self, target: Checkpoint) -> Tokenizer:
        """Return one that only estimates how many tokens there are."""
        return Estimate()

    def media(self, target: Checkpoint) -> Media:
        return Sent()

    def context(self, target: Checkpoint) -> int:
        return self._contexts[target.name]

    def require_memory(
        self,
        target: Checkpoint,
        drafter: Checkpoint | None,
        tokens: int,
        settings: Settings,
        *,
        turns: bool,
        picture: int = 0,
    ) -> None:
        """Ask for none."""

    def open(
        self, target: Checkpoint, drafter: Checkpoint | None, settings: Settings, tokenizer: Tokenizer | None = None
    ) -> OpenModel:
        """Return the server's model."""
        model = ServedModel(self._remote, target.name)
        return RemoteOpenModel(model, target, None, LearnedDrafting(Path(), None), self._contexts[target.name])


@dataclass(frozen=True, slots=True, eq=False)
class RemoteOpenModel(OpenModel):
    """A server's model, with the context that the server names."""

    tokens: int

    @property
    def context(self) -> int:
        return self.tokens


class Estimate(Tokenizer):
    """Says about how many tokens there are, without knowing them: the server counts, and refuses what is too long."""

    def __init__(self) -> None:
        pass

    def encode(self, text: str) -> list[int]:
        return [0] * (len(text.encode("utf-8", "replace")) // _BYTES + 1)

    def prompt(self, messages: Sequence[Message], *, think: bool = False, tools: Sequence[Tool] = ()) -> Prompt:
        media = sum(one.count for one in media_in(messages))
        return Prompt("", [0] * (media + sum(len(self.encode(_text(one))) + _FORMAT for one in messages)))


class ServedModel(Model):
    """Answers conversations by asking the server."""

    def __init__(self, remote: Remote, name: str) -> None:
        self.name, self.drafter, self.kv_bits = name, None, None
        self._remote, self._tokenizer = remote, Estimate()

    @cached_property
    def media(self) -> Media:
        return Sent()

    def prepare_constraints(self) -> None:
        """Leave that to the server."""

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
        """Answer a conversation. Errors are raised while the answer is read."""
        asked = as_sent([*map(sent, messages)])
        body = {"model": self.name, "messages": asked, **_parameters(params or Params())}
        if tools:
            body["tools"] = [*tools]
        if continues:
            body["continue_final_message"] = True
        return RemoteAnswer(self._remote.chat(body), on_prefill)

    def streams(self, parallel: int) -> Streams:
        """Return what asks for so many answers at a time."""
        from mlxmtp.app.served_streams import ServedStreams  # imports MLX, which one answer does without

        return ServedStreams(parallel)

    def seated(self, seat: Seat) -> Model:
        """Return this model: the server finds a place for the answer."""
        del seat
        return self

    def learned(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        """Leave the model to the server."""


def _text(message: Message) -> str:
    """Return the text of a message, without its pictures."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "\n".join(one.get("text", "") for one in content)


def _parameters(params: Params) -> dict[str, Any]:
    body = {there: value for here, there in _NAMES.items() if (value := getattr(params, here)) is not None}
    body |= {"enable_thinking": params.think, "stream_options": {"include_usage": True}}
    if params.stop_strings:
        body["stop"] = [*params.stop_strings]
    more = {"num_draft_tokens": None if params.num_draft_tokens == "auto" else params.num_draft_tokens}
    more["image_tokens"] = params.image_tokens
    if more := {name: value for name, value in more.items() if value is not None}:
        body["mlxmtp"] = more
    form = params.constraint
    if form is not None and form.kind == "schema":
        schema = json.loads(form.source)
        held = schema if isinstance(schema, dict) else {}
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": held}}
    elif form is not None:
        body[f"guided_{form.kind}"] = form.source
    return body


class RemoteAnswer(Answer):
    """An answer that comes from a server: its events, and its numbers as far as the server says them."""

    def __init__(self, chunks: Chunks, on_prefill: OnPrefill | None) -> None:
        self._chunks, self._on_prefill = chunks, on_prefill
        self._started, self._first, self._last = time.perf_counter(), 0.0, 0.0
        self._usage: Mapping[str, Any] = {}
        self._more: Mapping[str, Any] = {}
        self._pieces = 0
        self._reason = ""
        self._called: dict[int, tuple[str, str]] = {}  # name and arguments of calls so far
        self._events = self._run()

    @property
    def complete(self) -> bool:
        return self._reason != "length"

    @property
    def stats(self) -> Stats:
        usage, more, now = self._usage, self._more, time.perf_counter()
        first, last = self._first or now, self._last or now
        tokens = _number(usage, "completion_tokens") or self._pieces
        details = usage.get("prompt_tokens_details")
        seconds = last - first
        return Stats(
            prompt_tokens=_number(usage, "prompt_tokens"),
            reused_tokens=_number(details, "cached_tokens") if isinstance(details, dict) else 0,
            prompt_seconds=first - self._started,
            time_to_first_token=first - self._started,
            generation_tokens=tokens,
            generation_seconds=seconds,
            generation_tps=(tokens - 1) / seconds if seconds > 0 and tokens > 1 else 0.0,
            rounds=_number(more, "passes"),
            drafted=_number(more, "drafted"),
            accepted=_number(more, "accepted"),
            tokens_per_pass=float(more["tokens_per_pass"]) if _number(more, "passes") else 0.0,
            seed=_number(more, "seed"),
        )

    def close(self) -> None:
        """Stop here; the server hears of it."""
        self.leave()
        self._events.close()

    def leave(self) -> None:
        """Tell the server to stop, from any thread."""
        self._chunks.close()

    def _run(self) -> Generator[Event, None, None]:
        for chunk in self._arriving():
            if isinstance(chunk.get("usage"), dict):
                self._usage = chunk["usage"]
            if isinstance(chunk.get("mlxmtp"), dict):
                self._more = chunk["mlxmtp"]
            for choice in chunk.get("choices") or ():
                delta = choice.get("delta") or {}
                self._reason = choice.get("finish_reason") or self._reason
                for one in delta.get("tool_calls") or ():
                    function, index = one.get("function") or {}, one.get("index", len(self._called))
                    name, arguments = self._called.get(index, ("", ""))
                    more = str(function.get("arguments") or "")
                    self._called[index] = name or str(function.get("name") or ""), arguments + more
                thought = delta.get("reasoning_content") or delta.get("reasoning")
                for kind, text in ((Thinking, thought), (Text, delta.get("content"))):
                    if isinstance(text, str) and text:
                        self._last = time.perf_counter()
                        self._first = self._first or self._last
                        self._pieces += 1
                        yield kind(text)
        for name, arguments in self._called.values():
            yield Call(name, arguments_in(arguments))
        yield End(_REASONS.get(self._reason, "stop"), self.stats)

    def _arriving(self) -> Iterator[dict[str, Any]]:
        """Yield chunks; while none comes, `on_prefill` is called, which may end the wait."""
        arrived: SimpleQueue[dict[str, Any] | Exception | None] = SimpleQueue()

        def read() -> None:
            try:
                for chunk in self._chunks:
                    arrived.put(chunk)
                arrived.put(None)
            except Exception as error:  # noqa: BLE001  (raised where the answer is read)
                arrived.put(error)

        Thread(target=read, name="mlxmtp-remote", daemon=True).start()
        while True:
            try:
                chunk = arrived.get(timeout=_LOOK)
            except Empty:
                if not self._first and self._on_prefill is not None:
                    self._on_prefill(0, 0)
                continue
            if isinstance(chunk, Exception):
                raise chunk
            if chunk is None:
                return
            yield chunk


def _number(table: Mapping[str, Any], name: str) -> int:
    value = table.get(name)
    return value if isinstance(value, int) else 0
