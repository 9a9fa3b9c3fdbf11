"""The model of a server in place of one here: for the front ends an opener, a model and its answers like any other."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from queue import Empty, Full, Queue
from threading import Thread
from typing import TYPE_CHECKING, Any, ClassVar, cast

from mlxmtp.app.endpoints import Endpoint
from mlxmtp.app.open import Checkpoint, LearnedDrafting, Opener, OpenModel
from mlxmtp.app.remote import FIRST_BYTE, Chunks, Remote, RemoteModel, arguments_in, sent
from mlxmtp.app.remote_media import Sent, as_sent
from mlxmtp.app.served_streams import ServedStreams
from mlxmtp.app.structured import has_form
from mlxmtp.engine.answer import Answer, OnPrefill
from mlxmtp.engine.events import Call, End, Event, FinishReason, Text, Thinking
from mlxmtp.engine.media import Media, media_in
from mlxmtp.engine.model import Model
from mlxmtp.engine.params import Params
from mlxmtp.engine.stats import Stats
from mlxmtp.engine.tokenizer import Message, Prompt, Tokenizer, Tool
from mlxmtp.engine.written import Written
from mlxmtp.errors import EndpointFailed
from mlxmtp.limits import SAMPLING
from mlxmtp.machine.memory import NO_MEDIA, Largest
from mlxmtp.settings import Settings

if TYPE_CHECKING:
    from mlxmtp.engine.seat import Seat
    from mlxmtp.engine.streams import Streams

_CONTEXT = 32_768  # where a server does not say
_BYTES, _FORMAT = 4, 8  # of a token, about, and the tokens around a message
_LOOK = 0.1  # seconds after which a stop is noticed while nothing comes
_AHEAD = 256  # chunks that may wait: a server may be faster than who reads
_MOST = 1e15  # of a number that a server sent

_REASONS: dict[str, FinishReason] = {"length": "length", "tool_calls": "tool"}
_BROKEN = ("content_filter", "abort", "error")  # of Azure, vLLM and others
_NAMES = {name: name for name in SAMPLING} | {"temp": "temperature"} | {"max_tokens": "max_tokens"}


@dataclass
class RemoteOpener(Opener):
    """Opens the model of an endpoint. Nothing is read here, and no memory is needed."""

    here: ClassVar[bool] = False
    endpoint: Endpoint = field(kw_only=True)
    timeout: float = field(default=FIRST_BYTE, kw_only=True)
    """Seconds until an answer must have begun, where the config says nothing else."""

    def __post_init__(self) -> None:
        """Raise UsageError for what is no address, ConfigError for a key that is not there."""
        self._remote = self.endpoint.remote(self.timeout)
        self._models: dict[str, RemoteModel] = {}  # by the names of their checkpoints

    def target(self, name: str | None) -> Checkpoint:
        """Return the endpoint's model, which goes by the endpoint's own name if it has one. Raises MlxmtpError."""
        del name  # the endpoint says which
        model = self._remote.model(self.endpoint.model)
        shown = self.endpoint.name or model.name
        self._models[shown] = model
        return Checkpoint(shown, Path(self._remote.url))

    def drafter(self, target: Checkpoint, settings: Settings, *, off: bool = False) -> Checkpoint | None:
        """Return none: the server has its own."""
        return None

    def has_drafter(self, target: Checkpoint) -> bool:
        return False

    def has(self, name: str) -> bool:
        if name == self.endpoint.name:
            return True
        return self._remote.lists(name)

    def names(self) -> list[str]:
        return [*self._models]

    def about(self, target: Checkpoint, drafter: Checkpoint | None) -> str:
        model = self._models[target.name].name
        return (
            f"{model} at {self._remote.url}"
            if model == target.name
            else f"{target.name}: {model} at {self._remote.url}"
        )

    def tokenizer(self, target: Checkpoint) -> Tokenizer:
        """Return one that only estimates how many tokens there are."""
        return Estimate()

    def media(self, target: Checkpoint) -> Media:
        return Sent()

    def context(self, target: Checkpoint) -> int:
        return self.endpoint.context or self._models[target.name].context or _CONTEXT

    def require_memory(
        self,
        target: Checkpoint,
        drafter: Checkpoint | None,
        tokens: int,
        settings: Settings,
        *,
        turns: bool,
        media: Largest = NO_MEDIA,
    ) -> None:
        """Ask for none."""

    def open(
        self, target: Checkpoint, drafter: Checkpoint | None, settings: Settings, tokenizer: Tokenizer | None = None
    ) -> OpenModel:
        """Return the server's model."""
        found = self._models[target.name]
        model = ServedModel(self._remote, found.name, ours=found.ours, patience=self.endpoint.timeout or self.timeout)
        return RemoteOpenModel(model, target, None, LearnedDrafting(Path(), None), self.context(target))


@dataclass(frozen=True, slots=True, eq=False)
class RemoteOpenModel(OpenModel):
    """A server's model, with the context that the server names."""

    tokens: int

    @property
    def context(self) -> int:
        return self.tokens


class Estimate(Tokenizer):
    """Says about how many tokens there are, without knowing them: the server counts, and refuses what is too long."""

    estimates: ClassVar[bool] = True

    def __init__(self) -> None:
        pass

    def encode(self, text: str) -> list[int]:
        return [0] * (len(text.encode("utf-8", "replace")) // _BYTES + 1)

    def prompt(self, messages: Sequence[Message], *, think: bool = False, tools: Sequence[Tool] = ()) -> Prompt:
        media = sum(one.count for one in media_in(messages))
        return Prompt("", [0] * (media + sum(len(self.encode(text_in(one))) + _FORMAT for one in messages)))


class ServedModel(Model):
    """Answers conversations by asking the server."""

    def __init__(self, remote: Remote, name: str, *, ours: bool = True, patience: float = FIRST_BYTE) -> None:
        """`ours`: the server is an mlxmtp, which knows parameters that others may refuse.

        `patience`: seconds to the first token of an answer.
        """
        self.name, self.drafter, self.kv_bits = name, None, None
        self._remote, self._tokenizer, self._ours = remote, Estimate(), ours
        self._patience = patience

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
        body = {"model": self.name, "messages": asked, **_parameters(params or Params(), ours=self._ours)}
        if tools:
            body["tools"] = [*tools] if self._ours else _in_standard_words([*tools])
        if continues:
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        begun = text_in(messages[-1]) if continues else ""
        options: dict[str, Any] = {"begun": begun, "trusted": self._ours, "patience": self._patience}
        return RemoteAnswer(self._remote.chat(body), on_prefill, params or Params(), **options)

    def streams(self, parallel: int) -> Streams:
        """Return what asks for so many answers at a time."""
        return cast("Streams", ServedStreams(parallel))

    def seated(self, seat: Seat) -> Model:
        """Return this model: the server finds a place for the answer."""
        del seat
        return self

    def learned(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        """Leave the model to the server."""


def text_in(message: Message) -> str:
    """Return the text of a message, without its pictures."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "\n".join(one.get("text", "") for one in content)


def _in_standard_words(part: Any) -> Any:
    """Return a part of declarations for other servers: what may be anything has no type in JSON Schema."""
    if isinstance(part, list):
        return [_in_standard_words(one) for one in part]
    if not isinstance(part, Mapping):
        return part
    return {name: _in_standard_words(one) for name, one in part.items() if (name, one) != ("type", "any")}


def _parameters(params: Params, *, ours: bool) -> dict[str, Any]:
    """Return parameters as the protocol names them; what only some servers know is sent if somebody has set it."""
    body = {there: value for here, there in _NAMES.items() if (value := getattr(params, here)) is not None}
    body["stream_options"] = {"include_usage": True}
    # Some servers think unless told not to; from one that refuses the field, `Chunks` takes it away.
    body["chat_template_kwargs"] = {"enable_thinking": params.think}
    if params.think_tokens is not None:
        body["thinking_budget"] = params.think_tokens
    if params.stop_strings:
        body["stop"] = [*params.stop_strings]
    more = {"num_draft_tokens": None if params.num_draft_tokens == "auto" else params.num_draft_tokens}
    more["image_tokens"] = params.image_tokens
    if ours and (more := {name: value for name, value in more.items() if value is not None}):
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

    def __init__(
        self,
        chunks: Chunks,
        on_prefill: OnPrefill | None,
        params: Params,
        *,
        begun: str = "",
        trusted: bool = False,
        patience: float = FIRST_BYTE,
    ) -> None:
        """The form of the answer is looked at here unless the server is `trusted`: many pass over it without a word.

        `begun`: what came of the answer before, to which the form belongs as well.
        """
        self._patience, self._trusted = patience, trusted
        self._form, self._stops, self._seed = params.constraint, bool(params.stop_strings), params.seed or 0
        self._chunks, self._on_prefill, self._text = chunks, on_prefill, begun
        self.prompt, self.tokens = (), []  # the server's alone
        self._started, self._first, self._last = time.perf_counter(), 0.0, 0.0
        self._usage: Mapping[str, Any] = {}
        self._more: Mapping[str, Any] = {}
        self._pieces = 0
        self._reason = ""
        self._cut = False  # by a stop string, if the server says so
        self._called: dict[int, tuple[object, str, str]] = {}  # id, name and arguments of calls so far
        self._whole: list[tuple[object, str, str]] = []  # those whose index another one has taken
        self._events = self._run()

    @property
    def complete(self) -> bool:
        if self._form is None:
            return True
        kept = bool(self._called) or (not self._cut and (self._trusted or has_form(self._text, self._form)))
        return kept and self._reason != "length"

    @property
    def stats(self) -> Stats:
        usage, more, now = self._usage, self._more, time.perf_counter()
        first, last = self._first or now, self._last or now
        tokens = int(_number(usage, "completion_tokens")) or self._pieces  # a piece is a token, about
        details = usage.get("prompt_tokens_details")
        seconds = last - first
        return Stats(
            prompt_tokens=int(_number(usage, "prompt_tokens")),
            reused_tokens=int(_number(details, "cached_tokens")) if isinstance(details, dict) else 0,
            prompt_seconds=first - self._started,
            time_to_first_token=first - self._started,
            generation_tokens=tokens,
            generation_seconds=seconds,
            generation_tps=(tokens - 1) / seconds if seconds > 0 and tokens > 1 else 0.0,
            rounds=int(_number(more, "passes")),
            drafted=int(_number(more, "drafted")),
            accepted=int(_number(more, "accepted")),
            tokens_per_pass=_number(more, "tokens_per_pass"),
            seed=int(_number(more, "seed")) or self._seed,
            sent_to=self._chunks.remote.host,
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
            for choice in chunk["choices"]:
                delta = choice["delta"]
                self._reason = str(choice.get("finish_reason") or self._reason)
                self._cut = self._cut or isinstance(choice.get("stop_reason"), str)
                for one in delta.get("tool_calls") or ():
                    self._take_call(one)
                thought = delta.get("reasoning_content") or delta.get("reasoning")
                for kind, text in ((Thinking, thought), (Text, delta.get("content"))):
                    if isinstance(text, str) and text:
                        self._last = time.perf_counter()
                        self._first = self._first or self._last
                        self._pieces += 1
                        self._text += text if kind is Text and self._form is not None else ""
                        yield kind(text)
        if self._reason in _BROKEN:
            told = f"The server at {self._chunks.remote.url} ended its answer early ({self._reason}): it is not whole."
            raise EndpointFailed(told, f"it ended with {self._reason}", counts=False)
        # The last call of an answer that was cut is half, and none of them is run.
        for number, name, arguments in [] if self._reason == "length" else [*self._whole, *self._called.values()]:
            # By the id ours finds the answer again, with its thought; others number the calls of each answer anew.
            yield Call(name, arguments_in(arguments), id=str(number or "") if self._trusted else "")
        if not (self.complete or self._trusted or self._stops or self._reason == "length"):
            told = f"The server at {self._chunks.remote.url} did not keep to the form of the answer: ask another one."
            raise EndpointFailed(told, "it knows no forms", counts=False)
        yield End(_REASONS.get(self._reason, "stop"), self.stats)

    def _take_call(self, one: Mapping[str, Any]) -> None:
        """Take a call or a piece of one: the first piece has the name, later ones more of the arguments.

        Some servers give all calls the index 0, so a name with another id begins a call; others give each piece an id
        of its own, so an id alone does not.
        """
        function, last = one.get("function") or {}, len(self._called) - 1
        index = one.get("index", last if one.get("id") is None and last >= 0 else last + 1)
        index = index if isinstance(index, int) else last + 1
        number, called = one.get("id"), str(function.get("name") or "")
        known = self._called[index][0] if index in self._called else None
        if called and number and known and number != known:
            self._whole.append(self._called.pop(index))
        known, name, arguments = self._called.get(index, (number, "", ""))
        more = function.get("arguments") or ""
        written = more if isinstance(more, str) else json.dumps(more)  # some servers send the object itself
        self._first = self._first or time.perf_counter()
        self._called[index] = known, name or called, arguments + written

    def _read_beside(self) -> Queue[dict[str, Any] | Exception | None]:
        """Return the queue into which another thread reads chunks, a few ahead; last an exception or None."""
        arrived: Queue[dict[str, Any] | Exception | None] = Queue(_AHEAD)

        def put(one: dict[str, Any] | Exception | None) -> None:
            while True:
                with suppress(Full):
                    arrived.put(one, timeout=1.0)
                    return
                if self._chunks.closed:  # nobody reads on; the end may still be waited for
                    with suppress(Empty):
                        arrived.get_nowait()

        def read() -> None:
            try:
                for chunk in self._chunks:
                    put(chunk)
                put(None)
            except Exception as error:  # noqa: BLE001  (raised where the answer is read)
                put(error)

        Thread(target=read, name="mlxmtp-remote", daemon=True).start()
        return arrived

    def _arriving(self) -> Iterator[dict[str, Any]]:
        """Yield chunks; before each, and while none comes, `on_prefill` is called, which may end the answer."""
        arrived = self._read_beside()
        while True:
            try:
                chunk = arrived.get(timeout=_LOOK)
            except Empty:
                chunk = {}
            if self._on_prefill is not None:  # also while a call is written, of which nothing is shown
                self._on_prefill(0, 0)
            if not self._first and time.perf_counter() - self._started > self._patience:  # in spite of signs of life
                self.leave()
                seconds = f"{self._patience:g} seconds"
                told = f"The server at {self._chunks.remote.url} gave no token within {seconds}: ask another one."
                raise EndpointFailed(told, f"gave no token within {seconds}")
            if chunk == {}:
                continue
            if isinstance(chunk, Exception):
                raise chunk
            if chunk is None:
                return
            yield chunk


def _number(table: Mapping[str, Any], name: str) -> float:
    """Return a number that a server sent; 0 for anything else."""
    value = table.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _MOST:
        return 0
    return max(0, value)
