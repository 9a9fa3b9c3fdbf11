"""A conversation as a document: markdown for people, JSON with everything for programs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mlxmtp.chat.conversation import title
from mlxmtp.chat.history import Exchange, History
from mlxmtp.errors import MlxmtpError, UsageError
from mlxmtp.files import write_atomically

_TITLE_LINE = re.compile(r"^--- (.+) ---$", re.MULTILINE)
_ENDS = {"cancelled": "*(stopped)*", "length": "*(cut at the length limit)*"}


def as_markdown(history: History, session: str | None = None) -> str:
    """What was said, in order; of attached material only the names, and no thoughts."""
    about = " · ".join(part for part in (history.model, f"session {session}" if session else "", history.name) if part)
    parts = [f"# {title(history) or 'Conversation'}", about]
    if history.system:
        parts += ["## System", history.system]
    for exchange in history.dropped:
        parts += _turn(exchange)
    if history.dropped:
        parts.append("*(The context was full: the model no longer reads what is above.)*")
    for exchange in history.exchanges:
        parts += _turn(exchange)
    return "\n\n".join(part for part in parts if part) + "\n"


def as_table(history: History, session: str | None = None) -> dict[str, Any]:
    """Everything, ready for JSON: also material, thoughts and numbers."""
    turns = [(exchange, False) for exchange in history.dropped] + [(exchange, True) for exchange in history.exchanges]
    return {
        "session": session,
        "name": history.name,
        "title": title(history),
        "model": history.model,
        "system": history.system,
        "exchanges": [
            {
                "question": exchange.question,
                "attached": exchange.attached,
                "mentioned": exchange.mentioned,
                "in_context": in_context,
                "reply": None if exchange.reply is None else exchange.reply.to_dict(),
            }
            for exchange, in_context in turns
        ],
    }


def export(
    history: History,
    file: str,
    session: str | None = None,
    *,
    overwrite: bool = False,
    way_out: str = "take another name",
) -> Path:
    """Write `file`, whose ending says what: .md or .json. Raises UsageError, MlxmtpError; returns where it is.

    `way_out` is what can be done where the file is there already.
    """
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
    """JSON for a file that people may open."""
    return json.dumps(table, ensure_ascii=False, indent=2) + "\n"


def _turn(exchange: Exchange) -> list[str]:
    names = _TITLE_LINE.findall(exchange.material) or (["piped text"] if exchange.material else [])
    parts = ["## Question", f"*(Attached: {', '.join(names)})*" if names else "", exchange.question]
    if exchange.reply is None:
        return [*parts, "*(not answered)*"]
    return [*parts, "## Answer", exchange.reply.text, _ENDS.get(exchange.reply.finish_reason, "")]
