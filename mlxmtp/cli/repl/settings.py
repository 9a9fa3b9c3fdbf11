"""Commands of the conversation about the model and its settings."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import typer

from mlxmtp.app.open import read_model, read_tokenizer
from mlxmtp.cli.commands.pull import pick_drafter, pick_target
from mlxmtp.cli.terminal.presenters import stats_rows
from mlxmtp.errors import ModelNotFound, UsageError
from mlxmtp.hub.store import Store
from mlxmtp.settings import CHAT_KEYS, typed_value
from mlxmtp.units import nearest

if TYPE_CHECKING:
    from mlxmtp.cli.repl.talk import Talk
    from mlxmtp.engine.model import Model
    from mlxmtp.hub.store import Found

_ANSWER = 4096  # tokens of a conversation that must fit the memory for it to begin


def load(talk: Talk, target: Found) -> None:
    """Begin to read a model on its thread, after all that can be refused. Raises ModelNotFound, TooLarge, LoadError."""
    from mlxmtp.app.learned import Memory
    from mlxmtp.app.open import require_memory

    drafter = pick_drafter(talk.loaded.settings, talk.out, _store(talk), target, off=False)
    settings, draws = talk.loaded.settings, not talk.out.look.dumb
    require_memory(target, drafter, _ANSWER, force=talk.force, turns=True, kv_bits=settings.kv_bits)
    talk.target, talk.drafter, talk.memory, talk.met = target, drafter, None, None

    def read() -> Model:
        model = read_model(target, drafter, read_tokenizer(target), settings)
        memory = Memory(model, drafter, talk.loaded.places, settings.draft_bits)
        if talk.target is target and talk.drafter is drafter:  # else another model is wanted by now
            talk.memory = memory
        if draws:  # what drawing needs is imported here, while nobody waits for it
            from mlxmtp.cli.terminal.markdown import warm_up

            warm_up()
        return model

    talk.thread.load(read)
    if talk.conversation.model != target.name:
        talk.conversation.use_model(target.name)


def model(talk: Talk, argument: str) -> None:
    """/model: the one that answers, or another."""
    if not argument:
        assert talk.target is not None
        drafter = "without a drafter" if talk.drafter is None else f"with the drafter {talk.drafter.name}"
        talk.say(f"{talk.target.name}, {drafter}, in {talk.target.folder}")
        return
    before = talk.loaded
    # A drafter that was named belongs to the model before; the new one's own is taken.
    talk.change(model=argument, draft_model=None)
    try:
        load(talk, pick_target(talk.loaded, talk.out, _store(talk), argument))
    except (typer.Abort, KeyboardInterrupt):  # Ctrl+C at the question whether to download, or while that is going on
        talk.loaded = before
        talk.say("The model stays as it was.")
        return
    except BaseException:
        talk.loaded = before
        raise
    assert talk.target is not None
    talk.say(f"{talk.target.name} answers from here on.")


def set_value(talk: Talk, argument: str) -> None:
    """/set: all settings of answers, one, or another value for it."""
    settings = talk.loaded.settings
    word, _, text = argument.partition(" ")
    if not word:
        talk.say_rows([(key, _shown(getattr(settings, _field(key)))) for key in CHAT_KEYS])
        return
    key = word.lstrip("-").replace("_", "-")
    if key not in CHAT_KEYS:
        near = nearest(key, CHAT_KEYS)
        hint = f"Did you mean {near}?" if near else f"There are: {', '.join(CHAT_KEYS)}."
        raise UsageError(f"There is no setting {word}. {hint}")
    if text:
        value = None if text.strip() == "default" else typed_value(_field(key), text.strip())
        talk.change(**{_field(key): value})
    talk.say(f"{key} is {_shown(getattr(talk.loaded.settings, _field(key)))}.")


def think(talk: Talk, argument: str) -> None:
    """/think: whether the model reasons first, and whether that is shown."""
    changes: dict[str, dict[str, Any]] = {
        "": {},
        "on": {"think": True},
        "off": {"think": False},
        "show": {"show_thinking": True},
        "hide": {"show_thinking": False},
    }
    if argument not in changes:
        raise UsageError("/think takes on, off, show or hide.")
    talk.change(**changes[argument])
    settings = talk.loaded.settings
    if not settings.think:
        talk.say("Thinking is off.")
    else:
        talk.say(f"Thinking is on and {'hidden' if settings.show_thinking is False else 'shown while it lasts'}.")


def draft(talk: Talk, argument: str) -> None:
    """/draft: how many tokens are drafted per round."""
    if argument:
        word = {"on": "auto", "off": "0"}.get(argument, argument)
        number = typed_value("num_draft_tokens", word)
        if number != 0 and talk.drafter is None:
            _load_drafter(talk)
        talk.change(num_draft_tokens=number)
    number = talk.loaded.settings.num_draft_tokens
    if talk.drafter is None:
        talk.say("Drafting is off: no drafter is loaded.")
    elif number == 0:
        talk.say("Drafting is off.")
    elif number is None or number == "auto":
        talk.say("Drafting adapts to what is accepted and what it earns.")
    else:
        talk.say(f"Drafting {number} token{'' if number == 1 else 's'} per round.")


def _load_drafter(talk: Talk) -> None:
    """The drafter after all: --no-draft left it out. Raises ModelNotFound if there is none here."""
    assert talk.target is not None
    before = talk.loaded
    if before.settings.draft_model is None and _store(talk).drafter_for(talk.target, None) is None:
        raise ModelNotFound(
            f"There is no drafter for '{talk.target.name}' here. Leave, and name one: mlxmtp chat -c --draft-model NAME"
        )
    talk.loaded = replace(before, settings=replace(before.settings, draft=True))
    try:
        load(talk, talk.target)
    except BaseException:
        talk.loaded = before
        raise


def stats(talk: Talk, argument: str) -> None:
    """/stats: everything about the last answer; on and off say whether a line follows each one."""
    if argument not in ("", "on", "off"):
        raise UsageError("/stats takes on or off, or nothing.")
    if argument:
        talk.change(stats=argument == "on")
        talk.say(f"A line of figures {'follows each answer' if argument == 'on' else 'no longer follows answers'}.")
    elif talk.stats is None:
        talk.say("There are no figures yet: ask something first.")
    else:
        talk.say_rows(stats_rows(*talk.stats))


def _store(talk: Talk) -> Store:
    return Store(talk.loaded.places, talk.loaded.aliases)


def _field(key: str) -> str:
    return key.replace("-", "_")


def _shown(value: object) -> str:
    return "the model's own" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
