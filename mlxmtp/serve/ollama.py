"""Ollama's chat and generate, for programs that know no other protocol."""

from datetime import UTC, datetime
from typing import Any

from mlxmtp.engine.constraint import Constraint
from mlxmtp.engine.events import Text, Thinking
from mlxmtp.serve import answers, request
from mlxmtp.serve.answers import About, Answers, Collected, Ending, Piece
from mlxmtp.serve.contents import Content, encoded_medium, in_order
from mlxmtp.serve.fields import Fields
from mlxmtp.serve.request import AnswerRequest, History
from mlxmtp.serve.tools import functions

VERSION = "0.40.0"
"""The version of Ollama whose protocol this is; programs turn away from what is older than the one they know."""


def read_chat(body: Fields) -> AnswerRequest:
    """Return what a chat asks for; without messages it asks only for the model to be loaded. Raises Refused."""
    history = History()
    for message in body.objects("messages"):
        _add(history, message)
    last = history.messages[-1] if history.messages else {}
    return AnswerRequest(
        body.text("model"),
        history.messages,
        _given(body),
        functions(body),
        stream=body.flag("stream", True),
        stops=_stops(body),
        continues=last.get("role") == "assistant" and "tool_calls" not in last,
    )


def read_generate(body: Fields) -> AnswerRequest:
    """Return what a generation asks for; without a prompt it asks only for the model to be loaded. Raises Refused."""
    body.refuse("suffix", "template", "context")
    prompt, history = body.text("prompt", ""), History()
    raw = prompt if body.flag("raw") and prompt else None
    if raw is not None:
        body.refuse("images")
    if prompt and raw is None:
        if system := body.text("system", ""):
            history.say("system", system)
        history.say("user", _with_images(body, prompt))
    return AnswerRequest(
        body.text("model"),
        history.messages,
        _given(body),
        stream=body.flag("stream", True),
        stops=_stops(body),
        raw=raw,
    )


def _given(body: Fields) -> dict[str, Any]:
    found: dict[str, Any] = {**request.extension_of(body), **_form(body), **request.logprobs_of(body)}
    options = body.object("options")
    if options is not None:
        options.refuse("mirostat", unless=(0,))
        options.refuse("typical_p", "tfs_z", unless=(1,))
        found |= {**request.sampling_of(options), **request.penalties_of(options, "repeat_penalty")}
        endless = options.table.get("num_predict") == -2  # as far as the context goes, as -1
        found |= {"max_tokens": None} if endless else request.limit_of(options, "num_predict")
    if isinstance(body.table.get("think"), str):
        return {**found, **request.effort_of(body.text("think"), "think")}
    return {**found, "think": body.flag("think")} if body.has("think") else found


def _form(body: Fields) -> dict[str, Any]:
    form = body.table.get("format")
    if form in (None, ""):
        return {}
    if form != "json" and not isinstance(form, dict):
        raise body.wrong("format", "json or a JSON schema")
    return {"constraint": Constraint.schema({"type": "object"} if form == "json" else form)}


def _stops(body: Fields) -> tuple[str, ...]:
    options = body.object("options")
    return () if options is None else options.texts("stop")


def _add(history: History, message: Fields) -> None:
    if message.text("role", "") == "thinking":
        return  # Continue sends a thought as a message before the answer; templates leave those of earlier turns out
    role = message.choice("role", "system", "user", "assistant", "tool", default=message.text("role", ""))
    text = message.text("content", "")
    if role == "tool":
        history.result(_with_images(message, text), message, "tool_call_id", message.text("tool_name", ""))
    elif role == "user":
        history.say(role, _with_images(message, text))
    elif role == "assistant":
        message.refuse("images")
        calls = [request.function_call_of(one) for one in message.objects("tool_calls")]
        history.answer(text, message.text("thinking", ""), calls)
    else:
        message.refuse("images")
        history.say(role, text)


def _with_images(fields: Fields, text: str) -> Content:
    """Return a text with the images and audio that are sent beside it before it."""
    images = fields.texts("images")
    found = [encoded_medium(one, fields.path(f"images[{index}]")) for index, one in enumerate(images)]
    return in_order([*found, text] if text else found) if found else text


class OllamaStream:
    """Lines of JSON, one for a whole answer. They hold messages if `chat`, else responses of a generation."""

    content_type, heartbeat = "application/x-ndjson", b""

    def __init__(self, about: About, _body: Fields, *, chat: bool) -> None:
        self._about, self._chat = about, chat
        self._calls = 0  # of those before this line

    def start(self) -> bytes:
        return b""

    def piece(self, index: int, piece: Piece) -> bytes:
        said = Collected()
        said.add(piece)
        empty = isinstance(piece, Text | Thinking) and not piece.text
        return b"" if empty else self._line({**self._head(), **self._said(said), "done": False})

    def end(self, index: int, ending: Ending) -> bytes:
        return self._line(self.whole([(Collected(), ending)]))

    def close(self) -> bytes:
        return b""

    def error(self, message: str) -> bytes:
        return self._line({"error": message})

    def whole(self, results: Answers) -> dict[str, Any]:
        """Return the last line of a stream, or the only one of an answer that is not streamed."""
        [(said, ending)] = results
        return {**self._head(), **self._said(said), **_numbers(ending)}

    def without_answer(self, reason: str) -> dict[str, Any]:
        """Return what a request gets that is for nothing but the model."""
        return {**self._head(), **self._said(Collected()), "done": True, "done_reason": reason}

    def _head(self) -> dict[str, Any]:
        return {"model": self._about.model, "created_at": datetime.now(UTC).isoformat().replace("+00:00", "Z")}

    def _said(self, said: Collected) -> dict[str, Any]:
        thought = {"thinking": said.thinking} if said.thinking else {}
        told = {"logprobs": answers.logprob_entries(said.logprobs)} if said.logprobs else {}
        if not self._chat:
            return {"response": said.text, **thought, **told}
        calls = [
            {"id": use.id, "function": {"index": index, "name": use.call.name, "arguments": use.call.arguments}}
            for index, use in enumerate(said.calls, self._calls)
        ]
        self._calls += len(calls)
        made = {"tool_calls": calls} if calls else {}
        return {"message": {"role": "assistant", "content": said.text, **thought, **made}, **told}

    @staticmethod
    def _line(value: object) -> bytes:
        return answers.json_bytes(value) + b"\n"


def _numbers(ending: Ending) -> dict[str, Any]:
    """Return the end with its numbers; durations are nanoseconds."""
    stats = ending.stats
    return {
        "done": True,
        "done_reason": ending.named(stop="stop", length="length", call="stop"),
        "total_duration": int(1e9 * (stats.prompt_seconds + stats.generation_seconds)),
        "load_duration": 0,
        "prompt_eval_count": stats.prompt_tokens,
        "prompt_eval_duration": int(1e9 * stats.prompt_seconds),
        "eval_count": stats.generation_tokens,
        "eval_duration": int(1e9 * stats.generation_seconds),
        request.EXTENSION: answers.drafting(stats),
    }
