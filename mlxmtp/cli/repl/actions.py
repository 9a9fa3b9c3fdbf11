"""What the commands of the conversation do with what was said, with files and with sessions."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING

from mlxmtp.chat.material import gather, read_text
from mlxmtp.cli.repl import settings, turns
from mlxmtp.cli.repl.context import show_context, tokens_of
from mlxmtp.cli.repl.slash import HELP, KEYS_HELP, Call, help_of
from mlxmtp.cli.repl.talk import Talk
from mlxmtp.cli.repl.turns import Leave
from mlxmtp.errors import SessionError, UsageError

if TYPE_CHECKING:
    from mlxmtp.chat.history import Exchange, Reply

_SHOWN = 12
"""Lines of the last question that a conversation shows when it goes on."""


def act(talk: Talk, call: Call) -> None:
    """Carry out a command. Raises Leave to end the conversation, MlxmtpError for what a person did wrong."""
    if call.argument and not call.command.usage:
        raise UsageError(f"/{call.command.name} takes nothing after it, so nothing was done.")
    _ACTIONS[call.command.name](talk, call.argument)


def _help(talk: Talk, argument: str) -> None:
    if argument:
        talk.say(help_of(argument))
    else:
        talk.say_rows(HELP)
        talk.say(KEYS_HELP)


def _exit(talk: Talk, argument: str) -> None:
    raise Leave


def _clear(talk: Talk, argument: str) -> None:
    talk.leave()
    talk.conversation.clear()
    talk.staged.clear()
    talk.stats, talk.thought, talk.warned_full = None, "", False
    talk.say("A new conversation.")


def _regen(talk: Talk, argument: str) -> None:
    _last(talk, "answer again")
    turns.again(talk)


def _undo(talk: Talk, argument: str) -> None:
    count = int(argument or "1") if not argument or argument.isdecimal() else 0
    if count < 1:
        raise UsageError("/undo takes how many exchanges to take back, 1 or more.")
    _last(talk, "take back")
    taken = talk.conversation.undo(count)
    from mlxmtp.chat.history import title_of

    for one in taken:
        talk.say(f"Taken back: {title_of(one.question or one.material)}")


def _edit(talk: Talk, argument: str) -> None:
    last = _last(talk, "edit")
    talk.edits = True
    if argument:
        turns.send(talk, argument)
    else:
        talk.given = last.question
        keep = "Ctrl+C" if talk.out.look.dumb else "an empty line"  # a plain line cannot be emptied
        talk.say(f"The last question; Enter asks it anew, {keep} leaves it as it was.")


def _continue(talk: Talk, argument: str) -> None:
    reply = _last(talk, "go on with").reply
    if reply is None or reply.finish_reason not in ("cancelled", "length"):
        raise UsageError("The last answer is complete: there is nothing to go on with.")
    turns.go_on(talk)


def _copy(talk: Talk, argument: str) -> None:
    from mlxmtp.cli.terminal.clipboard import copy

    text = _to_copy(talk, argument)
    talk.say(copy(text, talk.out))


def _to_copy(talk: Talk, argument: str) -> str:
    from mlxmtp.chat.transcript import as_markdown
    from mlxmtp.cli.terminal.presenters import all_fences

    if argument == "all":
        _last(talk, "copy")
        return as_markdown(talk.conversation.history, talk.conversation.session)
    reply = _last_reply(talk)
    if not argument:
        return reply.text.strip("\n") + "\n"
    blocks = all_fences(reply.text)
    number = len(blocks) if argument == "code" else int(argument) if argument.isdecimal() else -1
    if number < 0:
        raise UsageError("/copy takes nothing, all, code, or the number of a code block.")
    if not 1 <= number <= len(blocks):
        there = "no code block" if not blocks else f"{len(blocks)} code block{'s' if len(blocks) > 1 else ''}"
        raise UsageError(f"The last answer has {there}.")
    return blocks[number - 1]


def _file(talk: Talk, argument: str) -> None:
    if not argument:
        rows = [_staged_line(talk, one.name, one.text, one.files) for one in talk.staged]
        talk.say("\n".join(rows) if rows else "No file waits for the next message. /file PATH adds one.")
        return
    if argument == "clear":
        talk.staged.clear()
        talk.say("No file waits any more.")
        return
    materials = [gather(name) for name in _names("/file", argument)]
    for one in materials:
        for note in one.notes:
            talk.out.note(note)
        talk.staged.append(one)
    try:
        talk.ready()
    finally:  # without the model they wait all the same, only their tokens are not known
        for one in materials:
            talk.say(_staged_line(talk, one.name, one.text, one.files))


def _staged_line(talk: Talk, name: str, text: str, files: int) -> str:
    count = f", {tokens_of(talk, text):,} tokens" if talk.thread.model is not None else ""
    return f"{name}{f', {files} files' if files > 1 else ''}{count}, goes with the next message"


def _system(talk: Talk, argument: str) -> None:
    if not argument:
        talk.say(talk.conversation.system or "There is no system prompt. /system TEXT sets one.")
        return
    text = read_text(_unquoted(argument[1:])) if argument.startswith("@") else "" if argument == "-" else argument
    talk.conversation.set_system(text)
    talk.say("The system prompt is set." if text else "There is no system prompt any more.")


def _save(talk: Talk, argument: str) -> None:
    from mlxmtp.chat.sessions import Sessions

    journal = talk.conversation.journal
    if journal is None:
        raise UsageError("This conversation is not saved, because of --no-save. /export FILE.md writes it to a file.")
    if argument:
        talk.conversation.rename(Sessions(talk.loaded.places.sessions).check_name(argument, journal.id))
    if talk.conversation.trouble is not None:
        raise SessionError(talk.conversation.trouble)
    if argument:
        talk.say(f"Saved as {talk.conversation.name}.")
    elif talk.conversation.session is None:
        talk.say("Nothing has been asked yet; from the first question on everything is saved.")
    else:
        talk.say(f"Saved as session {talk.conversation.name or journal.id}. /save NAME gives it a name.")


def _load(talk: Talk, argument: str) -> None:
    from mlxmtp.chat.sessions import Resumed, Sessions

    if not argument:
        raise UsageError("/load takes a name or an id; /sessions lists them.")
    sessions = Sessions(talk.loaded.places.sessions)
    summary = sessions.find(argument, list_with="/sessions lists them.")
    if talk.conversation.session == summary.id:
        talk.say("That is this session.")
        return
    unsaved = talk.conversation.journal is None
    resumed = Resumed(sessions.read(summary)) if unsaved else sessions.open(summary)
    talk.leave()
    talk.conversation.close()
    talk.conversation = resumed.conversation
    talk.staged.clear()
    talk.stats, talk.thought, talk.warned_full = None, "", False
    for remark in resumed.remarks:
        talk.out.note(remark)
    if talk.target is not None and talk.conversation.model != talk.target.name:
        talk.conversation.use_model(talk.target.name)
    show_resumed(talk)


def show_resumed(talk: Talk) -> None:
    """Where a conversation that goes on was left: its title and the last exchange."""
    from mlxmtp.cli.terminal.answer_view import AnswerView

    said = talk.conversation.exchanges
    count = len(said) + len(talk.conversation.dropped)
    talk.say(f"Going on with: {talk.conversation.title} ({count} exchange{'' if count == 1 else 's'})")
    if not said:
        return
    rows = said[-1].question.split("\n")
    more = [f"… {len(rows) - _SHOWN} more lines"] if len(rows) > _SHOWN else []
    talk.say("\n".join(["", *(f"> {row}" for row in rows[:_SHOWN]), *more, ""]))
    reply = said[-1].reply
    if reply is not None and reply.text.strip():
        view = AnswerView(talk.out, plain=bool(talk.loaded.settings.plain), clock=talk.clock)
        view.text(reply.text)
        view.end()
    talk.out.write("\n")


def _sessions(talk: Talk, argument: str) -> None:
    from mlxmtp.chat.sessions import Sessions
    from mlxmtp.cli.commands.sessions import show_list

    listing = Sessions(talk.loaded.places.sessions).listing()
    for remark in listing.remarks:
        talk.out.note(remark)
    if not listing.sessions:
        talk.say("There are no saved conversations yet.")
        return
    show_list(talk.out, listing.sessions)
    talk.say("/load ID goes on with one.")


def _export(talk: Talk, argument: str) -> None:
    from mlxmtp.chat.transcript import export

    if not argument:
        raise UsageError("/export takes the name of a file that ends in .md or .json.")
    names = _names("/export", argument) if argument[0] in "\"'" else [argument]
    path = export(talk.conversation.history, names[0], talk.conversation.session)
    talk.say(f"Written to {path}.")


def _unquoted(name: str) -> str:
    """A name that may stand in quotation marks, as after `@` in a message."""
    quoted = len(name) > 2 and name[0] == name[-1] and name[0] in "\"'"
    return name[1:-1] if quoted else name


def _names(command: str, argument: str) -> list[str]:
    """Names as a shell takes them apart. Raises UsageError."""
    try:
        return shlex.split(argument)
    except ValueError as error:
        raise UsageError(f"{command} {argument}: a quotation mark is missing.") from error


def _last(talk: Talk, what: str) -> Exchange:
    """The last exchange. Raises UsageError if nothing was asked."""
    if not talk.conversation.exchanges:
        raise UsageError(f"Nothing has been asked yet, so there is nothing to {what}.")
    return talk.conversation.exchanges[-1]


def _last_reply(talk: Talk) -> Reply:
    for exchange in reversed(talk.conversation.exchanges):
        if exchange.reply is not None and exchange.answered:
            return exchange.reply
    raise UsageError("There is no answer yet to copy.")


_ACTIONS: dict[str, Callable[[Talk, str], None]] = {
    "help": _help,
    "exit": _exit,
    "clear": _clear,
    "regen": _regen,
    "undo": _undo,
    "edit": _edit,
    "continue": _continue,
    "copy": _copy,
    "file": _file,
    "system": _system,
    "model": settings.model,
    "set": settings.set_value,
    "think": settings.think,
    "draft": settings.draft,
    "stats": settings.stats,
    "context": lambda talk, _: show_context(talk),
    "save": _save,
    "load": _load,
    "sessions": _sessions,
    "export": _export,
}
