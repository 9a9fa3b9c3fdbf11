"""`mlxmtp chat`: the conversation people keep open all day."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from mlxmtp.cli.options import Continue, Resume, takes
from mlxmtp.cli.start import begin
from mlxmtp.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlxmtp.chat.conversation import Conversation
    from mlxmtp.cli.repl.talk import Talk
    from mlxmtp.cli.terminal.output import Output
    from mlxmtp.hub.store import Found
    from mlxmtp.settings import Loaded


@takes("chat", "model file system ... thinking display sampling drafting yes force no_color debug")
def chat(
    ctx: typer.Context,
    file: Annotated[
        list[str] | None,
        typer.Option("-f", "--file", metavar="PATH", help="Text file or folder, can be repeated.", show_default=False),
    ] = None,
    continue_: Continue = False,
    resume: Resume = None,
    no_save: Annotated[bool, typer.Option("--no-save", help="Keep neither session nor history.")] = False,
    keep_cache: Annotated[
        bool, typer.Option("--keep-cache", help="Keep keys and values, too: reopening reads nothing again.")
    ] = False,
) -> None:
    """A conversation in the terminal; /help lists its commands and keys.

    \b
    Examples:
      mlxmtp chat
      mlxmtp chat -m e4b -s "Answer in one sentence."
      mlxmtp chat -f notes.txt
      mlxmtp chat -c
      mlxmtp chat -r          (a list to choose from)
      mlxmtp chat -r 3f9a

    Everything is saved as it is said; -c goes on with the latest conversation. The model is read while you type.
    """
    if sys.stdin is None or not sys.stdin.isatty() or sys.stdout is None or not sys.stdout.isatty():
        raise UsageError("mlxmtp chat needs a terminal for what you type and read; for pipes there is mlxmtp ask.")
    if continue_ and resume is not None:
        raise UsageError("-c continues the latest session and -r another: take one.")
    from mlxmtp.chat.attach import STDIN

    if not STDIN.isdisjoint(file or []):
        raise UsageError("mlxmtp chat takes what you type from stdin, so it reads no file there: use mlxmtp ask -f -.")
    loaded, out = begin(ctx)
    from mlxmtp.cli.commands.pull import pick_target
    from mlxmtp.cli.repl.keeping import keep, take_up
    from mlxmtp.cli.resume import Choice, chosen, conversation_for
    from mlxmtp.cli.terminal.keyboard import kills
    from mlxmtp.hub.store import Store

    if resume == "":
        resume = chosen(loaded, out)
    given = {"model_given": "model" in ctx.obj, "system_given": "system" in ctx.obj}
    choice = Choice(continue_, resume, not no_save, **given, reads=no_save)
    loaded, conversation = conversation_for(loaded, out, choice)
    talk: Talk | None = None
    try:
        target = pick_target(loaded, out, Store(loaded.places, loaded.aliases), loaded.settings.model)
        talk = _prepare(loaded, out, conversation, keeps=not no_save)
        talk.force, talk.debug = bool(loaded.settings.force), bool(loaded.settings.debug)
        if keep_cache:
            talk.on_ready, talk.on_leave = take_up, keep
        with kills() as killed:
            _begin(talk, target, file or [], resumed=continue_ or resume is not None)
        if killed:
            talk.thread.stop()
            out.undo_modes()
        talk.leave()
        if killed:
            raise typer.Exit(128 + killed[0])
    finally:
        (conversation if talk is None else talk.conversation).close()  # /load may have opened another
        out.settle()


def _prepare(loaded: Loaded, out: Output, conversation: Conversation, *, keeps: bool) -> Talk:
    """Everything but the model. The line editor takes a tenth of a second to import, so it comes late."""
    from mlxmtp.app.worker import ModelThread
    from mlxmtp.cli.repl.completion import Sources
    from mlxmtp.cli.repl.line_editor import LineEditor, PlainReader, Reader
    from mlxmtp.cli.repl.talk import Talk
    from mlxmtp.cli.terminal.keyboard import Keyboard, Keys
    from mlxmtp.settings import CHAT_KEYS

    keys: Keys = Keys() if out.look.dumb else Keyboard(sys.stdin.fileno())
    reader: Reader
    if out.look.dumb:
        reader = PlainReader()
    else:
        sources = Sources(lambda: _model_names(loaded), lambda: _session_names(loaded), CHAT_KEYS)
        history = loaded.places.data / "history" if keeps else None
        reader = LineEditor(history, sources, color=out.look.color)
    return Talk(loaded, out, conversation, ModelThread(), keys, reader)


def _begin(talk: Talk, target: Found, files: Sequence[str], *, resumed: bool) -> None:
    from mlxmtp.chat.material import gather
    from mlxmtp.cli.repl import settings, turns
    from mlxmtp.cli.repl.actions import act, show_resumed
    from mlxmtp.cli.repl.line_editor import LineEditor

    talk.staged = [gather(name) for name in files]
    for note in (note for one in talk.staged for note in one.notes):
        talk.out.note(note)
    settings.load(talk, target)
    talk.say(target.name if talk.drafter is None else f"{target.name} with its drafter")
    if resumed:
        show_resumed(talk)
    if isinstance(talk.reader, LineEditor):
        talk.reader.on_thought = lambda: talk.thought
    talk.run(act, turns.send)


def _model_names(loaded: Loaded) -> list[str]:
    """What -m takes and is here."""
    from mlxmtp.hub.registry import BUILT_IN, entries
    from mlxmtp.hub.store import Store

    store = Store(loaded.places, loaded.aliases)
    here = [entry.name for entry in entries() if store.cached(entry.target.repo) is not None]
    return [BUILT_IN, *here, *loaded.aliases]


def _session_names(loaded: Loaded) -> list[str]:
    from mlxmtp.chat.sessions import Sessions

    return [one.name or one.id for one in Sessions(loaded.places.sessions).listing().sessions]
