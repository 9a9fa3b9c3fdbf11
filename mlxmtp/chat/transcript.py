"""A conversation as a document: markdown for people, JSON with everything for programs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlxmtp.chat.history import Exchange, History, Turn, title_of
from mlxmtp.chat.message import MediaPart, Part, TextPart, ToolCall, ToolResult, text_of
from mlxmtp.errors import MlxmtpError, UsageError
from mlxmtp.files import write_atomically

_TITLE_LINE = re.compile(r"^--- (.+) ---$", re.MULTILINE)
_ENDS = {"cancelled": "*(stopped)*", "length": "*(cut at the length limit)*"}
_LINE = 100  # columns that the arguments or the result of a tool may take


def as_markdown(history: History, session: str | None = None) -> str:
    """Return what was said, in order: of material and media only the names, of tools a line each, and no thoughts."""
    about = " · ".join(part for part in (history.model, f"session {session}" if session else "", history.name) if part)
    parts = [f"# {history.title or 'Conversation'}", about]
    if history.system:
        parts += ["## System", history.system]
    for number, turn in enumerate(history.turns, 1):
        parts += _turn(turn)
        if number == history.left_out:
            parts.append("*(The context was full: the model no longer reads what is above.)*")
    return "\n\n".join(part for part in parts if part) + "\n"


def as_table(history: History, session: str | None = None) -> dict[str, Any]:
    """Return everything, ready for JSON; `exchanges` are `messages` as questions and replies, no media or tools."""
    return {
        "session": session,
        "name": history.name,
        "title": history.title,
        "model": history.model,
        "system": history.system,
        "exchanges": [_exchange(turn.exchange, at >= history.left_out) for at, turn in enumerate(history.turns)],
        "messages": [one.to_dict() for one in history.messages],
    }


def export(
    history: History,
    file: str,
    session: str | None = None,
    *,
    overwrite: bool = False,
    way_out: str = "take another name",
) -> Path:
    """Write `file`, .md or .json, and return its path. Raises MlxmtpError, UsageError with a `way_out`."""
    try:
        path = Path(file).expanduser()
    except RuntimeError as error:
        raise UsageError(f"There is no home folder for {file}.") from error
    form = path.suffix.lower()
    if form not in (".md", ".json"):
        raise UsageError(f"{file} must end in .md or .json, which says what to write.")
    text = as_markdown(history, session) if form == ".md" else as_text(as_table(history, session))
    if not overwrite and path.exists():
        raise UsageError(f"{file} exists already: {way_out}.")
    try:
        write_atomically(path, text)
    except OSError as error:
        raise MlxmtpError(f"{file} cannot be written: {error.strerror or error}.") from error
    return path


def as_text(table: dict[str, Any]) -> str:
    """Return JSON for a file that people may open."""
    return json.dumps(table, ensure_ascii=False, indent=2) + "\n"


def _exchange(exchange: Exchange, in_context: bool) -> dict[str, Any]:
    reply = None if exchange.reply is None else asdict(exchange.reply)
    if reply is not None and reply["stats"] is None:
        del reply["stats"]
    said = {key: getattr(exchange, key) for key in ("question", "attached", "mentioned")}
    return {**said, "in_context": in_context, "reply": reply}


def _turn(turn: Turn) -> Iterator[str]:
    material = turn.exchange.material
    names = _TITLE_LINE.findall(material) or (["piped text"] if material else [])
    yield "## Question"
    if names:
        yield f"*(Attached: {', '.join(names)})*"
    for part in turn[0].parts:
        yield from _part_lines(part)
    answered = False
    for message in turn[1:]:
        if message.role == "assistant" and not answered:
            yield "## Answer"
            answered = True
        if message.role == "system":
            yield "## System"
        for part in message.parts:
            yield from _part_lines(part)
        yield _ENDS.get(message.finish_reason or "", "")
    if not answered:
        yield "*(not answered)*"


def _part_lines(part: Part) -> Iterator[str]:
    """Yield the text of a part, or a line that says what it is."""
    match part:
        case TextPart():
            yield part.text
        case MediaPart():
            yield f"*({part.type.capitalize()}: {title_of(part.name or part.digest, _LINE)})*"
        case ToolCall():
            yield f"*(Called {part.name}: {title_of(json.dumps(part.arguments, ensure_ascii=False), _LINE)})*"
        case ToolResult():
            outcome = "failed" if part.is_error else "returned"
            yield f"*({part.name} {outcome}: {title_of(text_of(part.content), _LINE)})*"
        case Part(more={"type": kind}):
            yield f"*(A part of type {title_of(str(kind))})*"
