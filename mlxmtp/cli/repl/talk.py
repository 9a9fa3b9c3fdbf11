"""The conversation as it happens: a line comes in, a command or a turn goes out.

Knows no terminal library: lines come from a `Reader`, keys from `Keys`, everything is written to `Output`, and the
model lives on its thread. Turns are in `turns.py`, what commands do in `actions.py` and `tuning.py`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mlxmtp.cli.repl.slash import Call, Message, Unknown, parse
from mlxmtp.cli.repl.turns import Leave, wait_for_model
from mlxmtp.cli.terminal.rows import joined, listed, wrapped
from mlxmtp.errors import MlxmtpError, sentence

if TYPE_CHECKING:
    from mlxmtp.app.learned import Memory
    from mlxmtp.app.worker import ModelThread
    from mlxmtp.chat.conversation import Conversation
    from mlxmtp.chat.material import Material
    from mlxmtp.cli.repl.line_editor import Reader
    from mlxmtp.cli.terminal.keyboard import Keys
    from mlxmtp.cli.terminal.output import Output
    from mlxmtp.engine.model import Model
    from mlxmtp.engine.stats import Stats
    from mlxmtp.hub.store import Found
    from mlxmtp.settings import Loaded

_AS_IT_WAS = "The question stays as it was."


class Talk:
    """Everything a conversation is made of while it lasts."""

    def __init__(
        self,
        loaded: Loaded,
        out: Output,
        conversation: Conversation,
        thread: ModelThread,
        keys: Keys,
        reader: Reader,
        *,
        force: bool = False,
        debug: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.loaded, self.out, self.conversation = loaded, out, conversation
        self.thread, self.keys, self.reader = thread, keys, reader
        self.force, self.debug = force, debug
        self.clock = clock
        self.target: Found | None = None
        self.drafter: Found | None = None
        self.memory: Memory | None = None  # what is known about drafting, once the model is there
        self.staged: list[Material] = []
        self.given = ""  # what stands in the next line already
        self.edits = False  # the next message replaces the last question
        self.stats: tuple[Stats, int] | None = None  # of the last answer, and the context it was given in
        self.thought = ""
        self.warned_full = False
        self.warned_unsaved = False
        self.on_ready: Callable[[Talk], None] | None = None  # once for each model and each conversation
        self.on_leave: Callable[[Talk], None] | None = None  # before another conversation, and at the end
        self.met: Conversation | None = None  # what the model has been with since it is there

    def run(self, act: Callable[[Talk, Call], None], send: Callable[[Talk, str], None]) -> None:
        """Lines until Ctrl+D or /exit; `act` carries out commands, `send` messages."""
        while True:
            given, self.given = self.given, ""
            try:
                # What comes back into the line was a message; what was typed meanwhile, not pasted, may be a command.
                typed = self.keys.typed_ahead()
                whole = "\n".join(part for part in (given, typed.text) if part)
                line = self.reader.read(whole, literal=bool(given) or typed.pasted, edits=self.edits)
            except EOFError:
                return
            except KeyboardInterrupt:
                self.say(_AS_IT_WAS if self.edits else "Ctrl+D leaves, /help lists the commands.")
                self.edits = False
                continue
            try:
                self._take(parse(line.text, pasted=line.pasted), act, send)
            except Leave:
                return
            except Exception as error:  # noqa: BLE001  (one turn has failed, and the conversation is the person's)
                self.complain(error)
            except KeyboardInterrupt:  # outside of an answer: files are read, tokens counted, a list is made
                self.say("\nStopped.")

    def _take(
        self,
        what: Call | Unknown | Message,
        act: Callable[[Talk, Call], None],
        send: Callable[[Talk, str], None],
    ) -> None:
        if isinstance(what, Call):
            self.edits = False
            act(self, what)
        elif isinstance(what, Unknown):
            self.edits = False
            near = f"Did you mean {what.nearest}?" if what.nearest else "/help lists them."
            self.say(f"There is no command {what.word}. {near} A space before it sends it as text.")
        elif what.text:
            send(self, what.text)
        elif self.edits:
            self.edits = False
            self.say(_AS_IT_WAS)

    def ready(self) -> bool:
        """Wait until the model is there; false after Ctrl+C. Raises MlxmtpError if it cannot be read."""
        if self.thread.model is not None:
            self._meet()
            return True
        name = "the model" if self.target is None else self.target.name
        if self.out.look.dumb:
            self.say(f"Loading {name}.")
        if wait_for_model(self.thread, self.keys, self.out, name, self.clock):
            self._meet()
            return True
        if self.thread.trouble is not None:
            raise MlxmtpError(sentence(self.thread.trouble)) from self.thread.trouble
        self.say(f"{name} is still being loaded.")
        return False

    def agree(self, question: str) -> bool:
        """Whether the answer is yes. What was typed before the question was there is no answer, but the next line."""
        self.keys.take_in()
        return self.reader.agree(question)

    def _meet(self) -> None:
        """The model and the conversation belong together from here on."""
        if self.met is not self.conversation:
            self.met = self.conversation
            if self.on_ready is not None:
                self.on_ready(self)

    def leave(self) -> None:
        """What is due before the conversation changes or ends."""
        if self.on_leave is not None:
            self.on_leave(self)

    @property
    def model(self) -> Model:
        """The model, once `ready` has said so."""
        assert self.thread.model is not None
        return self.thread.model

    @property
    def context(self) -> int:
        """Tokens the model's context holds."""
        return self.model.config.max_positions

    def change(self, **settings: object) -> None:
        """Other settings from now on, keyed like `Settings`."""
        self.loaded = replace(self.loaded, settings=replace(self.loaded.settings, **settings))  # type: ignore[arg-type]

    def complain(self, error: Exception) -> None:
        """Why something did not work; with --debug also where."""
        if self.debug:
            import traceback

            self.out.line("".join(traceback.format_exception(error)).rstrip())
        self.out.error(sentence(error))

    def say(self, text: str) -> None:
        """A remark, dim, broken between words."""
        self.out.dim(text.split("\n") if self.out.look.dumb else wrapped(text, self.out.size()[0]))

    def say_rows(self, rows: Sequence[tuple[str, str]]) -> None:
        """Names and what belongs to each, dim, in two columns."""
        self.out.dim(listed(rows, sys.maxsize if self.out.look.dumb else self.out.size()[0]))

    def say_parts(self, parts: list[str]) -> None:
        """`a · b · c`, dim, broken between parts where the window is narrow."""
        self.out.dim(joined(parts, " · ", self.out.size()[0]))
