"""A conversation in the terminal while it lasts: the next line, the model, the last answer, remarks to the person."""

import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from mlxmtp.app.open import Checkpoint, Opener, OpenModel
from mlxmtp.app.prompt_cache import SessionCache
from mlxmtp.app.tools.chosen import Tools, no_tools
from mlxmtp.app.turn import Outcome
from mlxmtp.app.worker import Worker
from mlxmtp.chat.conversation import Conversation
from mlxmtp.chat.history import Exchange
from mlxmtp.chat.material import Material
from mlxmtp.chat.message import ToolCall, ToolResult
from mlxmtp.cli.calls import call_in_full
from mlxmtp.cli.repl.slash import Reader
from mlxmtp.cli.terminal.keyboard import Keyboard
from mlxmtp.cli.terminal.markdown import warm_up
from mlxmtp.cli.terminal.output import Output, explain
from mlxmtp.cli.terminal.rows import joined, listed, wrapped
from mlxmtp.cli.terminal.signals import interrupts
from mlxmtp.engine.stats import Stats
from mlxmtp.errors import CacheRefused, MlxmtpError, sentence
from mlxmtp.machine.memory import Largest
from mlxmtp.settings import Loaded, Settings
from mlxmtp.units import text_width

_ANSWER = 4096  # tokens of a conversation that must fit the memory for it to begin


class Leave(Exception):
    """The conversation is over."""


class Interrupts:
    """Counts Ctrl+C and stops the answer; raises nothing, so that writing down what was said is never cut short."""

    def __init__(self, worker: Worker) -> None:
        self.count = 0
        self._worker = worker

    def __call__(self) -> None:
        self.count += 1
        self._worker.stop()
        self._worker.wake()


def wait_for_model(
    worker: Worker, keys: Keyboard, out: Output, name: str, clock: Callable[[], float] = time.monotonic
) -> bool:
    """Return whether the model is there: not after Ctrl+C, when it goes on loading, nor if it cannot be read."""
    began = clock()
    interrupted = Interrupts(worker)
    with interrupts(interrupted), keys:  # in this order: Ctrl+C must not leave a terminal without echo
        while worker.model is None and worker.error is None and not interrupted.count:
            seconds = clock() - began
            out.progress(f"loading {name}" + (f", {seconds:.0f} s" if seconds >= 1 else ""))
            if worker.wait(*keys.descriptors, seconds=1.0):
                keys.pressed()
            worker.events()
        out.clear_progress()
    return worker.model is not None


@dataclass(slots=True)
class NextLine:
    """The next message before it is sent; with `edits` it replaces the last question."""

    text: str = ""
    edits: bool = False
    files: list[Material] = field(default_factory=list)

    def offer(self, text: str, *, edits: bool) -> None:
        """Put a message into the line, to be sent as it is or changed."""
        self.text, self.edits = text, edits

    def take_text(self) -> str:
        """Return what stands in the line, once."""
        text, self.text = self.text, ""
        return text

    def end_edit(self) -> bool:
        """Leave the last question as it is; returns whether it was about to be replaced."""
        edits, self.edits = self.edits, False
        return edits


@dataclass(slots=True)
class LastAnswer:
    """The figures, the thought and the calls of the last answer, and warnings that need not be repeated."""

    stats: tuple[Stats, int] | None = None  # with the context it was given in
    thought: str = ""
    calls: list[tuple[ToolCall, ToolResult]] = field(default_factory=list)
    warned_full: bool = False
    warned_unsaved: bool = False

    @property
    def unfolded(self) -> str:
        """The thought, and calls with their results, in full."""
        return "\n\n".join(filter(None, [self.thought.strip("\n"), *(call_in_full(*one) for one in self.calls)]))

    def remember(self, outcome: Outcome, context: int) -> None:
        self.thought = outcome.thinking
        if outcome.stats is not None:
            self.stats = outcome.stats, context


@dataclass(slots=True)
class ChosenModel:
    """The model that answers: chosen here, read by the worker; with a `cache` its KV cache outlives the process.

    A server's model has none that could be kept.
    """

    opener: Opener
    worker: Worker
    cache: SessionCache | None = None
    target: Checkpoint | None = None
    drafter: Checkpoint | None = None
    fits_memory: int = sys.maxsize  # tokens of a conversation beside the model

    @property
    def opened(self) -> OpenModel:
        """The model in memory, once `Chat.ready` has said so."""
        assert self.worker.model is not None
        return self.worker.model

    @property
    def context(self) -> int:
        """Tokens of a conversation that the model and the memory hold."""
        return min(self.opened.context, self.fits_memory)

    @property
    def kept(self) -> SessionCache | None:
        """The cache, if the model is one of this machine."""
        return self.cache if self.opener.here else None

    def require_memory(self, media: Largest, settings: Settings) -> None:
        """Raise TooLarge if the memory does not hold the model with images and audio of this size."""
        assert self.target is not None
        self.opener.require_memory(self.target, self.drafter, _ANSWER, settings, turns=True, media=media)

    def load(self, target: Checkpoint, settings: Settings, *, draws: bool) -> None:
        """Begin to read a model, after all that can be refused. Raises ModelNotFound, TooLarge, LoadError."""
        drafter = self.opener.drafter(target, settings)
        self.opener.require_memory(target, drafter, _ANSWER, settings, turns=True)
        self.target, self.drafter = target, drafter
        self.fits_memory = self.opener.longest_conversation(target, drafter, settings, _ANSWER)
        if self.cache is not None:
            self.cache.forget()

        def read() -> OpenModel:
            opened = self.opener.open(target, drafter, settings)
            opened.prepare()
            if draws:  # what drawing needs is imported here, while nobody waits for it
                warm_up()
            return opened

        self.worker.load(read)

    def tokens_of(self, text: str) -> int:
        """Return the tokens of a text; the model must be there."""
        return len(self.opened.model.tokenizer.encode(text)) if text else 0


@dataclass(slots=True)
class Chat:
    """A conversation in the terminal: its parts, and remarks to the person."""

    loaded: Loaded
    out: Output
    conversation: Conversation
    model: ChosenModel
    keys: Keyboard
    reader: Reader
    tools: Tools = field(default_factory=no_tools)
    clock: Callable[[], float] = time.monotonic
    line: NextLine = field(default_factory=NextLine)
    last: LastAnswer = field(default_factory=LastAnswer)
    undone: list[tuple[Exchange, ...]] = field(default_factory=list)  # since the last question

    @property
    def settings(self) -> Settings:
        return self.loaded.settings

    def change(self, **settings: object) -> None:
        """Set settings from now on, keyed like `Settings`."""
        self.loaded = replace(self.loaded, settings=replace(self.settings, **settings))  # type: ignore[arg-type]

    def load(self, target: Checkpoint) -> None:
        """Begin to read the model that goes on with the conversation. Raises as `ChosenModel.load`."""
        self.model.load(target, self.settings, draws=not self.out.look.dumb)
        if self.model.cache is not None and self.model.kept is None:
            self.out.note(f"--keep-cache keeps nothing while {target.name} answers: it is no model on this machine.")
        if self.tools:  # what holds calls to their form takes a second: while the first question is typed
            self.model.worker.prepare(lambda opened: opened.model.prepare_constraints())
        if self.conversation.model != target.name:
            self.conversation.use_model(target.name)

    def ready(self) -> bool:
        """Wait until the model is there; false after Ctrl+C. Raises MlxmtpError if it cannot be read."""
        worker, target = self.model.worker, self.model.target
        if worker.model is None:
            name = "the model" if target is None else target.name
            if self.out.look.dumb:
                self.say(f"Loading {name}.")
            if not wait_for_model(worker, self.keys, self.out, name, self.clock):
                if worker.error is not None:
                    raise MlxmtpError(sentence(worker.error)) from worker.error
                self.say(f"{name} is still being loaded.")
                return False
        if self.model.kept is not None:
            self._say_if(self.model.kept.load(self.conversation))
        return True

    def renew_tools(self) -> None:
        """Take the servers' tools as they are now, waiting for those that start; Ctrl+C raises KeyboardInterrupt."""
        if self.tools.servers is not None:
            self.out.progress("asking the tool servers")
        try:
            remarks = self.tools.renew()
        finally:
            self.out.clear_progress()
        for remark in remarks:
            self.out.note(remark)
        if remarks and self.settings.debug:
            self.say("\n".join(self.tools.written))

    def begin_anew(self, conversation: Conversation) -> None:
        """Go over to another conversation, or to the same one that was cleared; nothing waits for the next message."""
        self.conversation = conversation
        self.tools.approvals.forget()
        self.line.files.clear()
        self.undone.clear()
        self.last = LastAnswer()

    def greet(self) -> None:
        """Say who answers."""
        target, drafter, opener = self.model.target, self.model.drafter, self.model.opener
        assert target is not None
        if opener.here:
            self.say(target.name if drafter is None else f"{target.name} with its drafter")
        else:
            self.say(opener.about(target, drafter))

    def say_goodbye(self) -> None:
        """Say how to come back to what was said, or that it is lost."""
        conversation = self.conversation
        if conversation.journal is not None:
            conversation.journal.flush()
        if conversation.trouble is not None:
            self.out.note(conversation.trouble)
        elif conversation.session is not None and conversation.exchanges:
            name = conversation.history.name or ""
            named = conversation.session if not name or name.startswith("-") else shlex.quote(name)
            self.say(f"To come back: mlxmtp chat -r {named}")

    def may_leave(self) -> bool:
        """Return whether the conversation is saved, or a person gives up what is not."""
        if self.conversation.journal is not None:
            self.conversation.journal.flush()
        if self.conversation.trouble is None:
            return True
        self.out.note(self.conversation.trouble)
        leaves = self.permits("Give up what is not saved?")
        if not leaves:
            self.say("The conversation stays.")
        return leaves

    def leave(self) -> None:
        """Store the KV cache of a conversation that is left, if that is wanted."""
        if self.model.kept is None:
            return
        try:
            remark = self.model.kept.save(self.conversation, lambda: self.out.progress("keeping keys and values"))
            self.out.clear_progress()
            self._say_if(remark)
        except CacheRefused as error:
            self.complain(error)

    def agree(self, question: str) -> bool:
        """Return whether the answer is yes. What was typed before the question was there is no answer to it."""
        self.keys.take_in()
        return self.reader.agree(question)

    def permits(self, question: str) -> bool:
        """Return whether the answer is yes; Enter alone is none."""
        return (self.answer_to(f"{question} [y/N]") or "").strip().lower() in ("y", "yes")

    def answer_to(self, question: str) -> str | None:
        """Return what a person types after a question; None for Ctrl+C. What was typed before is no answer."""
        self.out.clear_progress()
        self.keys.take_in()
        *rows, last = question.split("\n")
        if rows:
            self.say("\n".join(rows))
        return self.reader.answer(last)

    def complain(self, error: Exception) -> None:
        explain(error, self.out, debug=bool(self.settings.debug))

    def say(self, text: str) -> None:
        """Write a remark, dim, broken between words."""
        self.out.dim(text.split("\n") if self.out.look.dumb else wrapped(text, self.out.size()[0]))

    def say_rows(self, rows: Sequence[tuple[str, str]]) -> None:
        """Write names and what belongs to each, dim, in two columns."""
        self.out.dim(listed(rows, sys.maxsize if self.out.look.dumb else self.out.size()[0]))

    def say_figures(self, parts: list[str]) -> None:
        """Write `a · b · c`, dim: memory and prompt are left to /stats where one row has no room for them."""
        columns = self.out.size()[0]
        memory = next((at for at, part in enumerate(parts, 1) if part.startswith("context ")), len(parts))
        for extra in (*parts[memory:], *(part for part in parts if part.startswith("prompt "))):
            if text_width(" · ".join(parts)) > columns:
                parts = [part for part in parts if part != extra]
        self.out.dim(joined(parts, " · ", columns))

    def _say_if(self, remark: str | None) -> None:
        if remark is not None:
            self.say(remark)
