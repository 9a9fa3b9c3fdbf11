"""Turns in the terminal. An answer of which nothing was said leaves no trace: the question stands in the next line."""

import time
from collections.abc import Sequence
from dataclasses import replace

from mlxmtp.app.open import answer_params
from mlxmtp.app.tools.calls import CallRunner
from mlxmtp.app.turn import Outcome, Turn
from mlxmtp.app.worker import Failed, Prefill
from mlxmtp.chat.history import Exchange
from mlxmtp.chat.material import Material, gather, mentions, missed, names_in, names_of
from mlxmtp.chat.message import MediaPart, ToolCall, join, media_part
from mlxmtp.cli.calls import call_line, progress_line
from mlxmtp.cli.repl.chat import Chat, Interrupts, Leave
from mlxmtp.cli.terminal.fences import open_fence
from mlxmtp.cli.terminal.presenters import AnswerView, turn_parts, went_to
from mlxmtp.cli.terminal.progress import PrefillProgress
from mlxmtp.cli.terminal.signals import ON_ITS_WAY, interrupts
from mlxmtp.cli.terminal.thumbnails import draw_thumbnail
from mlxmtp.engine.events import Call, End, Text, Thinking
from mlxmtp.engine.media import largest, media_in
from mlxmtp.engine.params import Params
from mlxmtp.errors import ContextOverflow, LoadError

_PATIENCE = 3  # times Ctrl+C until the program itself is left, should the model not react
_SMALL = (480, 240)  # pixels of a thumbnail, at most
_SOON = 0.5  # seconds until a person hears that it does not
_WITHOUT_ANSWER = {
    "cancelled": "Stopped before the answer began.",
    "length": "All tokens went into the thought: /set think-tokens limits it, /set max-tokens gives more.",
    "stop": "The model ended without an answer.",
    "tool": "The model waits for a tool, which there is none of here.",
}


class Answering:
    """Shows one turn while it comes, until it ends or soon after Ctrl+C, of which `interrupted` hears."""

    def __init__(self, chat: Chat, view: AnswerView, interrupted: Interrupts) -> None:
        self._worker, self._keys, self._out = chat.model.worker, chat.keys, chat.out
        self.view, self._interrupted = view, interrupted
        self._chat = chat
        box, approvals = chat.tools.box, chat.tools.approvals

        def running(call: ToolCall, seconds: float, told: str) -> None:
            if seconds >= 1:
                self._out.progress(progress_line(call, seconds, told))

        self._runner = CallRunner(box, approvals, stopped=lambda: bool(interrupted.count), on_progress=running)
        self._progress, self._clock = PrefillProgress(chat.out), chat.clock
        self._stopping_since: float | None = None
        self._said_so = False  # and with that, shown for the last time
        self._heard = 0  # Ctrl+C until then

    def run(self, turn: Turn, params: Params) -> Outcome:
        """Return what came of a turn that has begun. Raises Leave if Ctrl+C after Ctrl+C finds no ear."""
        self._chat.last.calls = []
        while (outcome := self._stream(turn, params)) is None:
            answered = turn.carry_out(self._runner)
            self._out.clear_progress()
            for call, result in answered:
                self._chat.last.calls.append((call, result))
                self._chat.say(call_line(call, result))
            if self._interrupted.count or self._runner.spent:
                return turn.end("cancelled" if self._interrupted.count else "stop", returns=True)
            self._out.write("\n")
            self.view = self.view.another()
        return outcome

    def _stream(self, turn: Turn, params: Params) -> Outcome | None:
        """Return what came of one answer; None if tools are called in it."""
        with self._keys:
            self._worker.events()  # what an earlier wait left over
            self._worker.answer(lambda _, on_prefill: turn.stream(params, on_prefill))
            if self._interrupted.count:  # it came just before there was something to stop
                self._worker.stop()
            try:
                last = self._until_the_end(turn)
                self._close()
            except BaseException as error:
                turn.end("cancelled")
                if isinstance(error, Leave):
                    self._close()  # the shell's prompt begins a line of its own
                raise
        if isinstance(last, End):
            if turn.calls and last.finish_reason in ("stop", "tool"):
                turn.pause(last.stats)
                return None
            return turn.end(last.finish_reason, last.stats, returns=True)
        # MLX fails where its compiler heard Ctrl+C, maybe sooner than this process. Not the worker's own wait, which
        # the bell of an event just taken may end.
        if isinstance(last.error, RuntimeError) and not self._interrupted.count:
            time.sleep(ON_ITS_WAY)
        was_ctrl_c = isinstance(last.error, RuntimeError) and self._interrupted.count
        return turn.end("cancelled", error=None if was_ctrl_c else last.error, returns=True)

    def _until_the_end(self, turn: Turn) -> End | Failed:
        while True:
            patience = _SOON / 5 if self._interrupted.count else self.view.patience
            if self._worker.wait(*self._keys.descriptors, seconds=patience):
                for _ in self._keys.pressed():
                    self.view.toggle()
            if self._interrupted.count:
                self._stopping()
            for event in self._worker.events():
                if isinstance(event, End | Failed):
                    return event
                if isinstance(event, Prefill):
                    self._progress.count(event.done, event.total)
                elif isinstance(event, Call):
                    turn.take(event)
                elif isinstance(event, Text | Thinking):
                    turn.take(event)
                    if self._said_so:
                        continue
                    self._out.clear_progress()
                    show = self.view.text if isinstance(event, Text) else self.view.thinking
                    show(event.text)
            if not self._said_so:
                self.view.tick()

    def _stopping(self) -> None:
        """Say that the model does not stop at once, and that one more Ctrl+C leaves. Raises Leave."""
        now = self._clock()
        if self._stopping_since is None:
            self._stopping_since = now
        if self._interrupted.count >= _PATIENCE or (self._said_so and self._interrupted.count > self._heard):
            raise Leave
        if not self._said_so and now - self._stopping_since >= _SOON:
            self._close()
            self._said_so, self._heard = True, self._interrupted.count
            self._out.progress("stopping; Ctrl+C again leaves")

    def _close(self) -> None:
        self._out.clear_progress()
        if not self._said_so:
            self.view.end()


def send(chat: Chat, text: str) -> None:
    """Ask, or ask in other words. A message without an answer stands in the next line. Raises MlxmtpError."""
    edits, answered = chat.line.end_edit(), False
    try:
        mentioned = [gather(name) for name in mentions(text)]
        for note in (note for one in mentioned for note in one.notes):
            chat.out.note(note)
        for name in missed(text):
            chat.out.note(f"There is no file {name}, so @{name} is only text for the model.")
        if edits:  # files that the new words name replace those of the old ones; what was attached stays
            last = chat.conversation.exchanges[-1]
            mentioned = [one for one in mentioned if one.media or one.text not in last.attached]
            files = join([one.text for one in mentioned])
            named, new = names_in(last.question), _media(mentioned)
            known = {one.digest for one in new}
            stays = [one for one in last.media if one.digest not in known and not named & names_of(one.name)]
            media = (*stays, *new)
            asking = replace(last, question=text, reply=None, mentioned=files, media=media, messages=())
        else:
            attached = join([one.text for one in chat.line.files])
            media = _media([*chat.line.files, *mentioned])
            asking = Exchange(text, None, attached, join([one.text for one in mentioned]), media)
        answered = _answer(chat, Turn(chat.conversation, "edit" if edits else "ask", asking), mentioned)
        if answered and not edits:
            chat.line.files.clear()
    finally:
        if not answered:
            chat.line.offer(text, edits=edits)


def again(chat: Chat) -> None:
    """Answer the last question again."""
    last = chat.conversation.exchanges[-1]
    _answer(chat, Turn(chat.conversation, "regenerate", replace(last, reply=None, messages=())))


def go_on(chat: Chat) -> None:
    """Continue the last answer."""
    last = chat.conversation.exchanges[-1]
    assert last.reply is not None
    begun = last.reply.text
    fence = open_fence(begun)  # the block of code in which the answer was cut goes on as one
    lead = f"{fence}\n" if fence and not begun.endswith(fence) else fence
    _answer(chat, Turn(chat.conversation, "continue", last), lead=lead)


def _answer(chat: Chat, turn: Turn, mentioned: Sequence[Material] = (), lead: str = "") -> bool:
    """Carry out a turn, shown while it comes, behind `lead`; returns whether anything was said."""
    if not chat.ready():
        return False
    chat.renew_tools()
    for one in mentioned:
        chat.say(f"{one.name}, {tokens_of(chat, one)} tokens")
        show(chat, one)
    drop = _make_fit(chat, turn)
    if drop is None:
        return False
    settings = chat.settings
    interrupted = Interrupts(chat.model.worker)
    with interrupts(interrupted):
        chat.out.write("\n")
        shows = settings.show_thinking is not False
        plain = bool(settings.plain) or settings.in_form
        view = AnswerView(chat.out, show_thoughts=shows, plain=plain, clock=chat.clock)
        view.text(lead)
        params = answer_params(settings)
        if doing := turn.begin(chat.model.opened, params, drop, chat.tools.declarations):
            chat.out.progress(doing)
        chat.undone.clear()
        answering = Answering(chat, view, interrupted)
        outcome = answering.run(turn, params)
        if answering.view.shows_thoughts != shows:
            chat.change(show_thinking=answering.view.shows_thoughts)
        chat.last.remember(outcome, chat.model.context)
        _remarks(chat, outcome)
    return outcome.said


def tokens_of(chat: Chat, one: Material) -> str:
    """Return the tokens of a file, of a picture after its size. Raises as `Media.prepare` does."""
    count, about = chat.model.tokens_of(one.text), [f"{len(one.media)} pages as images"] if one.media[1:] else []
    for file in one.media:
        prepared = chat.model.opened.model.media.prepare(file, chat.settings.image_tokens)
        for note in prepared.notes:
            chat.out.note(note)
        count += prepared.count
        about = about or [prepared.about]
    return ", ".join([*about, f"{count:,}"])


def show(chat: Chat, one: Material) -> None:
    """Draw the first picture of a file, where the terminal draws any."""
    if chat.out.pictures and (seen := next((file for file in one.media if file.kind == "image"), None)):
        from mlxmtp.media.image import open_picture, small_png

        picture = open_picture(seen.data, seen.name)
        draw_thumbnail(chat.out, small_png(picture, *_SMALL), *picture.size)


def _media(files: Sequence[Material]) -> tuple[MediaPart, ...]:
    return tuple(media_part(file) for one in files for file in one.media)


def _make_fit(chat: Chat, turn: Turn) -> int | None:
    """Return how many of the oldest exchanges a person wants to leave out, None if the turn cannot be."""
    opened, settings = chat.model.opened, chat.settings
    tokenizer = opened.model.tokenizer
    try:
        messages = turn.prepared(opened.model.media, settings.image_tokens)
    except LoadError as error:  # they may have waited since before this model
        if not any(one.media for one in chat.line.files):
            raise
        raise LoadError(f"{error} /file clear drops the files that wait.") from error
    if media := media_in(messages):
        chat.model.require_memory(largest(media), settings)
    used = len(tokenizer.prompt_ids(messages, think=bool(settings.think), tools=chat.tools.declarations))
    fit = turn.fit(used, messages, tokenizer, chat.model.context, settings.max_tokens)
    if not fit.full:
        if fit.warns and not chat.last.warned_full:
            chat.say(f"The context is {fit.percent} % full: /context shows what fills it, /clear starts anew.")
        chat.last.warned_full = fit.warns
        return 0
    what = "answer" if turn.kind == "continue" else "question"
    if fit.droppable is None and not tokenizer.estimates:
        raise ContextOverflow(
            f"With this {what} the prompt has {fit.used:,} tokens; the context holds {fit.context:,}, of which "
            f"{fit.reserve:,} are kept for the answer. {_less(chat, turn)}"
        )
    oldest = "oldest exchange" if fit.droppable == 1 else f"{fit.droppable} oldest exchanges"
    full = "By estimate the context is full" if tokenizer.estimates else "The context is full"
    chat.say(f"{full}: {fit.used:,} of {fit.context:,} tokens with this {what}.")
    out = f"Leave the {oldest} out of what the model reads? The session keeps all."
    if fit.droppable is not None and chat.agree(out):
        return fit.droppable
    if tokenizer.estimates and chat.agree("Send all of it? The server says whether it is too long."):
        return 0
    chat.say("Nothing was sent: /clear starts anew, /undo takes back the last exchange.")
    return None


def _less(chat: Chat, turn: Turn) -> str:
    """Return what helps when nothing can be left out."""
    if turn.kind == "continue":
        return "/clear starts anew."
    system = chat.model.tokens_of(chat.conversation.system)
    if system > chat.model.tokens_of(turn.asking.content):
        return f"The system prompt takes {system:,} of them: /system TEXT sets a shorter one."
    return "Give less material" + (": /file clear drops the files that wait." if chat.line.files else ".")


def _remarks(chat: Chat, outcome: Outcome) -> None:
    stats = outcome.stats
    if outcome.said and stats is not None and chat.settings.stats is not False:
        parts = turn_parts(stats, chat.model.context)
        chat.say_figures(["stopped", *parts] if outcome.reason == "cancelled" else parts)
    if stats is not None and stats.route and stats.sent_to and chat.settings.stats is False:
        chat.say(f"The {went_to(stats)}.")
    if outcome.error is not None:
        chat.complain(outcome.error)
    elif not outcome.said:
        chat.say(_WITHOUT_ANSWER[outcome.reason])
    elif outcome.reason == "length" and stats is not None:
        next_step = ". /continue goes on."
        if outcome.fills(chat.model.context):
            more = "/continue offers to leave out the oldest, " if len(chat.conversation.exchanges) > 1 else ""
            next_step = f": the context is full. {more}/clear starts anew."
        chat.say(f"The answer was cut after {stats.generation_tokens:,} tokens{next_step}")
    chat.out.write("\n")
    trouble = chat.conversation.trouble
    if trouble is not None and not chat.last.warned_unsaved:
        chat.out.note(trouble)
    elif trouble is None and chat.last.warned_unsaved:
        chat.out.note("Everything is saved again.")
    chat.last.warned_unsaved = trouble is not None
