"""The written form of a conversation: Gemma 4's turns, and which parts of it are learned."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from scripts.pocket.conversation import Conversation
from scripts.pocket.tasks.task import Ask, Call, Medium, Result, Say, Task

SPECIAL = {
    0: "<pad>", 1: "<eos>", 2: "<bos>", 3: "<unk>",
    46: "<|tool>", 47: "<tool|>", 48: "<|tool_call>", 49: "<tool_call|>",
    50: "<|tool_response>", 51: "<tool_response|>", 52: '<|"|>',
    90: "<|image>", 91: "<|image|>", 92: "<image|>", 93: "<|audio>", 94: "<|audio|>", 95: "<audio|>",
    98: "<|think|>", 100: "<|channel>", 101: "<channel|>", 105: "<|turn>", 106: "<turn|>",
}  # fmt: skip
PAD, EOS, BOS, TURN_END, TOOL_RESPONSE, THOUGHT = 0, 1, 2, 106, 50, 100
IMAGE_OPEN, IMAGE, IMAGE_CLOSE, AUDIO_OPEN, AUDIO, AUDIO_CLOSE = range(90, 96)
MARKS = {"image": (IMAGE_OPEN, IMAGE_CLOSE), "audio": (AUDIO_OPEN, AUDIO_CLOSE)}
_MARK = re.compile("|".join(map(re.escape, SPECIAL.values())))
QUOTE = '<|"|>'


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of text, or a picture or sound in its marks; `learned`: the model writes it."""

    text: str
    learned: bool = False
    medium: Medium | None = None


def segments(conversation: Conversation | Task) -> Iterator[Segment]:
    """Yield the segments in order; joined, the texts are what the chat template writes."""
    return _of_task(conversation) if isinstance(conversation, Task) else _of_turns(conversation)


def _of_turns(conversation: Conversation) -> Iterator[Segment]:
    head = "<bos>"
    if conversation.thinking or conversation.system:
        think = "<|think|>\n" if conversation.thinking else ""
        head += f"<|turn>system\n{think}{conversation.system}<turn|>\n"
    last = len(conversation.turns) - 1
    for i, turn in enumerate(conversation.turns):
        yield Segment(f"{head}<|turn>user\n{turn.question.strip()}<turn|>\n<|turn>model\n")
        thought = f"<|channel>thought\n{turn.thought}\n<channel|>" if conversation.thinking and i == last else ""
        yield Segment(f"{thought}{turn.answer.strip()}<turn|>", not conversation.thinking or i == last)
        head = "\n"


def _of_task(task: Task) -> Iterator[Segment]:
    head = "<bos>"
    if task.tools or task.system:
        head += f"<|turn>system\n{task.system}{''.join(declaration(tool) for tool in task.tools)}<turn|>\n"
    for step in task.steps:
        match step:
            case Ask(question, media):
                head += "<|turn>user\n"
                for medium in media:
                    yield Segment(head)
                    yield Segment(f"<|{medium.kind}|>", medium=medium)
                    head = ""
                yield Segment(f"{head}{question.strip()}<turn|>\n<|turn>model\n")
            case Say(answer):
                yield Segment(f"{answer.strip()}<turn|>", learned=True)
            case Call(name, arguments):  # the mark of the result is where the model stops
                yield Segment(
                    f"<|tool_call>call:{name}{{{_pairs(arguments)}}}<tool_call|><|tool_response>", learned=True
                )
            case Result(name, result):
                yield Segment(f"response:{name}{{value:{_value(result.strip())}}}<tool_response|>")
        head = "\n"


def declaration(tool: Mapping[str, Any]) -> str:
    """Return a tool as the template writes its declaration."""
    function = tool["function"]
    parameters = function["parameters"]
    inner = f"properties:{{{_properties(parameters['properties'])}}}," if parameters.get("properties") else ""
    inner += f"required:{_value(parameters['required'])}," if parameters.get("required") else ""
    text = f"<|tool>declaration:{function['name']}{{description:{_value(function['description'])},parameters:{{{inner}"
    return f"{text}type:{_value(parameters['type'].upper())}}}}}<tool|>"


def _properties(table: Mapping[str, Any]) -> str:
    return ",".join(f"{key}:{_schema(one)}" for key, one in _sorted(table))


def _schema(one: Mapping[str, Any]) -> str:
    parts = [f"{key}:{_value(one[key])}," for key in ("description", "enum") if one.get(key)]
    parts += [f"items:{_schema(one['items'])},"] if one.get("items") else []
    return "{" + "".join(parts) + f"type:{_value(one['type'].upper())}}}"


def _value(one: Any) -> str:
    match one:
        case None:
            return "null"
        case bool():
            return str(one).lower()
        case str():
            return f"{QUOTE}{one}{QUOTE}"
        case list() | tuple():
            return f"[{','.join(map(_value, one))}]"
        case Mapping():
            return f"{{{_pairs(one)}}}"
    return str(one)


def _pairs(table: Mapping[str, Any]) -> str:
    return ",".join(f"{key}:{_value(one)}" for key, one in _sorted(table))


def _sorted(table: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return sorted(table.items(), key=lambda item: item[0].lower())


def texts(conversation: Conversation | Task) -> Iterator[str]:
    """Yield what stands between the marks, for training a tokenizer."""
    for segment in segments(conversation):
        yield from filter(None, _MARK.split(segment.text))
