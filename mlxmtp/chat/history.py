"""The state of a conversation, as a value, and the change that each event of a session file makes to it."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, get_args

from mlxmtp.chat import message
from mlxmtp.chat.message import MaterialPart, MediaPart, Message, Part, Role, TextPart, join, read_message, string
from mlxmtp.engine.events import FinishReason
from mlxmtp.units import text_width

Event = Mapping[str, Any]
"""One line of a session file: a `type` and what belongs to it."""

TITLE_COLUMNS = 60


def title_of(text: str, columns: int = TITLE_COLUMNS) -> str:
    """Return the first words of `text` on one line of at most that many columns, without control characters."""
    start = text[: 8 * TITLE_COLUMNS]
    line = " ".join("".join(" " if unicodedata.category(one) in ("Cc", "Zl", "Zp") else one for one in start).split())
    if text_width(line) <= columns:
        return line
    while text_width(line) > columns - 1:
        line = line[:-1]
    return line.rstrip() + "…"


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer in an exchange; of several messages the texts together and the end of the last."""

    text: str
    thinking: str = ""
    finish_reason: FinishReason = "stop"
    stats: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Exchange:
    """A turn as a question and its reply, after what was `attached` to it, and `mentioned` in it as `@path`.

    `media`: pictures and sounds of both kinds, in order.
    """

    question: str
    reply: Reply | None = None
    attached: str = ""
    mentioned: str = ""
    media: tuple[MediaPart, ...] = ()
    messages: tuple[Message, ...] = field(default=(), compare=False, repr=False)

    @property
    def material(self) -> str:
        return join([self.attached, self.mentioned])

    @property
    def content(self) -> str:
        """The user's message as the model reads it: material first, the instruction last."""
        return join([self.material, self.question])

    @property
    def calls(self) -> bool:
        """True if the model called tools."""
        return any(one.calls for one in self.messages)

    @property
    def model(self) -> str:
        """The model that answered, the last one if there were several; empty if there is no answer."""
        return next((one.model for one in reversed(self.messages) if one.role == "assistant"), "")

    @property
    def answered(self) -> bool:
        """True if the model said anything; a reply that was cancelled within its thought did not."""
        return self.reply is not None and bool(self.reply.text)


class Turn(tuple[Message, ...]):
    """A user message and all that follows it up to the next one: answers, tool calls and results."""

    @cached_property
    def exchange(self) -> Exchange:
        """The turn as a question and its reply; computed once, because every prompt needs all of them."""
        asked, answers, reply = self[0], [one for one in self if one.role == "assistant"], None
        if answers:
            text, thinking = join([one.text for one in answers]), join([one.thinking for one in answers])
            reply = Reply(text, thinking, answers[-1].finish_reason or "stop", answers[-1].stats)
        attached, mentioned = (asked.material(mentioned=one) for one in (False, True))
        return Exchange(asked.text, reply, attached, mentioned, asked.media, self)


@dataclass(frozen=True, slots=True)
class History:
    """The messages of a conversation in turns, oldest first; the first `left_out` turns are no longer in the prompt.

    `coming` is the answer on its way: to the last message, or the continuation of the last answer.
    """

    model: str = ""
    system: str = ""
    name: str | None = None
    turns: tuple[Turn, ...] = ()
    left_out: int = 0
    coming: Message | None = None

    @property
    def messages(self) -> tuple[Message, ...]:
        """The whole conversation, the system prompt first."""
        system = (Message("system", (TextPart(self.system),)),) if self.system else ()
        return (*system, *(one for turn in self.turns for one in turn))

    @property
    def exchanges(self) -> tuple[Exchange, ...]:
        """The turns in the prompt."""
        return tuple(turn.exchange for turn in self.turns[self.left_out :])

    @property
    def dropped(self) -> tuple[Exchange, ...]:
        """The turns that were left out of the prompt because the context was full."""
        return tuple(turn.exchange for turn in self.turns[: self.left_out])

    @property
    def title(self) -> str:
        """The first question in one line of at most 60 columns; its material's first line if it has no words."""
        first = self.turns[0].exchange if self.turns else Exchange("")
        return title_of(first.question or first.material or ", ".join(one.name for one in first.media))

    @property
    def asked(self) -> bool:
        """True if there is a question to answer or to take back."""
        return len(self.turns) > self.left_out

    @property
    def continues(self) -> bool:
        """True if the next piece of an answer continues the last message; after a tool call a new one begins."""
        last = self.turns[-1][-1]
        return last.role == "assistant" and not any(one.type == "tool_call" for one in last.parts)

    def after(self, event: Event) -> History:
        """Return the state after `event`. Never raises: unknown and impossible events change nothing."""
        change = _CHANGES.get(str(event.get("type")))
        return self if change is None else change(self, event)

    def ending(self, answer: Message) -> Event:
        """Return the event of an answer that is complete, or of a continuation."""
        return {"type": "extend" if self.continues else "message", **answer.to_dict()}

    def broken_off(self) -> Event | None:
        """Return the event that keeps an unfinished answer as cancelled; None if none is on its way."""
        return None if self.coming is None else self.ending(replace(self.coming, finish_reason="cancelled"))


def _count(event: Event) -> int:
    value = event.get("count")
    return max(0, value) if isinstance(value, int) else 0


def _settled(old: History) -> History:
    """An answer that broke off without its event becomes a message where anything else follows."""
    event = old.broken_off()
    return old if event is None else old.after(event)


def _message(old: History, event: Event) -> History:
    role: Role | None = next((one for one in get_args(Role) if one == event.get("role")), None)
    if role is None:
        return old
    new = read_message(event, role, old.model)
    if role == "user":
        return replace(settled := _settled(old), turns=(*settled.turns, Turn([new])))
    if role == "system" and not old.turns:
        return replace(old, system=new.text)
    if not old.asked:
        return old
    if role != "assistant":
        old = _settled(old)
    elif old.continues:
        return replace(old, coming=None)  # a question that was lost must not cost the answer before it
    return _last(old, *old.turns[-1], new)


def _part(old: History, event: Event) -> History:
    if not old.asked:
        return old
    piece = read_message(event, "assistant", old.model)
    return replace(old, coming=piece if old.coming is None else old.coming.extended(piece))


def _extend(old: History, event: Event) -> History:
    if not old.asked:
        return old
    more, (*before, last) = read_message(event, "assistant", old.model), old.turns[-1]
    return _last(old, *before, *([last.extended(more)] if old.continues else [last, more]))


def _edit(old: History, event: Event) -> History:
    """The state with other words for the last question, and other material where the event has any; media stay."""
    if not old.asked:
        return old
    asked = old.turns[-1][0]
    if "parts" in event:
        return _last(old, replace(asked, parts=message.read_parts(event["parts"])))
    replaced = [mentioned for key, mentioned in (("attached", False), ("mentioned", True)) if key in event]
    stay = [
        one for one in asked.parts
        if not isinstance(one, TextPart) and not (isinstance(one, MaterialPart) and one.mentioned in replaced)
    ]  # fmt: skip
    new = message.user_parts(string(event), string(event, "attached"), string(event, "mentioned"))

    def place(part: Part) -> int:
        """Order the parts of a question: attached, mentioned, media, words."""
        return int(part.mentioned) if isinstance(part, MaterialPart) else 3 if isinstance(part, TextPart) else 2

    return _last(old, replace(asked, parts=tuple(sorted([*stay, *new], key=place))))


def _last(old: History, *turn: Message) -> History:
    """The state with another last turn, and no answer on its way."""
    return replace(old, turns=(*old.turns[:-1], Turn(turn)), coming=None)


_CHANGES: dict[str, Callable[[History, Event], History]] = {
    "session": lambda old, event: replace(old, model=string(event, "model")),
    "system": lambda old, event: replace(old, system=string(event)),
    "model": lambda old, event: replace(old, model=string(event, "name")),
    "name": lambda old, event: replace(old, name=string(event, "name") or None),
    "message": _message,
    "part": _part,
    "extend": _extend,
    "retract": lambda old, _: _last(old, old.turns[-1][0]) if old.asked else old,
    "edit": _edit,
    "undo": lambda old, event: replace(
        old, turns=old.turns[: max(old.left_out, len(old.turns) - _count(event))], coming=None
    ),
    "drop": lambda old, event: replace(
        settled := _settled(old), left_out=min(len(settled.turns), old.left_out + _count(event))
    ),
    "take back": lambda old, event: replace(old, left_out=max(0, old.left_out - _count(event))),
    "question": lambda old, event: _message(old, {**event, "role": "user"}),  # format 1
    "reply": lambda old, event: _message(old, {**event, "role": "assistant"}),  # format 1
}
