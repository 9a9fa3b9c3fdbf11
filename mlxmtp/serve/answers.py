"""The pieces of an answer that every protocol writes in its own form."""

import json
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from mlxmtp.engine.events import Call, FinishReason, Text, Thinking, TokenLogprob
from mlxmtp.engine.stats import Stats


@dataclass(frozen=True, slots=True)
class ToolUse:
    """A call with the id by which its result will come."""

    id: str
    call: Call

    @property
    def arguments(self) -> str:
        return json.dumps(self.call.arguments, ensure_ascii=False)


Piece = Text | Thinking | ToolUse


@dataclass(frozen=True, slots=True)
class Ending:
    """The end of one answer; `stop` is the stop string that ended it, `thinking` the tokens of its thought."""

    reason: FinishReason
    stats: Stats
    called: bool = False
    stop: str | None = None
    thinking: int = 0

    def named(self, *, stop: str, length: str, call: str) -> str:
        """Return the reason in a protocol's words."""
        return length if self.reason == "length" else call if self.called else stop


@dataclass(frozen=True, slots=True)
class About:
    """An answer's identity: the model's name as it is listed, and the tokens of the prompt."""

    model: str
    prompt_tokens: int = 0
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))


class Collected:
    """A whole answer."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []

    def add(self, piece: Piece) -> None:
        """Take in the next piece; an empty one, as of a thought that is opened and closed, is none."""
        if piece in (Text(""), Thinking("")):
            return
        last = self.pieces[-1] if self.pieces else None
        if isinstance(piece, Text) and isinstance(last, Text):
            self.pieces[-1] = Text(last.text + piece.text, last.logprobs + piece.logprobs)
        elif isinstance(piece, Thinking) and isinstance(last, Thinking):
            self.pieces[-1] = Thinking(last.text + piece.text)
        else:
            self.pieces.append(piece)

    @property
    def text(self) -> str:
        return "".join(one.text for one in self.pieces if isinstance(one, Text))

    @property
    def logprobs(self) -> list[TokenLogprob]:
        return [found for one in self.pieces if isinstance(one, Text) for found in one.logprobs]

    @property
    def thinking(self) -> str:
        return "".join(one.text for one in self.pieces if isinstance(one, Thinking))

    @property
    def calls(self) -> list[ToolUse]:
        return [one for one in self.pieces if isinstance(one, ToolUse)]


Answers = Sequence[tuple[Collected, Ending]]


class Writer(Protocol):
    """A protocol's form of one response: `whole`, or as a stream by all the others. `index` counts the answers of a
    request that wants several."""

    content_type: str

    @property
    def heartbeat(self) -> bytes: ...
    def start(self) -> bytes: ...
    def piece(self, index: int, piece: Piece) -> bytes: ...
    def end(self, index: int, ending: Ending) -> bytes: ...
    def close(self) -> bytes: ...
    def error(self, message: str) -> bytes: ...
    def whole(self, results: Answers) -> dict[str, Any]: ...


EVENT_STREAM = "text/event-stream; charset=utf-8"
COMMENT = b": still working\n\n"  # a line that every reader of event streams passes over


_COMPACT = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


_LINE_ENDS = {ord(one): f"\\u{ord(one):04x}" for one in "\x85\u2028\u2029"}
"""Characters that JSON may hold as they are, and at which clients split lines (`str.splitlines`, httpx)."""


def json_bytes(value: object) -> bytes:
    """Return compact JSON in one line; lone surrogates, which a request may have named, become question marks."""
    text = _COMPACT.encode(value)
    if not text.isascii():
        text = text.translate(_LINE_ENDS)
    return text.encode("utf-8", "replace")


def event(value: object, name: str | None = None) -> bytes:
    """Return a server-sent event."""
    head = b"" if name is None else f"event: {name}\n".encode()
    return head + b"data: " + json_bytes(value) + b"\n\n"


def new_id(prefix: str) -> str:
    """Return an id that nobody can guess."""
    return prefix + secrets.token_hex(12)


def drafting(stats: Stats) -> dict[str, Any]:
    """Return the extension field of an answer."""
    return {
        "passes": stats.rounds,
        "drafted": stats.drafted,
        "accepted": stats.accepted,
        "tokens_per_pass": round(stats.tokens_per_pass, 3),
        "acceptance": round(stats.accepted / stats.drafted, 3) if stats.drafted else None,
        "generation_tps": round(stats.generation_tps, 2),
        "time_to_first_token": round(stats.time_to_first_token, 4),
        "seed": stats.seed,
    }


def logprob_entries(logprobs: Iterable[TokenLogprob]) -> list[dict[str, Any]]:
    """Return log-probabilities in the form of chat completions, which responses and Ollama share."""
    return [{**_token(one), "top_logprobs": [_token(other) for other in one.top]} for one in logprobs]


def _token(one: TokenLogprob) -> dict[str, Any]:
    return {"token": token_text(one), "logprob": one.logprob, "bytes": [*one.bytes]}


def token_text(one: TokenLogprob) -> str:
    """Return a token as text; a part of a character is a replacement character."""
    return one.bytes.decode("utf-8", "replace")


def total(endings: Sequence[Ending]) -> dict[str, int]:
    """Return counts of tokens over all answers of a request: the prompt counts once, and what was read of it least."""
    stats = [one.stats for one in endings]
    prompt = max((one.prompt_tokens for one in stats), default=0)
    completion = sum(one.generation_tokens for one in stats)
    return {
        "prompt": prompt,
        "cached": min((one.reused_tokens for one in stats), default=0),
        "completion": completion,
        "thinking": sum(one.thinking for one in endings),
        "total": prompt + completion,
    }
