"""What has been said, as a value: the state of a conversation, and how each event of a session changes it.

A session file holds the same events, one per line, so replaying a file gives the conversation that wrote it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from mlxmtp.engine.events import FinishReason
from mlxmtp.units import text_width

Event = Mapping[str, Any]
"""One line of a session file: a `type` and what belongs to it."""


def join(parts: Sequence[str]) -> str:
    """Material and questions as one message."""
    return "\n\n".join(part for part in parts if part)


TITLE_COLUMNS = 60


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model said. `thinking` is for people: it never goes back to the model. `stats` is `Stats.to_dict()`."""

    text: str
    thinking: str = ""
    finish_reason: FinishReason = "stop"
    stats: Mapping[str, Any] | None = None

    def extended(self, more: Reply) -> Reply:
        """This reply, gone on with: the end and the numbers are those of the continuation."""
        return replace(more, text=self.text + more.text, thinking=self.thinking + more.thinking)

    def to_dict(self) -> dict[str, Any]:
        """The fields under their own names, ready for JSON."""
        table: dict[str, Any] = {"text": self.text, "thinking": self.thinking, "finish_reason": self.finish_reason}
        return table if self.stats is None else {**table, "stats": dict(self.stats)}


@dataclass(frozen=True, slots=True)
class Exchange:
    """A question and its reply; None while there is none.

    Material stands before the question: what was `attached` to it, and what it `mentioned` as `@path`.
    """

    question: str
    reply: Reply | None = None
    attached: str = ""
    mentioned: str = ""

    @property
    def material(self) -> str:
        """All that stands before the question."""
        return join([self.attached, self.mentioned])

    @property
    def content(self) -> str:
        """The user's message as the model reads it: material first, the instruction last."""
        return join([self.material, self.question])

    @property
    def answered(self) -> bool:
        """Whether the model said anything; a reply that was cancelled within its thought did not."""
        return self.reply is not None and bool(self.reply.text)


@dataclass(frozen=True, slots=True)
class History:
    """Exchanges oldest first. `dropped` ones belong to the transcript but no longer to the prompt.

    `coming` is what has come of an answer on its way: to the last question, or of the last reply's continuation.
    """

    model: str = ""
    system: str = ""
    name: str | None = None
    exchanges: tuple[Exchange, ...] = ()
    dropped: tuple[Exchange, ...] = ()
    coming: Reply | None = None

    def after(self, event: Event) -> History:
        """The state after `event`. Never raises: what is unknown or impossible changes nothing."""
        change = _CHANGES.get(str(event.get("type")))
        return self if change is None else change(self, event)

    def broken_off(self) -> Event | None:
        """The event that keeps an unfinished answer as cancelled; None if none is on its way."""
        if self.coming is None:
            return None
        kind = "reply" if self.exchanges[-1].reply is None else "extend"
        return {"type": kind, **replace(self.coming, finish_reason="cancelled").to_dict()}


def _text(event: Event, key: str = "text") -> str:
    value = event.get(key)
    return value if isinstance(value, str) else ""


def _count(event: Event) -> int:
    value = event.get("count")
    return max(0, value) if isinstance(value, int) else 0


def _reply(event: Event) -> Reply:
    reason, stats = event.get("finish_reason"), event.get("stats")
    known: FinishReason = next((one for one in get_args(FinishReason) if one == reason), "stop")
    return Reply(_text(event), _text(event, "thinking"), known, stats if isinstance(stats, dict) else None)


def _settled(old: History) -> History:
    """An answer that broke off without its event becomes a reply where anything else follows."""
    event = old.broken_off()
    return old if event is None else old.after(event)


def _question(old: History, event: Event) -> History:
    old = _settled(old)
    asked = Exchange(_text(event), attached=_text(event, "attached"), mentioned=_text(event, "mentioned"))
    return replace(old, exchanges=(*old.exchanges, asked))


def _part(old: History, event: Event) -> History:
    return replace(old, coming=(old.coming or Reply("")).extended(_reply(event))) if old.exchanges else old


def _reply_comes(old: History, event: Event) -> History:
    # A question that was lost on its way to the file must not cost the answer before it.
    lost = bool(old.exchanges) and old.exchanges[-1].reply is not None
    return replace(old, coming=None) if lost else _last(old, reply=_reply(event))


def _extend(old: History, event: Event) -> History:
    last = old.exchanges[-1].reply if old.exchanges else None
    return _last(old, reply=_reply(event) if last is None else last.extended(_reply(event)))


def _edit(old: History, event: Event) -> History:
    other = {key: _text(event, key) for key in ("attached", "mentioned") if key in event}
    return _last(old, question=_text(event), reply=None, **other)


def _undo(old: History, event: Event) -> History:
    return replace(old, exchanges=old.exchanges[: max(0, len(old.exchanges) - _count(event))], coming=None)


def _drop(old: History, event: Event) -> History:
    old, count = _settled(old), _count(event)
    return replace(old, dropped=old.dropped + old.exchanges[:count], exchanges=old.exchanges[count:])


def _take_back(old: History, event: Event) -> History:
    kept = max(0, len(old.dropped) - _count(event))
    return replace(old, dropped=old.dropped[:kept], exchanges=old.dropped[kept:] + old.exchanges)


def _last(old: History, **changes: Any) -> History:
    """With another last exchange, and no answer on its way."""
    if not old.exchanges:
        return old
    return replace(old, exchanges=(*old.exchanges[:-1], replace(old.exchanges[-1], **changes)), coming=None)


_CHANGES: dict[str, Callable[[History, Event], History]] = {
    "session": lambda old, event: replace(old, model=_text(event, "model")),
    "system": lambda old, event: replace(old, system=_text(event)),
    "model": lambda old, event: replace(old, model=_text(event, "name")),
    "name": lambda old, event: replace(old, name=_text(event, "name") or None),
    "question": _question,
    "part": _part,
    "reply": _reply_comes,
    "extend": _extend,
    "retract": lambda old, _: _last(old, reply=None),
    "edit": _edit,
    "undo": _undo,
    "drop": _drop,
    "take back": _take_back,
}


def title_of(text: str, columns: int = TITLE_COLUMNS) -> str:
    """The first words of `text` on one line of at most that many terminal columns, without control characters."""
    words = "".join(
        " " if unicodedata.category(one) in ("Cc", "Zl", "Zp") else one for one in text[: 8 * TITLE_COLUMNS]
    )
    line = " ".join(words.split())
    if text_width(line) <= columns:
        return line
    while text_width(line) > columns - 1:
        line = line[:-1]
    return line.rstrip() + "…"
