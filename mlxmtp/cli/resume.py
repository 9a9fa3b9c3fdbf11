"""Which conversation a command goes on with, and who answers in it."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlxmtp.chat.conversation import Conversation
from mlxmtp.chat.sessions import NOTHING_TO_CONTINUE, Resumed, Sessions
from mlxmtp.cli.terminal import keyboard
from mlxmtp.errors import ModelNotFound, UsageError

if TYPE_CHECKING:
    from mlxmtp.cli.terminal.output import Output
    from mlxmtp.settings import Loaded


@dataclass(frozen=True, slots=True)
class Choice:
    """What the flags say: go on with the latest session, or with the one named `resume`; keep a new one.

    `reads`: what follows in a session that goes on is not kept either.

    `model_given` and `system_given`: named on the command line, so that they count against what the session says.
    """

    latest: bool
    resume: str | None
    save: bool
    model_given: bool = False
    system_given: bool = False
    reads: bool = False


def conversation_for(loaded: Loaded, out: Output, choice: Choice) -> tuple[Loaded, Conversation]:
    """The conversation that the flags mean, and settings with its model. Raises UsageError if there is none."""
    from mlxmtp.chat.attach import read_reference

    system = read_reference(loaded.settings.system or "", loaded.prompts)
    sessions = Sessions(loaded.places.sessions)
    if not choice.latest and choice.resume is None:
        return loaded, Conversation(system=system, journal=sessions.create() if choice.save else None)
    summary = sessions.latest(out.note) if choice.resume is None else sessions.find(choice.resume)
    resumed = Resumed(sessions.read(summary)) if choice.reads else sessions.open(summary)
    for remark in resumed.remarks:
        out.note(remark)
    conversation = resumed.conversation
    if choice.system_given and system != conversation.system:
        conversation.set_system(system)
    if conversation.model and not choice.model_given:
        loaded = _with_its_model(loaded, out, conversation.model)
    return loaded, conversation


def chosen(loaded: Loaded, out: Output) -> str:
    """The session that a person names from the list of those there are. Raises UsageError if there is none.

    Ctrl+D leaves without a conversation, by SystemExit.
    """
    from mlxmtp.cli.commands.sessions import show_list

    listing = Sessions(loaded.places.sessions).listing()
    for remark in listing.remarks:
        out.note(remark)
    sessions = listing.sessions[:20]
    if not sessions:
        raise UsageError(NOTHING_TO_CONTINUE)
    show_list(out, sessions)
    out.settle()
    keyboard.release()
    try:
        name = input(f"ID or name, Enter for {sessions[0].id}: ").strip() or sessions[0].id
    except EOFError:
        sys.stdout.write("\n")
        raise SystemExit(0) from None
    keyboard.hold()
    return name


def _with_its_model(loaded: Loaded, out: Output, name: str) -> Loaded:
    """Settings in which the session's model answers, if it is still here."""
    from mlxmtp.hub.store import Store

    try:
        Store(loaded.places, loaded.aliases).resolve(name)
    except ModelNotFound:
        out.note(f"Model '{name}', which this conversation was with, is not on this machine.")
        return loaded
    return replace(loaded, settings=replace(loaded.settings, model=name))
