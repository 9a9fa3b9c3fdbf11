"""OpenAI's responses, without state: a request holds the whole conversation."""

from typing import Any

from mlxmtp.engine.events import Thinking
from mlxmtp.limits import TOP_LOGPROBS
from mlxmtp.serve import answers, request
from mlxmtp.serve.answers import About, Answers, Ending, Piece, ToolUse
from mlxmtp.serve.contents import content_of
from mlxmtp.serve.fields import Fields, Refused
from mlxmtp.serve.request import AnswerRequest, History, Message
from mlxmtp.serve.tools import choose, choose_of, flat_functions, qualified, spaces

Item = dict[str, Any]

_TEXTS = ("input_text", "output_text", "text", "refusal")
_SAID: dict[str, Item] = {}
"""The last items of answers by their ids: clients that leave `store` alone refer to them (Vercel's AI SDK)."""
_MOST_SAID = 1024


def read(body: Fields) -> AnswerRequest:
    """Return what a response asks for. Raises Refused."""
    if body.text("previous_response_id", ""):
        told = "Nothing is stored here: send the whole conversation in input, without previous_response_id."
        raise Refused(told, "previous_response_id", code="previous_response_not_found")
    body.refuse("conversation", "prompt", "background")
    text = body.object("text")
    form = request.form_of(None if text is None else text.object("format"))
    history = _Items()
    if instructions := body.text("instructions", ""):
        history.say("system", instructions)
    if isinstance(body.table.get("input"), str):
        history.say("user", body.text("input"))
    else:
        for item in body.objects("input"):
            history.add(item)
    history.flush()
    if not any(message["role"] != "system" for message in history.messages):
        raise Refused("input must be a text, or a list with at least one message.", "input")
    reasoning = body.object("reasoning")
    effort = None if reasoning is None else reasoning.text("effort", "") or None
    given = {**request.sampling_of(body), **request.limit_of(body, "max_output_tokens"), **request.extension_of(body)}
    return AnswerRequest(
        body.text("model", ""),
        history.messages,
        {**given, **form, **_logprobs(body), **request.effort_of(effort, "reasoning.effort")},
        **_tools(body),
        parallel_calls=body.flag("parallel_tool_calls", True),
        stream=body.flag("stream"),
    )


class _Items(History):
    """Items of an input; a thought, text and calls that follow each other are one answer."""

    def __init__(self) -> None:
        super().__init__()
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[Message] = []

    def add(self, item: Fields) -> None:
        """Take the next item; those of unknown types say nothing to a model."""
        kind = item.text("type", "message" if item.has("role") or not item.has("id") else "item_reference")
        if kind == "reasoning":
            thought = request.joined(item, "content", ("reasoning_text", "text"))
            self._reasoning.append(thought or request.joined(item, "summary", ("summary_text",)))
        elif kind == "function_call":
            number, name = item.text("call_id"), qualified(item.text("namespace", ""), item.text("name"))
            self._calls.append(request.call_of(number, name, item.table.get("arguments"), item.path("arguments")))
        elif kind == "message" and item.text("role") == "assistant":
            self._text.append(request.joined(item, kinds=_TEXTS))
        elif kind == "message":
            self.flush()
            role = item.choice("role", "user", "system", "developer", "assistant", default=item.text("role"))
            if role == "user":
                self.say(role, content_of(item, kinds=_TEXTS))
            else:
                self.say("system", request.joined(item, kinds=_TEXTS))
        elif kind == "function_call_output":
            self.flush()
            self.result(content_of(item, "output", _TEXTS), item, "call_id")
        elif kind == "item_reference":
            known = _SAID.get(item.text("id"))
            if known is None:
                raise Refused(f"{item.where}: that item is not known here, send the item itself.", item.where)
            self.add(Fields(known, item.where))

    def flush(self) -> None:
        """Append the answer whose items have come; a thought alone is none."""
        text, reasoning, calls = self._text, self._reasoning, self._calls
        if text or calls:
            self.answer("\n".join(text), "\n".join(filter(None, reasoning)), calls)
        self._text, self._reasoning, self._calls = [], [], []


def _tools(body: Fields) -> dict[str, Any]:
    tools, choice = flat_functions(body), body.table.get("tool_choice")
    if isinstance(choice, dict):
        one = Fields(choice, "tool_choice")
        if one.text("type") == "allowed_tools":
            return choose_of(tools, one)
        if one.text("type") != "function":
            raise Refused("tool_choice must be auto, none, required, or name a function.", "tool_choice")
        return choose(tools, None, qualified(one.text("namespace", ""), one.text("name")), "tool_choice")
    return choose(tools, body.choice("tool_choice", "auto", "none", "required", default="auto"), None, "tool_choice")


def _logprobs(body: Fields) -> dict[str, Any]:
    top = body.number("top_logprobs", TOP_LOGPROBS)
    wanted = top or "message.output_text.logprobs" in body.texts("include")
    return {"top_logprobs": int(top or 0)} if wanted else {}


def _usage(ending: Ending) -> dict[str, Any]:
    counts = answers.total([ending])
    return {
        "input_tokens": counts["prompt"],
        "input_tokens_details": {"cached_tokens": counts["cached"]},
        "output_tokens": counts["completion"],
        "output_tokens_details": {"reasoning_tokens": counts["thinking"]},
        "total_tokens": counts["total"],
    }


class ResponseStream:
    """A response; its events, numbered: created, every item's parts, completed."""

    content_type = answers.EVENT_STREAM

    def __init__(self, about: About, body: Fields) -> None:
        self._about, self._body = about, body
        self._spaces = spaces(body)
        self._number = 0
        self._output: list[Item] = []
        self._open: Item | None = None  # the reasoning or the message that is being written
        self._ending: Ending | None = None

    @property
    def heartbeat(self) -> bytes:
        """An event: Codex gives up after five minutes without one, and comments are none."""
        return self._event("response.in_progress", response=self.response("in_progress"))

    def whole(self, results: Answers) -> dict[str, Any]:
        """Return the last state of a response that is streamed."""
        [(said, ending)] = results
        for piece in said.pieces:
            self.piece(0, piece)
        self.end(0, ending)
        return self.finished()

    def start(self) -> bytes:
        response = self.response("in_progress")
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def piece(self, index: int, piece: Piece) -> bytes:
        if isinstance(piece, ToolUse):
            return self._stop() + self._call(piece)
        if not piece.text:
            return b""
        kind, word = ("reasoning", "reasoning_text") if isinstance(piece, Thinking) else ("message", "output_text")
        begun = b""
        if self._open is None or self._open["type"] != kind:
            begun = self._stop() + self._begin(kind)
        assert self._open is not None
        [part] = self._open["content"]
        part["text"] += piece.text
        if isinstance(piece, Thinking):
            return begun + self._in_part(f"response.{word}.delta", delta=piece.text)
        told = answers.logprob_entries(piece.logprobs)
        part["logprobs"] += told
        return begun + self._in_part(f"response.{word}.delta", delta=piece.text, logprobs=told)

    def end(self, index: int, ending: Ending) -> bytes:
        self._ending = ending
        if self._open is not None and ending.reason == "length":
            self._open["status"] = "incomplete"
        return self._stop()

    def close(self) -> bytes:
        response = self.finished()
        return self._event(f"response.{response['status']}", response=response)

    def error(self, message: str, code: str = "server_error") -> bytes:
        failed = {**self.response("failed"), "error": {"code": code, "message": message}}
        return self._event("response.failed", response=failed)

    def finished(self) -> dict[str, Any]:
        """Return the response after its end."""
        ending = self._ending
        assert ending is not None
        if ending.reason != "length":
            response = self.response("completed")
        else:
            cut = {"incomplete_details": {"reason": "max_output_tokens"}}
            response = {**self.response("incomplete"), **cut}
        return {**response, "usage": _usage(ending), request.EXTENSION: answers.drafting(ending.stats)}

    def response(self, status: str) -> dict[str, Any]:
        """Return the response as it is now, with the parameters that it was asked with."""
        table = self._body.table
        echoed = {name: table.get(name) for name in ("instructions", "max_output_tokens", "temperature", "top_p")}
        defaults = {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True, "metadata": {}}
        return {
            "id": f"resp_{self._about.id}",
            "object": "response",
            "created_at": self._about.created,
            "status": status,
            "model": self._about.model,
            "output": [*self._output],
            "error": None,
            "incomplete_details": None,
            "previous_response_id": None,
            "store": False,
            "usage": None,
            **echoed,
            **{name: value if table.get(name) is None else table[name] for name, value in defaults.items()},
        }

    def _begin(self, kind: str) -> bytes:
        if kind == "reasoning":
            item: Item = {"id": answers.new_id("rs_"), "type": "reasoning", "summary": [], "content": []}
            part: Item = {"type": "reasoning_text", "text": ""}
        else:
            item = {"id": answers.new_id("msg_"), "type": "message", "role": "assistant", "content": []}
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        added = self._item("added", {**item, "status": "in_progress"})
        self._open = {**item, "status": "completed", "content": [part]}
        return added + self._in_part("response.content_part.added", part=part)

    def _stop(self) -> bytes:
        item, done = self._open, b""
        if item is None:
            return done
        [part] = item["content"]
        told = {"logprobs": part["logprobs"]} if "logprobs" in part else {}
        done += self._in_part(f"response.{part['type']}.done", text=part["text"], **told)
        done += self._in_part("response.content_part.done", part=part) + self._item("done", item)
        self._keep(item)
        self._open = None
        return done

    def _call(self, use: ToolUse) -> bytes:
        space, name = self._spaces.get(use.call.name, ("", use.call.name))
        item: Item = {"id": answers.new_id("fc_"), "type": "function_call", "call_id": use.id, "name": name}
        item |= {"namespace": space} if space else {}  # Codex finds the tool of an MCP server by both
        added = self._item("added", {**item, "arguments": "", "status": "in_progress"})
        item |= {"arguments": use.arguments, "status": "completed"}
        place = {"item_id": item["id"], "output_index": len(self._output)}
        written = self._event("response.function_call_arguments.delta", **place, delta=use.arguments)
        written += self._event("response.function_call_arguments.done", **place, arguments=use.arguments, name=name)
        done = self._item("done", item)
        self._keep(item)
        return added + written + done

    def _keep(self, item: Item) -> None:
        self._output.append(item)
        if self._body.table.get("store") is not False:
            _SAID[item["id"]] = item
            while len(_SAID) > _MOST_SAID:
                del _SAID[next(iter(_SAID))]

    def _item(self, what: str, item: Item) -> bytes:
        return self._event(f"response.output_item.{what}", output_index=len(self._output), item=item)

    def _in_part(self, kind: str, **fields: object) -> bytes:
        assert self._open is not None
        place = {"item_id": self._open["id"], "output_index": len(self._output), "content_index": 0}
        return self._event(kind, **place, **fields)

    def _event(self, kind: str, **fields: object) -> bytes:
        number, self._number = self._number, self._number + 1
        return answers.event({"type": kind, "sequence_number": number, **fields}, kind)


def too_long(about: About, body: Fields, refused: Refused) -> bytes:
    """Return the stream for a prompt that the context cannot hold: Codex shortens the conversation after its event, not
    after a status."""
    stream = ResponseStream(about, body)
    return stream.start() + stream.error(str(refused), refused.code or "server_error")
