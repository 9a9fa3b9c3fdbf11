"""A conversation that can be asked, taken back, gone on with, and saved while it happens.

State changes only through events (`history.py`), each of which goes to the journal if there is one. Knows nothing of
terminals, of files and of what a model is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from mlxmtp.chat.history import Event, Exchange, History, Reply, title_of

if TYPE_CHECKING:
    from mlxmtp.engine.events import FinishReason
    from mlxmtp.engine.tokenizer import Message

PART_CHARACTERS = 200
PART_SECONDS = 0.25
"""An answer on its way reaches the journal in parts: after so many characters, or so long after the last part."""


class Log(Protocol):
    """Where events go: `mlxmtp.chat.journal.Journal`, or a list in a test."""

    @property
    def id(self) -> str:
        """What the session is called by."""

    @property
    def saved(self) -> bool:
        """Whether it is on the disk up to now."""

    @property
    def trouble(self) -> str | None:
        """Why nothing is saved any more, one sentence."""

    def write(self, event: Event) -> None:
        """Keep one event. Never raises for a disk that is full or gone: see `trouble`."""

    def successor(self, model: str) -> Log:
        """The journal of a new conversation beside this one."""

    def close(self) -> None:
        """Let others continue the session."""


class Conversation:
    """A system prompt and exchanges, oldest first.

    While an answer comes, call `part` with every piece, then `finish` once; `reply` and `extend` are for a whole one.
    """

    def __init__(
        self,
        *,
        model: str = "",
        system: str = "",
        journal: Log | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.journal = journal
        self._history = History(model=model)
        self._clock = clock
        self._unwritten = Reply("")  # the end of the coming answer that is not in the journal yet
        self._written_at = -math.inf
        if system:
            self.set_system(system)

    @classmethod
    def restore(cls, events: Iterable[Event], journal: Log | None = None) -> Conversation:
        """The conversation that wrote `events`; it goes on in `journal`. An answer that broke off is kept as cancelled.

        Never raises: unknown and impossible events are passed over.
        """
        conversation = cls()
        for event in events:
            conversation._history = conversation._history.after(event)
        conversation.journal = journal
        conversation._break_off()
        return conversation

    @property
    def history(self) -> History:
        """Everything, as a value: a copy that stays as it is."""
        return self._history

    @property
    def system(self) -> str:
        """The system prompt; empty for none."""
        return self._history.system

    @property
    def model(self) -> str:
        """The name of the model that answers."""
        return self._history.model

    @property
    def name(self) -> str | None:
        """What the session was saved as."""
        return self._history.name

    @property
    def exchanges(self) -> tuple[Exchange, ...]:
        """What is in the prompt, oldest first."""
        return self._history.exchanges

    @property
    def dropped(self) -> tuple[Exchange, ...]:
        """What was left out of the prompt because the context was full, oldest first."""
        return self._history.dropped

    @property
    def title(self) -> str:
        """The first question in one line of at most 60 columns."""
        return title(self._history)

    @property
    def session(self) -> str | None:
        """The id by which it can be resumed; None while nothing is on the disk."""
        return self.journal.id if self.journal is not None and self.journal.saved else None

    @property
    def trouble(self) -> str | None:
        """Why nothing is saved any more, one sentence; None while all is well."""
        return None if self.journal is None else self.journal.trouble

    def messages(self, asking: Exchange | None = None, *, instead: bool = False) -> list[Message]:
        """What the chat template renders; `asking` is a question that is not part of the conversation yet: one more,
        or one `instead` of the last.

        Thoughts are never in it, and neither are questions that got no answer, unless it is the last one.
        """
        said = [*(self.exchanges[:-1] if instead else self.exchanges), *([] if asking is None else [asking])]
        messages: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        for exchange in said:
            if exchange.answered or exchange is said[-1]:
                messages.append({"role": "user", "content": exchange.content})
            if exchange.reply is not None and exchange.answered:
                messages.append({"role": "assistant", "content": exchange.reply.text})
        return messages

    def set_system(self, text: str) -> None:
        """Replace the system prompt; empty for none."""
        self._do({"type": "system", "text": text})

    def use_model(self, name: str) -> None:
        """Another model answers from here on."""
        self._do({"type": "model", "name": name})

    def rename(self, name: str) -> None:
        """Give the session a name (`Sessions.check_name` says first whether it will do)."""
        self._do({"type": "name", "name": name})

    def ask(self, question: str, attached: str = "", mentioned: str = "") -> None:
        """Put a question. The session's file is created here, with the first one."""
        self._break_off()
        material = {key: text for key, text in (("attached", attached), ("mentioned", mentioned)) if text}
        self._do({"type": "question", "text": question, **material})

    def part(self, text: str = "", thinking: str = "") -> None:
        """A piece of the answer to the last question, or of the last reply's continuation."""
        assert self.exchanges
        piece = Reply(text, thinking)
        self._history = self._history.after({"type": "part", "text": text, "thinking": thinking})
        self._unwritten = self._unwritten.extended(piece)
        waiting, now = self._unwritten, self._clock()
        long_enough = len(waiting.text) + len(waiting.thinking) >= PART_CHARACTERS
        if self.journal is not None and (long_enough or now - self._written_at >= PART_SECONDS):
            self.journal.write({"type": "part", "text": waiting.text, "thinking": waiting.thinking})
            self._unwritten, self._written_at = Reply(""), now

    def finish(self, reason: FinishReason, stats: Mapping[str, Any] | None = None) -> None:
        """The answer whose parts came is complete: a reply, or the continuation of the last one."""
        coming = self._history.coming or Reply("")
        end = replace(coming, finish_reason=reason, stats=stats)
        assert self.exchanges
        if self.exchanges[-1].reply is None:
            self.reply(end)
        else:
            self.extend(end)

    def reply(self, reply: Reply) -> None:
        """The whole reply to the last question, also one that was cancelled or cut at a limit."""
        assert self.exchanges
        assert self.exchanges[-1].reply is None
        self._do({"type": "reply", **reply.to_dict()})

    def extend(self, more: Reply) -> None:
        """The last reply made longer by `more`."""
        assert self.exchanges
        assert self.exchanges[-1].reply is not None
        self._do({"type": "extend", **more.to_dict()})

    def retract_reply(self) -> str | None:
        """Take the last reply back and return its question, for another answer. None if nothing was asked."""
        self._break_off()
        if not self.exchanges:
            return None
        if self.exchanges[-1].reply is not None:
            self._do({"type": "retract"})
        return self.exchanges[-1].question

    def replace_question(self, question: str, mentioned: str = "") -> None:
        """Other words for the last question, whose reply goes; what they mention replaces what the old ones did."""
        self._break_off()
        assert self.exchanges
        other = {} if mentioned == self.exchanges[-1].mentioned else {"mentioned": mentioned}
        self._do({"type": "edit", "text": question, **other})

    def undo(self, count: int = 1) -> tuple[Exchange, ...]:
        """Take back the last `count` exchanges, or as many as there are, and return them, oldest first."""
        self._break_off()
        taken = self.exchanges[-count:] if count > 0 else ()
        if taken:
            self._do({"type": "undo", "count": len(taken)})
        return taken

    def drop_oldest(self, count: int) -> tuple[Exchange, ...]:
        """Leave the oldest `count` exchanges out of the prompt, because the context is full; the session keeps them."""
        self._break_off()
        taken = self.exchanges[: max(0, count)]
        if taken:
            self._do({"type": "drop", "count": len(taken)})
        return taken

    def take_back_oldest(self, count: int) -> None:
        """Undo `drop_oldest(count)`: nothing came of what it was done for."""
        if count > 0:
            self._do({"type": "take back", "count": count})

    def clear(self) -> None:
        """Start anew with the same model and system prompt, in a session of its own: the old one can be resumed."""
        self.close()
        before = self._history
        self._history = History(model=before.model)
        if self.journal is not None:
            self.journal = self.journal.successor(before.model)
        if before.system:
            self.set_system(before.system)

    def close(self) -> None:
        """Let other windows continue the session. An answer that did not finish is kept as cancelled."""
        self._break_off()
        if self.journal is not None:
            self.journal.close()

    def _do(self, event: Event) -> None:
        self._unwritten, self._written_at = Reply(""), -math.inf
        self._history = self._history.after(event)
        if self.journal is not None:
            self.journal.write(event)

    def _break_off(self) -> None:
        """An answer on its way has ended without its `reply`."""
        event = self._history.broken_off()
        if event is not None:
            self._do(event)


def title(history: History) -> str:
    """The first question in one line of at most 60 columns; the material's first line where there is no question."""
    first = next(iter(history.dropped + history.exchanges), None)
    return "" if first is None else title_of(first.question or first.material)
