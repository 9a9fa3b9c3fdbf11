"""A conversation that changes by events alone (`history.py`), each of which goes to the journal."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlxmtp.chat.history import Event, Exchange, History
from mlxmtp.chat.journal import Journal, kept
from mlxmtp.chat.message import MediaPart, Message, ToolCall, user_parts, with_calls
from mlxmtp.engine import tokenizer
from mlxmtp.engine.events import FinishReason
from mlxmtp.errors import SessionError
from mlxmtp.media.source import MediaFile

PART_CHARACTERS, PART_SECONDS = 200, 0.25
"""An answer on its way reaches the journal in parts: after so many characters, or so long after the last part."""


class Conversation:
    """A system prompt and exchanges, oldest first. An answer is any number of `part`, then one `finish`."""

    def __init__(
        self,
        *,
        model: str = "",
        system: str = "",
        journal: Journal | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.journal = journal
        self._history = History(model=model)
        self._clock = clock
        self._pending = "", ""  # text and thought of the coming answer that are no event yet
        self._written_at = -math.inf
        self._session: Path | None = None  # the file that it is from, where there is no journal
        self._files: dict[str, MediaFile] = {}  # of pictures and sounds, by digest
        if system:
            self.set_system(system)

    @classmethod
    def restore(
        cls, events: Iterable[Event], journal: Journal | None = None, session: Path | None = None
    ) -> Conversation:
        """Return the conversation that wrote `events`, to go on in `journal`; impossible events are passed over.

        `session`: the file that they are from, where nothing is written.
        """
        conversation = cls()
        for event in events:
            conversation._history = conversation._history.after(event)
        conversation.journal = journal
        conversation._session = session
        conversation._break_off()
        return conversation

    @property
    def history(self) -> History:
        """The state as a value, with all of an answer on its way."""
        return self._history.after(self._piece) if any(self._pending) else self._history

    @property
    def system(self) -> str:
        return self._history.system

    @property
    def model(self) -> str:
        return self._history.model

    @property
    def exchanges(self) -> tuple[Exchange, ...]:
        return self._history.exchanges

    @property
    def dropped(self) -> tuple[Exchange, ...]:
        return self._history.dropped

    @property
    def session(self) -> str | None:
        """The id by which it can be resumed; None while nothing is on the disk."""
        return self.journal.id if self.journal is not None and self.journal.saved else None

    @property
    def origin(self) -> str | None:
        """The id of its session, also of one that is only read."""
        return self.session if self._session is None else self._session.stem

    @property
    def trouble(self) -> str | None:
        """The reason why nothing is saved any more, one sentence; None while all is well."""
        return None if self.journal is None else self.journal.trouble

    def messages(self, asking: Exchange | None = None, *, instead: bool = False) -> list[tokenizer.Message]:
        """Return the messages for the chat template, with one more question `asking`, or `instead` of the last.

        Left out are thoughts, and questions that got no answer, unless it is the last one. Raises
        SessionError where the copy of a picture or a sound is gone.
        """
        said = [*self.exchanges[: -1 if instead else None], *([] if asking is None else [asking])]
        messages: list[tokenizer.Message] = [{"role": "system", "content": self.system}] if self.system else []
        for exchange in said:
            if exchange.answered or exchange.calls or exchange is said[-1]:
                messages.append({"role": "user", "content": self._content(exchange)})
            if exchange.calls:
                messages += with_calls(exchange.messages[1:])
            elif exchange.reply is not None and exchange.answered:
                messages.append({"role": "assistant", "content": exchange.reply.text})
        return messages

    def set_system(self, text: str) -> None:
        """Replace the system prompt; empty for none."""
        self._do({"type": "system", "text": text})

    def use_model(self, name: str) -> None:
        """Let another model answer from here on."""
        self._do({"type": "model", "name": name})

    def rename(self, name: str) -> None:
        """Give the session a name (`Sessions.check_name` says first whether it will do)."""
        self._do({"type": "name", "name": name})

    def ask(self, question: str, attached: str = "", mentioned: str = "", media: Sequence[MediaPart] = ()) -> None:
        """Put a question. The session's file is created here, with the first one."""
        self.add(Message("user", user_parts(question, attached, mentioned, [self._kept(one) for one in media])))

    def add(self, message: Message) -> None:
        """Append a whole message: a question with media, tool results, an answer in place of what came of it."""
        if message.role != "assistant":
            self._break_off()
        self._do({"type": "message", **message.to_dict()})

    def part(self, text: str = "", thinking: str = "") -> None:
        """Add a piece to the answer to the last message, or to the continuation of the last answer."""
        assert self._history.asked
        self._pending = self._pending[0] + text, self._pending[1] + thinking
        now = self._clock()
        if sum(map(len, self._pending)) >= PART_CHARACTERS or now - self._written_at >= PART_SECONDS:
            self._do(self._piece)
            self._written_at = now

    def finish(
        self,
        reason: FinishReason,
        stats: Mapping[str, Any] | None = None,
        sampling: Mapping[str, Any] | None = None,
        calls: Sequence[ToolCall] = (),
    ) -> None:
        """End the answer whose parts came, and its `calls`, if it has any: their results are the next message.

        `stats` may name the model that a router chose. `sampling`: the settings it was made with, None where the
        checkpoint's.
        """
        assert self._history.asked
        coming, model = self.history.coming or Message("assistant"), (stats or {}).get("answered_by") or self.model
        chosen = {name: value for name, value in (sampling or {}).items() if value is not None}
        parts = (*coming.parts, *calls)
        end = replace(coming, parts=parts, finish_reason=reason, stats=stats, model=model, sampling=chosen or None)
        self._do(self._history.ending(end))

    def retract_reply(self) -> str | None:
        """Take the last reply back and return its question, for another answer. None if nothing was asked."""
        self._break_off()
        if not self._history.asked:
            return None
        if len(self._history.turns[-1]) > 1:
            self._do({"type": "retract"})
        return self.exchanges[-1].question

    def replace_question(self, question: str, mentioned: str = "", media: Sequence[MediaPart] | None = None) -> None:
        """Put other words for the last question, whose reply goes; what they mention replaces what the old ones did.

        `media` None: its pictures and sounds stay.
        """
        self._break_off()
        assert self._history.asked
        if media is not None and tuple(media) != (last := self.exchanges[-1]).media:
            parts = user_parts(question, last.attached, mentioned, [self._kept(one) for one in media])
            self._do({"type": "edit", **Message("user", parts).to_dict()})
            return
        other = {} if mentioned == self.exchanges[-1].mentioned else {"mentioned": mentioned}
        self._do({"type": "edit", "text": question, **other})

    def put_back(self, exchange: Exchange) -> None:
        """Make the last exchange again what it was, after other words or another answer of which nothing came."""
        question, *answers = exchange.messages
        self.retract_reply()
        if self._history.turns[-1] != (question,):
            self._do({"type": "edit", **question.to_dict()})
        for one in answers:
            self.add(one)

    def undo(self, count: int = 1) -> tuple[Exchange, ...]:
        """Take back the last `count` exchanges, or as many as there are, and return them, oldest first."""
        self._break_off()
        if taken := self.exchanges[-count:] if count > 0 else ():
            self._do({"type": "undo", "count": len(taken)})
        return taken

    def drop_oldest(self, count: int) -> tuple[Exchange, ...]:
        """Leave the oldest `count` exchanges out of the prompt, because the context is full; the session keeps them."""
        self._break_off()
        if taken := self.exchanges[: max(0, count)]:
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

    def _content(self, exchange: Exchange) -> str | list[dict[str, Any]]:
        """Return a question as the template reads it: a text, or media and a text."""
        if not exchange.media:
            return exchange.content
        media = [{"type": one.type, one.type: self._source(one)} for one in exchange.media]
        return [*media, {"type": "text", "text": exchange.content}]

    def _kept(self, part: MediaPart) -> MediaPart:
        """Keep the file of a part, for later turns, and where there is a journal beside it, for later windows."""
        if part.file is not None:
            self._files[part.digest] = part.file
            if self.journal is not None:
                return replace(part, path=self.journal.keep(part.file))
        return part

    def _source(self, part: MediaPart) -> MediaFile:
        file = part.file or self._files.get(part.digest)
        session = self._session if self.journal is None else self.journal.path
        if file is None and session is not None:
            file = kept(session, part)
        if file is None:
            raise SessionError(f"{part.name} is no longer with this conversation: /undo takes its question back.")
        self._files[part.digest] = file
        return file

    @property
    def _piece(self) -> Event:
        return {"type": "part", "text": self._pending[0], "thinking": self._pending[1]}

    def _do(self, event: Event) -> None:
        self._history, self._pending, self._written_at = self._history.after(event), ("", ""), -math.inf
        if self.journal is not None:
            self.journal.write(event)

    def _break_off(self) -> None:
        """End an answer on its way that got no `finish`."""
        if (event := self.history.broken_off()) is not None:
            self._do(event)
