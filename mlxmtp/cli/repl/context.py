"""What fills the model's context, and what happens when it is full: never anything silent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlxmtp.chat.context import fit, reserve_for
from mlxmtp.chat.history import Exchange

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlxmtp.cli.repl.talk import Talk
    from mlxmtp.engine.tokenizer import Message


def tokens_of(talk: Talk, text: str) -> int:
    """Tokens of a text; the model must be there."""
    return len(talk.model.tokenizer.encode(text)) if text else 0


def make_fit(talk: Talk, asking: Exchange, *, instead: bool = False) -> int | None:
    """How many of the oldest exchanges have to be left out for this question, None if it cannot be asked.

    It may be asked `instead` of the last one; with a reply, that one is gone on with. A person decides on leaving out.
    """
    used = _prompt_tokens(talk, talk.conversation.messages(asking, instead=instead))
    what = "question" if asking.reply is None else "answer"
    # An answer goes on while there is any room.
    state = fit(used, (), talk.context, _reserve(talk) if asking.reply is None else 1)
    if not state.full:
        if state.warns and not talk.warned_full:
            talk.say(f"The context is {state.percent} % full: /context shows what fills it, /clear starts anew.")
        talk.warned_full = state.warns
        return 0
    said = _exchange_tokens(talk)
    state = fit(used, said[:-1] if instead else said, talk.context, _reserve(talk))
    if state.droppable is None:
        talk.out.error(
            f"With this {what} the prompt has {state.used:,} tokens; the context holds {state.context:,}, of which "
            f"{state.reserve:,} are kept for the answer. {_less(talk, asking)}"
        )
        return None
    count = state.droppable
    oldest = "oldest exchange" if count == 1 else f"{count} oldest exchanges"
    talk.say(f"The context is full: {state.used:,} of {state.context:,} tokens with this {what}.")
    if not talk.agree(f"Leave the {oldest} out of what the model reads? The session keeps all."):
        talk.say("Nothing was sent: /clear starts anew, /undo takes back the last exchange.")
        return None
    return count


def _less(talk: Talk, asking: Exchange) -> str:
    """What helps when nothing can be left out."""
    if asking.reply is not None:
        return "/clear starts anew."
    system = tokens_of(talk, talk.conversation.system)
    if system > tokens_of(talk, asking.content):
        return f"The system prompt takes {system:,} of them: /system TEXT sets a shorter one."
    return "Give less material" + (": /file clear drops the files that wait." if talk.staged else ".")


def show_context(talk: Talk) -> None:
    """/context: a row for each part."""
    if not talk.ready():
        return
    conversation = talk.conversation
    system, said = tokens_of(talk, conversation.system), _exchange_tokens(talk)
    staged = sum(tokens_of(talk, one.text) for one in talk.staged)
    used = _prompt_tokens(talk, conversation.messages(Exchange("")))
    rows = [
        ("system prompt", system),
        (f"{len(said)} exchange{'' if len(said) == 1 else 's'}", sum(said)),
        ("format", used - system - sum(said)),
        ("files that wait", staged),
        ("kept for the answer", _reserve(talk)),
        ("free", max(0, talk.context - used - staged - _reserve(talk))),
        ("context", talk.context),
    ]
    talk.say_rows([(name, f"{count:>8,} tokens") for name, count in rows if count or name == "free"])
    dropped = len(conversation.dropped)
    if dropped:
        left = "exchange is" if dropped == 1 else f"{dropped} exchanges are"
        talk.say(f"The oldest {left} left out of the prompt.")


def _prompt_tokens(talk: Talk, messages: Sequence[Message]) -> int:
    return len(talk.model.tokenizer.prompt_ids(messages, think=bool(talk.loaded.settings.think)))


def _exchange_tokens(talk: Talk) -> list[int]:
    """Tokens of every exchange in the prompt without the template's marks, oldest first."""
    return [
        tokens_of(talk, one.content) + tokens_of(talk, one.reply.text) if one.answered and one.reply else 0
        for one in talk.conversation.exchanges
    ]


def _reserve(talk: Talk) -> int:
    return reserve_for(talk.context, talk.loaded.settings.max_tokens)
