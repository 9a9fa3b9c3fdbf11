"""A question, its answer, and what becomes of both: kept, taken back, asked again, gone on with.

An answer of which nothing was said leaves no trace: what was there before is there again, and the question stands in
the next line.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mlxmtp.chat.history import Exchange, Reply, join
from mlxmtp.chat.material import gather, mentions
from mlxmtp.cli.answering import Answering, Outcome
from mlxmtp.cli.choice import answer_params
from mlxmtp.cli.fences import open_fence
from mlxmtp.cli.figures import turn_parts
from mlxmtp.cli.filling import make_fit, tokens_of
from mlxmtp.cli.keyboard import interrupts
from mlxmtp.cli.live import AnswerView
from mlxmtp.errors import MlxmtpError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlxmtp.chat.material import Material
    from mlxmtp.cli.talk import Talk
    from mlxmtp.engine.answer import Answer, OnPrefill
    from mlxmtp.engine.engine import Model
    from mlxmtp.engine.stats import Stats

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
            _restore(talk, old)
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
            _restore(talk, old)
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
            talk.conversation.extend(_reply(outcome))
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
        talk.conversation.reply(_reply(outcome))
    _remarks(talk, outcome)
    return bool(outcome.text.strip())


def _restore(talk: Talk, old: Exchange) -> None:
    """The last exchange as it was."""
    talk.conversation.replace_question(old.question, old.mentioned)
    if old.reply is not None:
        talk.conversation.reply(old.reply)


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


def _reply(outcome: Outcome) -> Reply:
    stats = None if outcome.stats is None else outcome.stats.to_dict()
    return Reply(outcome.text, outcome.thinking, outcome.reason, stats)
