"""Anthropic's messages."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mlxmtp.engine.events import Thinking
from mlxmtp.limits import Range
from mlxmtp.serve import answers, request
from mlxmtp.serve.answers import About, Answers, Ending, Piece, ToolUse
from mlxmtp.serve.contents import Content, Part, content_of, in_order, part_of
from mlxmtp.serve.fields import Fields, Refused
from mlxmtp.serve.request import AnswerRequest, History, Message
from mlxmtp.serve.tools import Tool, choose, declare

_BILLING = "x-anthropic-billing-header:"
"""Begins a system block of Claude Code that differs from request to request and means nothing to a model."""
_SIGNATURE = "mlxmtp"  # clients send a thought back only with one
_CHANGES = ("tool_addition", "tool_removal")
"""Blocks by which Claude Code changes the tools in the middle of a conversation."""


def read(body: Fields, *, counting: bool = False) -> AnswerRequest:
    """Return what a message asks for; `counting`: only its tokens are, so no limit is needed. Raises Refused."""
    body.refuse("container", "mcp_servers")
    history = History()
    if system := _system(body):
        history.say("system", system)
    for message in body.objects("messages"):
        _add(history, message)
    if not any(message["role"] != "system" for message in history.messages):
        raise Refused("messages must be a list with at least one message.", "messages")
    limit = _limit(body)
    if limit is None and not counting:
        raise Refused("max_tokens must be there: a whole number from 0 up.", "max_tokens")
    given = {**request.sampling_of(body), **_thinking(body), **request.extension_of(body)}
    if limit is not None:
        given["max_tokens"] = max(1, limit)  # the first token comes with the prompt; `MessageStream` leaves it out
    output = body.object("output_config")
    if output is not None:
        given |= request.form_of(output.object("format"))
    given |= request.form_of(body.object("output_format"))  # its name before `output_config`
    last = history.messages[-1]
    return AnswerRequest(
        body.text("model", ""),
        history.messages,
        given,
        **_tools(body),
        stream=body.flag("stream"),
        stops=body.texts("stop_sequences"),
        continues=last["role"] == "assistant" and "tool_calls" not in last,
    )


def _limit(body: Fields) -> int | None:
    """Return the limit of new tokens; at 0 the prompt is read, for later requests, and nothing is answered."""
    limit = body.number("max_tokens", Range(0, whole=True))
    return None if limit is None else int(limit)


def _system(body: Fields) -> str:
    if isinstance(body.table.get("system"), str):
        return body.text("system")
    texts = [request.joined(Fields({"content": [block.table]}, block.where)) for block in body.objects("system")]
    return "\n\n".join(text for text in texts if not text.startswith(_BILLING))


def _add(history: History, message: Fields) -> None:
    role = message.choice("role", "user", "assistant", "system", default=message.text("role", ""))
    if isinstance(message.table.get("content"), str):
        blocks = [Fields({"type": "text", "text": message.text("content")}, message.path("content"))]
    else:
        blocks = list(message.objects("content"))
    blocks = [block for block in blocks if block.text("type") not in _CHANGES]
    if role == "assistant":
        _answer(history, blocks)
        return
    for block in blocks:
        if block.text("type") == "tool_result":
            content = _result(block)
            if block.flag("is_error"):
                content = f"Error: {content}" if isinstance(content, str) else in_order(["Error:", *content])
            history.result(content, block, "tool_use_id")
    said = [_said(block) for block in blocks if block.text("type") != "tool_result"]
    if said:
        history.say(role, in_order(said))


def _result(block: Fields) -> Content:
    if isinstance(block.table.get("content"), list):
        return in_order([_said(one) for one in block.objects("content")])
    return content_of(block)


def _said(block: Fields) -> str | Part:
    """Return the text or the picture of a block of the user's. Raises Refused for what cannot be read."""
    if block.text("type") == "tool_reference":  # of Claude Code's tool search: the tool itself is among `tools`
        return f"Tool found: {block.text('tool_name')}"
    source = block.object("source") if block.text("type") == "document" else None
    if source is not None and source.text("type") == "text":
        return source.text("data")
    return part_of(block)


def _answer(history: History, blocks: Sequence[Fields]) -> None:
    text, reasoning, calls = [], [], []
    for block in blocks:
        kind = block.text("type")
        if kind == "text":
            text.append(block.text("text"))
        elif kind == "thinking":
            reasoning.append(block.text("thinking"))
        elif kind == "tool_use":
            calls.append(_call(block))
        elif kind != "redacted_thinking":
            raise Refused(
                f"{block.path('type')}: '{kind}' is not supported in an assistant's message.", block.path("type")
            )
    history.answer("\n".join(text), "".join(reasoning), calls)


def _call(block: Fields) -> Message:
    return request.call_of(block.text("id"), block.text("name"), block.table.get("input"), block.path("input"))


def _thinking(body: Fields) -> dict[str, Any]:
    output = body.object("output_config")
    found: dict[str, Any] = {}
    if output is not None:
        found = request.effort_of(output.text("effort", "") or None, output.path("effort"))
        found.pop("think", None)  # an effort alone does not switch thinking on
    thinking = body.object("thinking")
    if thinking is None:
        return {}
    kind = thinking.choice("type", "enabled", "adaptive", "disabled", default="enabled")
    if kind == "disabled":
        return {"think": False}
    budget = thinking.number("budget_tokens", Range(1, whole=True))
    return {**found, "think": True, **({} if budget is None else {"think_tokens": int(budget)})}


def _tools(body: Fields) -> dict[str, Any]:
    """Return the fields about tools.

    Tools that only Anthropic's servers can run stay out: clients send them and expect an answer without.
    """
    known: dict[str, Tool] = {}
    for tool in body.objects("tools"):
        _know(known, tool)
    offered = dict(known)
    for message in body.objects("messages"):
        for block in message.objects("content") if isinstance(message.table.get("content"), list) else ():
            if block.text("type") in _CHANGES and (changed := block.object("tool")) is not None:
                definition = changed.object("definition")
                name = changed.text("name", "") if definition is None else _know(known, definition)
                if block.text("type") == "tool_removal":
                    offered.pop(name if changed.text("type") == "tool_reference" else "", None)
                elif name in known:
                    offered[name] = known[name]
    found = [*offered.values()]
    choice = body.object("tool_choice")
    if choice is None:
        return {"tools": found}
    kind = choice.choice("type", "auto", "any", "tool", "none", default="auto")
    named = choice.text("name") if kind == "tool" else None
    parallel = not choice.flag("disable_parallel_tool_use")
    return {**choose(found, kind, named, choice.path("type")), "parallel_calls": parallel}


def _know(known: dict[str, Tool], tool: Fields) -> str:
    """Declare a tool, unless it is one that only Anthropic's servers can run; return its name."""
    name = tool.text("name", "")
    if tool.text("type", "custom") == "custom":
        schema = tool.table.get("input_schema")
        known[name] = declare(name, tool.text("description", ""), schema, tool.where)
    return name


def _usage(ending: Ending) -> dict[str, int]:
    """Return the counts; `input_tokens` are those that were read, as in this protocol."""
    counts = answers.total([ending])
    return {
        "input_tokens": counts["prompt"] - counts["cached"],
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": counts["cached"],
        "output_tokens": counts["completion"],
    }


def _unsaid(ending: Ending) -> Ending:
    """Return the end of an answer whose prompt was to be read and no more."""
    return Ending("length", replace(ending.stats, generation_tokens=0))


def _reason(ending: Ending) -> dict[str, str | None]:
    stop = "end_turn" if ending.stop is None else "stop_sequence"
    return {
        "stop_reason": ending.named(stop=stop, length="max_tokens", call="tool_use"),
        "stop_sequence": ending.stop,
    }


def _block(piece: Piece) -> dict[str, Any]:
    if isinstance(piece, ToolUse):
        return {"type": "tool_use", "id": piece.id, "name": piece.call.name, "input": piece.call.arguments}
    if isinstance(piece, Thinking):
        return {"type": "thinking", "thinking": piece.text, "signature": _SIGNATURE}
    return {"type": "text", "text": piece.text}


def _opening(about: About) -> dict[str, Any]:
    return {"id": f"msg_{about.id}", "type": "message", "role": "assistant", "model": about.model}


class MessageStream:
    """A message; its events: its start, every block's start, deltas and stop, the reason with the counts, its stop."""

    content_type = answers.EVENT_STREAM
    heartbeat = answers.event({"type": "ping"}, "ping")

    def __init__(self, about: About, body: Fields) -> None:
        self._about = about
        self._only_reads = _limit(body) == 0
        self._index = -1
        self._open: str | None = None  # type of the block that is being written

    def whole(self, results: Answers) -> dict[str, Any]:
        [(said, ending)] = results
        content = [_block(piece) for piece in said.pieces] or [{"type": "text", "text": ""}]
        if self._only_reads:
            content, ending = [], _unsaid(ending)
        message = {**_opening(self._about), "content": content, **_reason(ending), "usage": _usage(ending)}
        return {**message, request.EXTENSION: answers.drafting(ending.stats)}

    def start(self) -> bytes:
        counts = {"input_tokens": self._about.prompt_tokens, "output_tokens": 0}
        counts |= {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
        none: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None}
        return self._event("message_start", message={**_opening(self._about), **none, "usage": counts}) + self.heartbeat

    def piece(self, index: int, piece: Piece) -> bytes:
        if self._only_reads:
            return b""
        if isinstance(piece, ToolUse):
            block = {"type": "tool_use", "id": piece.id, "name": piece.call.name, "input": {}}
            delta = {"type": "input_json_delta", "partial_json": piece.arguments}
            return self._stop() + self._begin(block) + self._delta(delta)
        if not piece.text:
            return b""
        if isinstance(piece, Thinking):
            begun = self._goes_on({"type": "thinking", "thinking": "", "signature": ""})
            return begun + self._delta({"type": "thinking_delta", "thinking": piece.text})
        return self._goes_on({"type": "text", "text": ""}) + self._delta({"type": "text_delta", "text": piece.text})

    def end(self, index: int, ending: Ending) -> bytes:
        block = b""
        if self._only_reads:
            ending = _unsaid(ending)
        elif self._index < 0:  # an answer without a block is one that some clients cannot read
            block = self._goes_on({"type": "text", "text": ""})
        more = {request.EXTENSION: answers.drafting(ending.stats)}
        end = self._event("message_delta", delta=_reason(ending), usage=_usage(ending), **more)
        return block + self._stop() + end

    def close(self) -> bytes:
        return self._event("message_stop")

    def error(self, message: str) -> bytes:
        return self._event("error", error={"type": "api_error", "message": message})

    def _goes_on(self, block: dict[str, Any]) -> bytes:
        return b"" if self._open == block["type"] else self._stop() + self._begin(block)

    def _begin(self, block: dict[str, Any]) -> bytes:
        self._index += 1
        self._open = block["type"]
        return self._event("content_block_start", index=self._index, content_block=block)

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return self._event("content_block_delta", index=self._index, delta=delta)

    def _stop(self) -> bytes:
        if self._open is None:
            return b""
        signed = b""
        if self._open == "thinking":
            signed = self._delta({"type": "signature_delta", "signature": _SIGNATURE})
        self._open = None
        return signed + self._event("content_block_stop", index=self._index)

    @staticmethod
    def _event(kind: str, **fields: object) -> bytes:
        return answers.event({"type": kind, **fields}, kind)
