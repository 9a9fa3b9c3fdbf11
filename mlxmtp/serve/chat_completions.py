"""OpenAI's chat completions, and completions of a plain text."""

import json
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from mlxmtp.engine.constraint import Constraint
from mlxmtp.engine.events import Text, Thinking, TokenLogprob
from mlxmtp.limits import TOP_LOGPROBS, Range
from mlxmtp.serve import answers, request
from mlxmtp.serve.answers import About, Answers, Collected, Ending, Piece, ToolUse
from mlxmtp.serve.contents import content_of
from mlxmtp.serve.fields import Fields, Refused
from mlxmtp.serve.request import AnswerRequest, History
from mlxmtp.serve.tools import choose, choose_of, functions

_MOST = 8  # answers to one request
_NOT_HONOURED = (
    "functions", "function_call", "audio", "web_search_options", "grammar", "json_schema", "chat_template",
    "ignore_eos", "stop_token_ids", "bad_words", "allowed_token_ids", "include_stop_str_in_output", "prompt_logprobs",
)  # fmt: skip
_NOT_HONOURED_UNLESS_0 = ("min_tokens", "mirostat", "xtc_probability", "dry_multiplier")  # of vLLM and llama.cpp


def read(body: Fields) -> AnswerRequest:
    """Return what a chat completion asks for. Raises Refused."""
    history = History()
    for message in body.objects("messages"):
        _add(history, message)
    if not history.messages:
        raise Refused("messages must be a list with at least one message.", "messages", code="invalid_value")
    if any(kind != "text" for kind in body.texts("modalities")):
        raise Refused("modalities: only text is written here.", "modalities", code="unsupported_parameter")
    return AnswerRequest(
        body.text("model", ""),
        history.messages,
        {**shared(body), **_thinking(body), **request.logprobs_of(body)},
        **_tools(body),
        parallel_calls=body.flag("parallel_tool_calls", True),
        stream=body.flag("stream"),
        n=_count(body),
        stops=body.texts("stop"),
        continues=_continues(body, history),
    )


def read_plain(body: Fields) -> AnswerRequest:
    """Return what a completion asks for. Raises Refused."""
    body.refuse("echo", "suffix")
    body.refuse("best_of", unless=(1,))
    top = body.number("logprobs", TOP_LOGPROBS)
    told = {} if top is None else {"top_logprobs": int(top)}
    prompt = body.table.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise Refused("prompt must be one text: several, and token ids, are not supported here.", "prompt")
    options: dict[str, Any] = {"stream": body.flag("stream"), "n": _count(body), "stops": body.texts("stop")}
    return AnswerRequest(body.text("model", ""), (), {**shared(body), **told}, raw=prompt, **options)


def shared(body: Fields) -> dict[str, Any]:
    """Return the parameters that both kinds have. Raises Refused."""
    body.refuse(*_NOT_HONOURED)
    body.refuse(*_NOT_HONOURED_UNLESS_0, unless=(0,))
    body.refuse("typical_p", unless=(1,))
    limits = request.limit_of(body, "max_completion_tokens", "max_tokens")
    form = request.form_of(body.object("response_format"), "json_schema") or _guided(body)
    return {**request.sampling_of(body), **request.penalties_of(body), **limits, **form, **request.extension_of(body)}


def _guided(body: Fields) -> dict[str, Any]:
    """Return the constraint that vLLM's parameters ask for, `guided_regex` and the like or `structured_outputs`."""
    within = body.object("structured_outputs")
    if within is not None:
        within.refuse("structural_tag", "whitespace_pattern")
        if within.flag("json_object"):
            return {"constraint": Constraint.schema({"type": "object"})}
    for fields, prefix in ((body, "guided_"), (within, "")):
        if fields is None:
            continue
        if fields.has(f"{prefix}regex"):
            return {"constraint": Constraint("regex", fields.text(f"{prefix}regex"))}
        if fields.has(f"{prefix}grammar"):
            return {"constraint": Constraint("grammar", fields.text(f"{prefix}grammar"))}
        if choices := fields.texts(f"{prefix}choice"):
            quoted = (json.dumps(one).replace(":", r"\u003a") for one in choices)  # a colon would count as a rule
            return {"constraint": Constraint("grammar", f"start: {' | '.join(quoted)}")}
        if (schema := fields.object(f"{prefix}json")) is not None:
            return {"constraint": Constraint.schema(schema.table)}
    return {}


def _add(history: History, message: Fields) -> None:
    role = message.choice("role", "system", "developer", "user", "assistant", "tool", default=message.text("role", ""))
    if role == "user":
        history.say(role, content_of(message))
    elif role in ("system", "developer"):
        history.say("system", request.joined(message))
    elif role == "tool":
        history.result(content_of(message), message, "tool_call_id")
    else:
        message.refuse("function_call", "audio")
        reasoning = message.text("reasoning_content", "") or message.text("reasoning", "")
        text = request.joined(message, kinds=("text", "refusal"))
        history.answer(text, reasoning, [request.function_call_of(one) for one in message.objects("tool_calls")])


def _continues(body: Fields, history: History) -> bool:
    """Return true if the last message, an answer, is to be gone on with. Raises Refused if it is none."""
    if not body.flag("continue_final_message"):
        return False
    last = history.messages[-1]
    if last["role"] != "assistant" or "tool_calls" in last:
        raise Refused("continue_final_message needs an assistant's text as the last message.", "messages")
    return True


def _count(body: Fields) -> int:
    return int(body.number("n", Range(1, _MOST, whole=True)) or 1)


def _thinking(body: Fields) -> dict[str, Any]:
    """Return the thinking that `reasoning_effort`, `reasoning` and `chat_template_kwargs` ask for."""
    found = request.effort_of(body.text("reasoning_effort", "") or None, "reasoning_effort")
    if isinstance(body.table.get("reasoning"), dict):
        reasoning = Fields(body.table["reasoning"], "reasoning")
        found |= request.effort_of(reasoning.text("effort", "") or None, "reasoning.effort")
    template = body.object("chat_template_kwargs")
    for fields in filter(None, (body, template)):
        if fields.has("enable_thinking"):
            found["think"] = fields.flag("enable_thinking")
    budget = body.number("thinking_budget", Range(1, whole=True))
    return found if budget is None else {**found, "think_tokens": int(budget)}


def _tools(body: Fields) -> dict[str, Any]:
    tools, choice = functions(body), body.table.get("tool_choice")
    if isinstance(choice, Mapping):
        one = Fields(choice, "tool_choice")
        if (allowed := one.object("allowed_tools")) is not None:
            return choose_of(tools, allowed)
        function = one.object("function")
        if function is None:
            raise Refused("tool_choice must be auto, none, required, or name a function.", "tool_choice")
        return choose(tools, None, function.text("name"), "tool_choice")
    word = body.choice("tool_choice", "auto", "none", "required", default="auto")
    return choose(tools, word, None, "tool_choice")


def usage(endings: Sequence[Ending]) -> dict[str, Any]:
    """Return the counts of a request's answers."""
    counts = answers.total(endings)
    return {
        "prompt_tokens": counts["prompt"],
        "completion_tokens": counts["completion"],
        "total_tokens": counts["total"],
        "prompt_tokens_details": {"cached_tokens": counts["cached"]},
        "completion_tokens_details": {"reasoning_tokens": counts["thinking"]},
    }


def _reason(ending: Ending) -> str:
    return ending.named(stop="stop", length="length", call="tool_calls")


def _stopped(ending: Ending) -> dict[str, Any]:
    """Return the stop string that ended an answer, by vLLM's name for it; a choice has it only then."""
    return {} if ending.stop is None else {"stop_reason": ending.stop}


def _called(use: ToolUse) -> dict[str, Any]:
    return {"id": use.id, "type": "function", "function": {"name": use.call.name, "arguments": use.arguments}}


def _chat_logprobs(logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
    return {"content": answers.logprob_entries(logprobs), "refusal": None} if logprobs else None


def _plain_logprobs(logprobs: Sequence[TokenLogprob], begin: int = 0) -> dict[str, Any] | None:
    """Return log-probabilities as completions have them; the first token stands at `begin` of the text."""
    if not logprobs:
        return None
    tokens = [answers.token_text(one) for one in logprobs]
    return {
        "tokens": tokens,
        "token_logprobs": [one.logprob for one in logprobs],
        "top_logprobs": [{answers.token_text(other): other.logprob for other in one.top} for one in logprobs],
        "text_offset": [*accumulate(map(len, tokens), initial=begin)][:-1],
    }


class ChatStream:
    """A chat completion; its chunks: role, deltas, the reason, counts if they were asked for, `[DONE]`."""

    content_type, heartbeat = answers.EVENT_STREAM, answers.COMMENT
    kind, prefix = "chat.completion.chunk", "chatcmpl-"

    def __init__(self, about: About, body: Fields) -> None:
        options = body.object("stream_options")
        self._counted = options is not None and options.flag("include_usage")
        self._about, self._n = about, _count(body)
        self._calls = [0] * self._n
        self._endings: list[Ending] = []

    def whole(self, results: Answers) -> dict[str, Any]:
        choices = [{"index": index, **self._choice(*result)} for index, result in enumerate(results)]
        endings = [ending for _, ending in results]
        head = {**self._head(), "object": self.kind.removesuffix(".chunk")}
        more = {request.EXTENSION: answers.drafting(endings[-1].stats)}
        return {**head, "choices": choices, "usage": usage(endings), **more}

    def start(self) -> bytes:
        opening = {"role": "assistant", "content": ""}
        return b"".join(self._chunk(index, {"delta": opening}) for index in range(self._n))

    def piece(self, index: int, piece: Piece) -> bytes:
        if isinstance(piece, ToolUse):
            return self._call(index, piece)
        if not piece.text:
            return b""
        if isinstance(piece, Thinking):
            return self._chunk(index, {"delta": {"reasoning_content": piece.text}})
        return self._chunk(index, {"delta": {"content": piece.text}, "logprobs": _chat_logprobs(piece.logprobs)})

    def end(self, index: int, ending: Ending) -> bytes:
        self._endings.append(ending)
        more = {request.EXTENSION: answers.drafting(ending.stats)}
        return self._chunk(index, {"delta": {}, **_stopped(ending)}, _reason(ending), **more)

    def close(self) -> bytes:
        counts = answers.event({**self._head(), "choices": [], "usage": usage(self._endings)}) if self._counted else b""
        return counts + b"data: [DONE]\n\n"

    def error(self, message: str) -> bytes:
        return answers.event({"error": {"message": message, "type": "server_error", "param": None, "code": None}})

    def _choice(self, said: Collected, ending: Ending) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": said.text or (None if said.calls else "")}
        if said.thinking:
            message["reasoning_content"] = said.thinking
        if said.calls:
            message["tool_calls"] = [_called(use) for use in said.calls]
        told = _chat_logprobs(said.logprobs)
        return {"message": message, "logprobs": told, "finish_reason": _reason(ending), **_stopped(ending)}

    def _call(self, index: int, use: ToolUse) -> bytes:
        number = self._calls[index]
        self._calls[index] += 1
        opening = {"index": number, "id": use.id, "type": "function"}
        function = {"name": use.call.name, "arguments": ""}
        first = self._chunk(index, {"delta": {"tool_calls": [{**opening, "function": function}]}})
        rest = {"index": number, "function": {"arguments": use.arguments}}
        return first + self._chunk(index, {"delta": {"tool_calls": [rest]}})

    def _chunk(self, index: int, choice: Mapping[str, Any], reason: str | None = None, **more: object) -> bytes:
        chosen = {"index": index, "logprobs": None, **choice, "finish_reason": reason}
        return answers.event({**self._head(), "choices": [chosen], **more})

    def _head(self) -> dict[str, Any]:
        about = self._about
        return {"id": self.prefix + about.id, "object": self.kind, "created": about.created, "model": about.model}


class PlainStream(ChatStream):
    """A completion; its chunks: pieces of text, the reason, counts if they were asked for, `[DONE]`."""

    kind, prefix = "text_completion", "cmpl-"

    def start(self) -> bytes:
        self._characters = [0] * self._n  # characters of the tokens so far
        return b""

    def piece(self, index: int, piece: Piece) -> bytes:
        if not isinstance(piece, Text) or not piece.text:
            return b""
        told = _plain_logprobs(piece.logprobs, self._characters[index])
        self._characters[index] += sum(len(answers.token_text(one)) for one in piece.logprobs)
        return self._chunk(index, {"text": piece.text, "logprobs": told})

    def end(self, index: int, ending: Ending) -> bytes:
        self._endings.append(ending)
        return self._chunk(index, {"text": ""}, _reason(ending), **{request.EXTENSION: answers.drafting(ending.stats)})

    def _choice(self, said: Collected, ending: Ending) -> dict[str, Any]:
        return {"text": said.text, "logprobs": _plain_logprobs(said.logprobs), "finish_reason": _reason(ending)}
