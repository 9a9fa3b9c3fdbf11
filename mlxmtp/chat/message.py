"""Messages and their parts, as session files and exports hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, get_args

from mlxmtp.engine.events import FinishReason
from mlxmtp.media.source import MediaFile

Role = Literal["system", "user", "assistant", "tool"]

_UNSTORED = ("more", "file")  # fields of parts that are no keys of theirs in a session


def join(parts: Sequence[str]) -> str:
    """Return material and questions as one text, blank lines between them."""
    return "\n\n".join(filter(None, parts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A piece of a message. `more` holds fields that this version does not know; a bare Part is of an unknown type."""

    type: ClassVar[str] = ""
    more: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the part as JSON, without fields that have their default value."""
        blank = type(self)()
        table: dict[str, Any] = {"type": self.type} if self.type else {}
        for name in [one.name for one in fields(self) if one.name not in _UNSTORED]:
            value = getattr(self, name)
            if value != getattr(blank, name):
                as_list = isinstance(value, tuple)
                table[name] = [one.to_dict() if isinstance(one, Part) else one for one in value] if as_list else value
        return {**table, **self.more}


@dataclass(frozen=True, slots=True)
class TextPart(Part):
    """Text of a person, the model or a tool."""

    type = "text"
    text: str = ""


@dataclass(frozen=True, slots=True)
class MaterialPart(Part):
    """Text of files or a pipe, with `--- path ---` lines: attached before a question, or mentioned in it as `@path`."""

    type = "material"
    text: str = ""
    name: str = ""
    mentioned: bool = False


@dataclass(frozen=True, slots=True)
class MediaPart(Part):
    """An image, a sound or a video; `path` leads from the folder of sessions to a copy: dropped files disappear.

    `digest` is of the file (`sha256:…`); prefixes are compared by what the network reads (`engine/media.py`). `shape`
    of the file: rows and columns, or samples and channels; `size` in bytes. `file`: it, where it was given just now.
    """

    digest: str = ""
    media_type: str = ""
    shape: tuple[int, ...] = ()
    size: int = 0
    name: str = ""
    path: str = ""
    file: MediaFile | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class ImagePart(MediaPart):
    """A picture."""

    type = "image"


@dataclass(frozen=True, slots=True)
class AudioPart(MediaPart):
    """A recording."""

    type = "audio"


@dataclass(frozen=True, slots=True)
class VideoPart(MediaPart):
    """A video."""

    type = "video"


@dataclass(frozen=True, slots=True)
class ToolCall(Part):
    """A call that the model made. `written` is its text as generated, which a template may render differently."""

    type = "tool_call"
    id: str = ""
    name: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    written: str = ""


@dataclass(frozen=True, slots=True)
class ToolResult(Part):
    """The result of the call with the id `call_id`, or the reason why there is none."""

    type = "tool_result"
    call_id: str = ""
    name: str = ""
    content: tuple[Part, ...] = ()
    is_error: bool = False


_KNOWN: dict[str, type[Part]] = {
    kind.type: kind for kind in (TextPart, MaterialPart, ImagePart, AudioPart, VideoPart, ToolCall, ToolResult)
}


@dataclass(frozen=True, slots=True)
class Message:
    """One message; after `parts` the fields of an answer. `thinking` never goes back, `stats` is `Stats.to_dict()`."""

    role: Role
    parts: tuple[Part, ...] = ()
    thinking: str = ""
    finish_reason: FinishReason | None = None
    stats: Mapping[str, Any] | None = None
    model: str = ""
    sampling: Mapping[str, Any] | None = None

    @property
    def text(self) -> str:
        return text_of(self.parts)

    @property
    def media(self) -> tuple[MediaPart, ...]:
        """The images and audio in it."""
        return tuple(one for one in self.parts if isinstance(one, MediaPart))

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        return tuple(one for one in self.parts if isinstance(one, ToolCall))

    def material(self, *, mentioned: bool) -> str:
        """Return the material that is mentioned, or that is attached."""
        return join([one.text for one in self.parts if isinstance(one, MaterialPart) and one.mentioned == mentioned])

    def extended(self, more: Message) -> Message:
        """Return this answer with its continuation, from which the end, numbers, model and sampling are."""
        *before, last = self.parts or (TextPart(),)
        first, *after = more.parts or (TextPart(),)
        if isinstance(last, TextPart) and isinstance(first, TextPart):
            joined = replace(last, text=last.text + first.text)
            parts = (*before, *([joined] if joined.text else []), *after)
        else:
            parts = (*self.parts, *more.parts)
        return replace(more, parts=parts, thinking=self.thinking + more.thinking)

    def to_dict(self) -> dict[str, Any]:
        """Return the message as JSON, the role first."""
        answer = {name: getattr(self, name) for name in ("thinking", "finish_reason", "stats", "model", "sampling")}
        set_ones = {name: value for name, value in answer.items() if value not in (None, "")}
        return {"role": self.role, "parts": [one.to_dict() for one in self.parts], **set_ones}


def with_calls(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return answers, calls and results as templates read them; a call whose result was lost has one that says so.

    Templates write the calls of a message before its text, so a text stands in a message of its own.
    """
    found: list[dict[str, Any]] = []
    results = {part.call_id: part for one in messages for part in one.parts if isinstance(part, ToolResult)}
    for message in messages:
        if message.role != "assistant":
            continue
        if message.text or not message.calls:
            found.append({"role": "assistant", "content": message.text})
        if message.calls:
            called = [
                {"id": one.id, "type": "function", "function": {"name": one.name, "arguments": dict(one.arguments)}}
                for one in message.calls
            ]
            found.append({"role": "assistant", "content": "", "tool_calls": called})
        for one in message.calls:
            result = results.get(one.id)
            said = "There is no result: it was interrupted." if result is None else text_of(result.content)
            found.append({"role": "tool", "tool_call_id": one.id, "name": one.name, "content": said})
    return found


def text_of(parts: Sequence[Part]) -> str:
    """Return the texts among the parts, without material."""
    return join([one.text for one in parts if isinstance(one, TextPart)])


def user_parts(
    question: str, attached: str = "", mentioned: str = "", media: Sequence[MediaPart] = ()
) -> tuple[Part, ...]:
    """Return the parts of a question, material first."""
    material = (MaterialPart(attached), MaterialPart(mentioned, mentioned=True))
    words = (TextPart(question),) if question else ()
    return (*(one for one in material if one.text), *media, *words)


def media_part(file: MediaFile) -> MediaPart:
    """Return the part of a picture, a sound or a video."""
    kind = {"image": ImagePart, "audio": AudioPart, "video": VideoPart}[file.kind]
    return kind(digest=file.digest, media_type=file.media_type, size=len(file.data), name=file.name, file=file)


def read_message(data: Mapping[str, Any], role: Role, model: str = "") -> Message:
    """Return the message of an event (of format 1, too) or an export, without damaged values."""
    if "parts" in data:
        parts = read_parts(data["parts"])
    else:
        attached, mentioned = (string(data, key) if role == "user" else "" for key in ("attached", "mentioned"))
        parts = user_parts(string(data), attached, mentioned)
    if role != "assistant":
        return Message(role, parts)
    reason: FinishReason = next((one for one in get_args(FinishReason) if one == data.get("finish_reason")), "stop")
    stats, sampling = (value if isinstance(value := data.get(key), dict) else None for key in ("stats", "sampling"))
    return Message(role, parts, string(data, "thinking"), reason, stats, string(data, "model") or model, sampling)


def string(data: Mapping[str, Any], key: str = "text") -> str:
    """Return a text of an event or an export; empty if it is none."""
    value = data.get(key)
    return value if isinstance(value, str) else ""


def read_parts(value: object, *, nested: bool = False) -> tuple[Part, ...]:
    """Return the parts that `to_dict` wrote. One of another type or with other values is kept as it is."""
    items = value if isinstance(value, list) else []
    return tuple(_read_part(one, nested) for one in items if isinstance(one, dict))


def _read_part(data: dict[str, Any], nested: bool) -> Part:
    kind = _KNOWN.get(str(data.get("type")), Part)
    if kind is Part or (nested and kind is ToolResult):  # a result holds no results: no depth without end
        return Part(more=data)
    blank, values = kind(), {}
    more = {name: value for name, value in data.items() if name != "type"}
    for name in [one.name for one in fields(kind) if one.name not in _UNSTORED and one.name in more]:
        value = more.pop(name)
        if isinstance(value, list):
            value = read_parts(value, nested=True) if name == "content" else tuple(value)
        if type(value) is not type(getattr(blank, name)):
            return Part(more=data)
        values[name] = value
    return kind(**values, more=more)
