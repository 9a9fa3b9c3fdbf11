"""A request of any protocol in one form: the messages as chat templates read them, tools, and parameters."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlxmtp.engine.constraint import Constraint
from mlxmtp.limits import DRAFTS, IMAGE_TOKENS, PENALTIES, SAMPLING, TOKEN_COUNT, TOP_LOGPROBS, Range
from mlxmtp.serve.contents import Content
from mlxmtp.serve.fields import Fields, Refused

Message = dict[str, Any]

EXTENSION = "mlxmtp"
"""The field of requests and answers that no protocol has: draft length in, tokens per pass out."""

_EFFORT_TOKENS = {"minimal": 512, "low": 1024, "medium": 4096, "high": None, "xhigh": None, "max": None}
"""Tokens of a thought by `reasoning_effort`; None: as many as the model writes."""


@dataclass(frozen=True, slots=True)
class AnswerRequest:
    """A request, checked: `given` holds fields of `Params` by name, for those that the request sets."""

    model: str
    messages: Sequence[Message]
    given: Mapping[str, Any] = field(default_factory=dict)
    tools: Sequence[Mapping[str, Any]] = ()
    forced: Sequence[Mapping[str, Any]] = ()  # tools of which one must be called
    parallel_calls: bool = True
    stream: bool = False
    n: int = 1
    stops: Sequence[str] = ()  # texts that end the answer before them
    raw: str | None = None  # a prompt to be continued as it is, in place of messages
    continues: bool = False  # the last message is the beginning of the answer


class History:
    """Messages in the order in which a client sends them. Raises Refused for results of calls that nobody made."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._open: dict[str, str] = {}  # calls of the last assistant message without a result: name by id

    def say(self, role: str, content: Content) -> None:
        """Append a message of the system or the user."""
        self.messages.append({"role": role, "content": content})

    def answer(self, text: str = "", reasoning: str = "", calls: Sequence[Message] = ()) -> None:
        """Append what the model said before. A thought and calls that follow belong to one turn, in their order."""
        before = self._open if self.messages and self.messages[-1]["role"] == "assistant" else {}
        said: Message = {"role": "assistant", "content": text}
        if reasoning:
            said["reasoning"] = reasoning.removesuffix("\n")
        if text and calls:  # templates write the calls of a message before its text
            self.messages.append(said)
            said = {"role": "assistant", "content": ""}
        if calls:
            said["tool_calls"] = list(calls)
        for index, call in enumerate(calls):  # some clients give them no ids
            call["id"] = call["id"] or f"call_{len(self.messages)}_{index}"
        self._open = before | {call["id"]: call["function"]["name"] for call in calls}
        self.messages.append(said)

    def result(self, content: Content, fields: Fields, id_name: str, called: str = "") -> None:
        """Append the result of a call; without an id, of the first one without a result, of the tool `called`."""
        number = fields.text(id_name, "") or next((one for one, tool in self._open.items() if tool == called), "")
        number = number or next(iter(self._open), "")
        name = self._open.pop(number, None)
        if name is None:
            path = fields.path(id_name)
            raise Refused(f"{path} matches no pending tool call of the message before it.", path)
        self.messages.append({"role": "tool", "content": content, "tool_call_id": number, "name": name})


def call_of(number: str, name: str, arguments: object, path: str) -> Message:
    """Return a past call as templates read it; `arguments` may be JSON text. Raises Refused."""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError):
            raise Refused(f"{path} is not valid JSON.", path) from None
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, dict):
        raise Refused(f"{path} must be a JSON object.", path)
    return {"id": number, "type": "function", "function": {"name": name, "arguments": arguments}}


def function_call_of(fields: Fields) -> Message:
    """Return a past call as chat completions and Ollama have it. Raises Refused."""
    function = fields.object("function")
    if function is None:
        raise fields.wrong("function", "an object")
    arguments = function.table.get("arguments")
    return call_of(fields.text("id", ""), function.text("name"), arguments, function.path("arguments"))


def joined(fields: Fields, name: str = "content", kinds: Sequence[str] = ("text",)) -> str:
    """Return a content as one text: a text itself, or text parts a line apart. Raises Refused for other parts."""
    value = fields.table.get(name)
    if value is None or isinstance(value, str):
        return value or ""
    texts = []
    for part in fields.objects(name):
        kind = part.text("type")
        if kind not in kinds:
            raise Refused(f"{part.path('type')}: '{kind}' cannot be read here, only text.", part.path("type"))
        texts.append(part.text("refusal" if kind == "refusal" else "text"))
    return "\n".join(texts)


def sampling_of(body: Fields) -> dict[str, Any]:
    """Return the sampling that a request sets, by the names of `Params`; top_k -1 is off, a seed may be negative."""
    wider = {"top_k": Range(-1, whole=True), "seed": Range(-(2**63), 2**64 - 1, whole=True)}
    found: dict[str, Any] = {}
    for name, allowed in SAMPLING.items():
        value = body.number("temperature" if name == "temp" else name, wider.get(name, allowed))
        if value is not None:
            found[name] = int(value) % 2**64 if name == "seed" else max(0, value)
    return found


def penalties_of(body: Fields, repetition: str = "repetition_penalty") -> dict[str, Any]:
    """Return the penalties and the bias that a request sets; `repetition` is a protocol's name for that one."""
    found: dict[str, Any] = {}
    for name in ("presence_penalty", "frequency_penalty", "repetition_penalty"):
        value = body.number(repetition if name == "repetition_penalty" else name, PENALTIES[name])
        if value is not None:
            found[name] = value
    bias = body.object("logit_bias")
    if bias is not None:
        if not all(key.isascii() and key.isdecimal() for key in bias.table):
            raise body.wrong("logit_bias", "an object of token ids and numbers")
        numbers = {int(key[:9]): bias.number(key, PENALTIES["logit_bias"]) for key in bias.table}
        found["logit_bias"] = {token: value for token, value in numbers.items() if value is not None}
    return found


def logprobs_of(body: Fields) -> dict[str, Any]:
    """Return how many likely tokens are told in the place of each; nothing if `logprobs` is off. Raises Refused."""
    wanted, top = body.flag("logprobs"), body.number("top_logprobs", TOP_LOGPROBS)
    if top and not wanted:
        raise Refused("top_logprobs needs logprobs: true beside it.", "top_logprobs")
    return {"top_logprobs": int(top or 0)} if wanted else {}


def limit_of(body: Fields, *names: str) -> dict[str, Any]:
    """Return the limit of new tokens, from the first of several names that is there; -1 and 0 lift the server's."""
    for name in names:
        value = body.number(name, Range(-1, TOKEN_COUNT.high, whole=True))
        if value is not None:
            return {"max_tokens": int(value) if value >= 1 else None}
    return {}


def form_of(form: Fields | None, schema_in: str | None = None) -> dict[str, Any]:
    """Return the constraint that a format asks for; its schema may stand in an object of its own, `schema_in`."""
    if form is None or form.text("type", "text") == "text":
        return {}
    kind = form.choice("type", "text", "json_object", "json_schema", default="text")
    if kind == "json_object":
        own = form.object("schema")  # of llama.cpp's and Together's clients
        return {"constraint": Constraint.schema({"type": "object"} if own is None else own.table)}
    holder = form if schema_in is None else form.object(schema_in)
    schema = None if holder is None else holder.object("schema")
    if schema is None:
        raise (holder or form).wrong("schema" if holder else schema_in or "schema", "an object")
    return {"constraint": Constraint.schema(schema.table)}


def effort_of(effort: str | None, path: str) -> dict[str, Any]:
    """Return the thinking that an effort means. Raises Refused for unknown ones."""
    if effort is None:
        return {}
    if effort == "none":
        return {"think": False}
    if effort not in _EFFORT_TOKENS:
        raise Refused(f"{path} must be one of none, {', '.join(_EFFORT_TOKENS)}.", path)
    return {"think": True, "think_tokens": _EFFORT_TOKENS[effort]}


def extension_of(body: Fields) -> dict[str, Any]:
    """Return the draft length and the tokens of pictures that the extension field sets."""
    extension = body.object(EXTENSION)
    if extension is None:
        return {}
    found: dict[str, Any] = {}
    if extension.has("image_tokens"):
        found["image_tokens"] = extension.number("image_tokens", Range(1, whole=True))
        if found["image_tokens"] not in IMAGE_TOKENS:
            raise extension.wrong("image_tokens", f"one of {', '.join(map(str, IMAGE_TOKENS))}")
    wanted = extension.table.get("num_draft_tokens")
    if wanted == "auto":
        return {**found, "num_draft_tokens": "auto"}
    drafts = extension.number("num_draft_tokens", DRAFTS)
    return found if drafts is None else {**found, "num_draft_tokens": drafts}
