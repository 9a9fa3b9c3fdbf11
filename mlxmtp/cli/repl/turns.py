"""A question, its answer, and what becomes of both: kept, taken back, asked again, gone on with.

An answer of which nothing was said leaves no trace: what was there before is there again, and the question stands in
the next line.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from mlxmtp.app.open import answer_params
from mlxmtp.app.worker import Failed, Reading
from mlxmtp.chat.history import Exchange
from mlxmtp.chat.material import gather, mentions
from mlxmtp.chat.message import join
from mlxmtp.cli.repl.context import make_fit, tokens_of
from mlxmtp.cli.terminal.answer_view import AnswerView
from mlxmtp.cli.terminal.keyboard import ON_ITS_WAY, interrupts
from mlxmtp.cli.terminal.presenters import open_fence, turn_parts
from mlxmtp.cli.terminal.progress import PrefillProgress
from mlxmtp.engine.events import End, FinishReason, Text, Thinking
from mlxmtp.errors import MlxmtpError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlxmtp.app.worker import Happening, ModelThread
    from mlxmtp.chat.material import Material
    from mlxmtp.cli.repl.talk import Talk
    from mlxmtp.cli.terminal.answer_view import AnswerView
    from mlxmtp.cli.terminal.keyboard import Keys
    from mlxmtp.cli.terminal.output import Output
    from mlxmtp.engine.answer import Answer, OnPrefill
    from mlxmtp.engine.model import Model
    from mlxmtp.engine.stats import Stats


_PATIENCE = 3  # times Ctrl+C until the program itself is left, should the model not react


class Leave(Exception):
    """The conversation is over."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a request. `error` instead of `stats` if it failed."""

    text: str
    thinking: str
    reason: FinishReason
    stats: Stats | None = None
    error: Exception | None = None


class Interrupts:
    """Counts Ctrl+C; too many of them raise Leave."""

    def __init__(self, thread: ModelThread) -> None:
        self.count = 0
        self._thread = thread

    def __call__(self) -> None:
        self.count += 1
        self._thread.stop()
        self._thread.wake()
        if self.count >= _PATIENCE:
            raise Leave


def wait_for_model(
    thread: ModelThread, keys: Keys, out: Output, name: str, clock: Callable[[], float] = time.monotonic
) -> bool:
    """Whether the model is there in the end: not after Ctrl+C, when it goes on loading, nor if it cannot be read."""
    began = clock()
    interrupted = Interrupts(thread)
    with interrupts(interrupted), keys:  # in this order: Ctrl+C must not leave a terminal without echo
        while thread.model is None and thread.trouble is None and not interrupted.count:
            seconds = clock() - began
            out.progress(f"loading {name}" + (f", {seconds:.0f} s" if seconds >= 1 else ""))
            if thread.wait(*keys.descriptors, seconds=1.0):
                keys.pressed()
            thread.happened()
        out.clear_progress()
    return thread.model is not None


class Answering:
    """One answer: shows it, hands every piece on, ends when it ends or soon after Ctrl+C."""

    def __init__(
        self, thread: ModelThread, keys: Keys, out: Output, view: AnswerView, on_piece: Callable[[str, str], None]
    ) -> None:
        """`on_piece(text, thinking)` receives every piece as it comes."""
        self._thread, self._keys, self._out, self._view = thread, keys, out, view
        self._reading = PrefillProgress(out)
        self._on_piece = on_piece
        self._interrupted = Interrupts(thread)
        self._text: list[str] = []
        self._thinking: list[str] = []

    def run(self, begin: Callable[[Model, OnPrefill], Answer]) -> Outcome:
        """Ask and wait for the end. Raises Leave if Ctrl+C after Ctrl+C finds no ear."""
        self._interrupted = interrupted = Interrupts(self._thread)
        with interrupts(interrupted), self._keys:
            self._thread.happened()  # what an earlier wait left over
            self._thread.answer(begin)
            if interrupted.count:  # it came just before there was something to stop
                self._thread.stop()
            try:
                return self._until_the_end()
            except Leave:
                self._end("cancelled")  # the shell's prompt begins a line of its own
                raise

    def _until_the_end(self) -> Outcome:
        while True:
            self._listen()
            for what in self._thread.happened():
                outcome = self._take(what)
                if outcome is not None:
                    return outcome
            self._view.tick()

    def _listen(self) -> None:
        if self._thread.wait(*self._keys.descriptors, seconds=self._view.patience):
            for _ in self._keys.pressed():
                self._view.toggle()

    def _take(self, what: Happening) -> Outcome | None:
        if isinstance(what, Text):
            self._text.append(what.text)
            self._on_piece(what.text, "")
            self._out.clear_progress()
            self._view.text(what.text)
        elif isinstance(what, Thinking):
            self._thinking.append(what.text)
            if what.text:
                self._on_piece("", what.text)
            self._out.clear_progress()
            self._view.thinking(what.text)
        elif isinstance(what, Reading):
            self._reading.count(what.done, what.total)
        elif isinstance(what, End):
            return self._end(what.finish_reason, stats=what.stats)
        elif isinstance(what, Failed):
            return self._end("cancelled", error=None if self._was_ctrl_c(what.error) else what.error)
        return None

    def _was_ctrl_c(self, error: Exception) -> bool:
        """Whether MLX failed because its compiler heard Ctrl+C, maybe sooner than this process did."""
        if not isinstance(error, RuntimeError):
            return False
        if not self._interrupted.count:
            time.sleep(ON_ITS_WAY)  # not the thread's own wait, which the bell of what was just taken may end
        return self._interrupted.count > 0

    def _end(self, reason: FinishReason, *, stats: Stats | None = None, error: Exception | None = None) -> Outcome:
        self._out.clear_progress()
        self._view.end()
        return Outcome("".join(self._text), "".join(self._thinking), reason, stats, error)


_WITHOUT_ANSWER = {
    "cancelled": "Stopped before the answer began.",
    "length": "All tokens went into the thought: /set think-tokens limits it, /set max-tokens gives more.",
    "stop": "The model ended without an answer.",
    "tool": "The model waits for a tool, which there is none of here.",
}


def send(talk: Talk, text: str) -> None:
    """A message. If it cannot be sent it stands in the next line. Raises MlxmtpError."""
    edits, talk.edits = talk.edits, False
    try:
        if edits:
            _edit(talk, text)
        else:
            _ask(talk, text)
    except (MlxmtpError, OSError, KeyboardInterrupt):
        talk.given, talk.edits = text, edits
        raise


def _edit(talk: Talk, text: str) -> None:
    """Other words for the last question, and an answer to them. The files that they name take the place of those that
    the old ones named; what was attached stays."""
    old = talk.conversation.exchanges[-1]
    mentioned = [one for one in _mentioned(talk, text) if one.text not in old.attached]
    if not talk.ready():
        talk.given, talk.edits = text, True
        return
    _tell_tokens(talk, mentioned)
    material = join([one.text for one in mentioned])
    left_out = make_fit(talk, replace(old, question=text, reply=None, mentioned=material), instead=True)
    if left_out is None:
        talk.given, talk.edits = text, True
        return
    with interrupts(_later):
        talk.conversation.drop_oldest(left_out)
        talk.conversation.replace_question(text, material)
        if not _answered(talk, _answer(talk)):
            talk.conversation.put_back(old)
            talk.conversation.take_back_oldest(left_out)
            talk.given, talk.edits = text, True


def again(talk: Talk) -> None:
    """Another answer to the last question."""
    old = talk.conversation.exchanges[-1]
    left_out = make_fit(talk, replace(old, reply=None), instead=True) if talk.ready() else None
    if left_out is None:
        return
    with interrupts(_later):
        talk.conversation.drop_oldest(left_out)
        talk.conversation.retract_reply()
        if not _answered(talk, _answer(talk)):
            talk.conversation.put_back(old)
            talk.conversation.take_back_oldest(left_out)


def go_on(talk: Talk) -> None:
    """Continue the last answer."""
    if not talk.ready():
        return
    last = talk.conversation.exchanges[-1]
    reply = last.reply
    assert reply is not None
    left_out = make_fit(talk, last, instead=True)
    if left_out is None:
        return
    with interrupts(_later):
        talk.conversation.drop_oldest(left_out)
        outcome = _answer(talk, continues=True, lead=_lead(reply.text))
        if outcome.text:
            _finish(talk, outcome)
        else:
            talk.conversation.take_back_oldest(left_out)
        _remarks(talk, outcome)


def _lead(begun: str) -> str:
    """What a continuation is shown behind: the line that opens the block of code in which the answer was cut."""
    fence = open_fence(begun)
    return f"{fence}\n" if fence and not begun.endswith(fence) else fence


def _ask(talk: Talk, text: str) -> None:
    mentioned = _mentioned(talk, text)
    material = join([one.text for one in talk.staged]), join([one.text for one in mentioned])
    if not talk.ready():
        talk.given = text
        return
    _tell_tokens(talk, mentioned)
    left_out = make_fit(talk, Exchange(text, None, *material))
    if left_out is None:
        talk.given = text
        return
    with interrupts(_later):
        talk.conversation.drop_oldest(left_out)
        talk.conversation.ask(text, *material)
        if _answered(talk, _answer(talk)):
            talk.staged.clear()
        else:
            talk.conversation.undo()
            talk.conversation.take_back_oldest(left_out)
            talk.given = text


def _mentioned(talk: Talk, text: str) -> list[Material]:
    """What stands behind every `@path` in a message. Raises as `gather`."""
    found = [gather(name) for name in mentions(text)]
    for note in (note for one in found for note in one.notes):
        talk.out.note(note)
    return found


def _tell_tokens(talk: Talk, materials: Sequence[Material]) -> None:
    for one in materials:
        talk.say(f"{one.name}, {tokens_of(talk, one.text):,} tokens")


def _later() -> None:
    """Ctrl+C just before or after an answer, while what was said is being written down, comes too early or too late."""


def _answer(talk: Talk, *, continues: bool = False, lead: str = "") -> Outcome:
    """One answer to the conversation as it is, shown while it comes, behind `lead`."""
    messages, question = talk.conversation.messages(), talk.conversation.exchanges[-1].question
    settings = talk.loaded.settings
    params = answer_params(settings)

    def begin(model: Model, on_prefill: OnPrefill) -> Answer:
        return model.stream(messages, params, on_prefill=on_prefill, continues=continues, question=question)

    talk.out.write("\n")
    shows = settings.show_thinking is not False
    view = AnswerView(talk.out, show_thoughts=shows, plain=bool(settings.plain), clock=talk.clock)
    view.text(lead)
    outcome = Answering(talk.thread, talk.keys, talk.out, view, talk.conversation.part).run(begin)
    if view.shows_thoughts != shows:
        talk.change(show_thinking=view.shows_thoughts)
    talk.thought = outcome.thinking
    if talk.memory is not None:
        talk.memory.keep()  # now: most conversations end with their window
    if outcome.stats is not None:
        talk.stats = outcome.stats, talk.context
    return outcome


def _answered(talk: Talk, outcome: Outcome) -> bool:
    """Keep an answer and say what there is to say about it; false if nothing was said."""
    if outcome.text.strip():
        _finish(talk, outcome)
    _remarks(talk, outcome)
    return bool(outcome.text.strip())


def _remarks(talk: Talk, outcome: Outcome) -> None:
    stats = outcome.stats
    said = bool(outcome.text.strip())
    if said and stats is not None and talk.loaded.settings.stats is not False:
        parts = turn_parts(stats, talk.context)
        talk.say_parts(["stopped", *parts] if outcome.reason == "cancelled" else parts)
    if outcome.error is not None:
        talk.complain(outcome.error)
    elif not said:
        talk.say(_WITHOUT_ANSWER[outcome.reason])
    elif outcome.reason == "length" and stats is not None:
        talk.say(f"The answer was cut after {stats.generation_tokens:,} tokens{_next_step(talk, stats)}")
    talk.out.write("\n")
    if talk.conversation.trouble is not None and not talk.warned_unsaved:
        talk.warned_unsaved = True
        talk.out.note(talk.conversation.trouble)


def _next_step(talk: Talk, stats: Stats) -> str:
    """Why an answer was cut, and what can be done about it."""
    if stats.prompt_tokens + stats.generation_tokens < talk.context:
        return ". /continue goes on."
    if len(talk.conversation.exchanges) > 1:
        return ": the context is full. /continue offers to leave out the oldest, /clear starts anew."
    return ": the context is full. /clear starts anew."


def _finish(talk: Talk, outcome: Outcome) -> None:
    stats = None if outcome.stats is None else outcome.stats.to_dict()
    talk.conversation.finish(outcome.reason, stats, asdict(answer_params(talk.loaded.settings)))
