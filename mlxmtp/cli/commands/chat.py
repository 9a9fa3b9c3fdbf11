"""`mlxmtp chat`: the conversation people keep open all day."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

from typer import Context, Exit, Option

from mlxmtp.cli.options import Continue, Resume, ToolWords, begin, takes
from mlxmtp.cli.terminal.output import Output
from mlxmtp.cli.terminal.signals import kills
from mlxmtp.errors import UsageError
from mlxmtp.settings import CHAT_KEYS, Loaded

if TYPE_CHECKING:
    from mlxmtp.app.open import Opener
    from mlxmtp.chat.conversation import Conversation
    from mlxmtp.cli.repl.chat import Chat


@takes(
    "chat",
    "model url file image_tokens system tool tools ... thinking display sampling drafting yes force no_color debug",
)
def chat(
    ctx: Context,
    file: Annotated[
        list[str] | None,
        Option("-f", "--file", metavar="PATH", help="Text, image, audio, PDF, folder; can be repeated."),
    ] = None,
    tool: ToolWords = None,
    continue_: Continue = False,
    resume: Resume = None,
    no_save: Annotated[bool, Option("--no-save", help="Keep neither session nor history.")] = False,
    keep_cache: Annotated[
        bool, Option("--keep-cache", help="Keep keys and values, too: reopening reads nothing again.")
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
      mlxmtp chat --tools calculator,files=src
      mlxmtp chat --url localhost:8765

    Everything is saved as it is said; -c goes on with the latest conversation. The model is read while you type.
    """
    if sys.stdin is None or not sys.stdin.isatty() or sys.stdout is None or not sys.stdout.isatty():
        raise UsageError("mlxmtp chat needs a terminal for what you type and read; for pipes there is mlxmtp ask.")
    _require_one(continues=continue_ and resume is not None, keeps=no_save and keep_cache)
    from mlxmtp.chat.attach import STDIN

    if not STDIN.isdisjoint(file or []):
        raise UsageError("mlxmtp chat takes what you type from stdin, so it reads no file there: use mlxmtp ask -f -.")
    loaded, out = begin(ctx)
    from mlxmtp.cli import calls
    from mlxmtp.cli.repl import actions
    from mlxmtp.cli.resume import chosen, conversation_for, opener_of

    if resume == "":
        resume = chosen(loaded, out)
    loaded, conversation = conversation_for(
        loaded, out, latest=continue_, resume=resume, save=not no_save, read_only=no_save
    )
    opener = opener_of(loaded, out)
    talk: Chat | None = None
    try:
        target = opener.target(loaded.settings.model)
        talk = _prepare(loaded, out, conversation, opener, history=not no_save, keep_cache=keep_cache)
        give_tools(talk, tool or [])
        with calls.in_use(talk.tools.servers), kills() as killed:
            attach(talk, file or [])
            talk.load(target)
            talk.greet()
            if continue_ or resume is not None:
                actions.show_resumed(talk)
            actions.run(talk)
            talk.say_goodbye()
        if killed:
            talk.model.worker.stop()
            out.undo_modes()
        talk.leave()
        if killed:
            raise Exit(128 + killed[0])
    finally:
        (conversation if talk is None else talk.conversation).close()  # /load may have opened another
        out.settle()


def _require_one(*, continues: bool, keeps: bool) -> None:
    """Raise UsageError for flags that exclude each other."""
    if continues:
        raise UsageError("-c continues the latest session and -r another: take one.")
    if keeps:
        raise UsageError("--keep-cache keeps keys and values beside the session, but --no-save keeps none: take one.")


def attach(talk: Chat, names: list[str]) -> None:
    """Put files before the first message. Raises as `gather`."""
    from mlxmtp.chat.material import gather

    talk.line.files = [gather(name) for name in names]
    for note in (note for one in talk.line.files for note in one.notes):
        talk.out.note(note)


def give_tools(talk: Chat, words: list[str]) -> None:
    """Let the model call tools, after asking in the conversation. Raises UsageError for what there is none of."""
    if words or talk.settings.functions or talk.settings.allow:
        from mlxmtp.app.tools.chosen import chosen_tools
        from mlxmtp.cli.calls import asking_in_chat

        talk.tools = chosen_tools(words, talk.loaded, asking_in_chat(talk.answer_to))


def _prepare(
    loaded: Loaded, out: Output, conversation: Conversation, opener: Opener, *, history: bool, keep_cache: bool
) -> Chat:
    """Return everything but the model. The line editor takes a tenth of a second to import, so it comes late."""
    from mlxmtp.app.prompt_cache import SessionCache
    from mlxmtp.app.worker import Worker
    from mlxmtp.chat.sessions import Sessions
    from mlxmtp.cli.repl.chat import Chat, ChosenModel
    from mlxmtp.cli.repl.completion import Sources
    from mlxmtp.cli.repl.slash import PlainReader, Reader
    from mlxmtp.cli.terminal.keyboard import Keyboard

    if keep_cache and not opener.here:
        raise UsageError("--keep-cache keeps what a model on this machine has read: name one with -m.")

    def session_names() -> list[str]:
        return [one.name or one.id for one in Sessions(loaded.places.sessions).listing().sessions]

    keys = Keyboard() if out.look.dumb else Keyboard(sys.stdin.fileno())
    reader: Reader = PlainReader()
    if not out.look.dumb:
        from mlxmtp.cli.repl.line_editor import LineEditor

        path = loaded.places.data / "history" if history else None
        reader = LineEditor(path, Sources(opener.names, session_names, CHAT_KEYS), color=out.look.color)
    worker = Worker()
    cache = SessionCache(worker, loaded.places.sessions) if keep_cache else None
    talk = Chat(loaded, out, conversation, ChosenModel(opener, worker, cache), keys, reader)
    opener.agree = talk.permits
    return talk
