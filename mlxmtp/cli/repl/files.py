"""Files that wait for the next message: `/file`, `/paste` and Ctrl+V."""

import shlex
from collections.abc import Sequence

from mlxmtp.chat.material import Material, gather, of_bytes
from mlxmtp.cli.repl.chat import Chat
from mlxmtp.cli.repl.turns import show, tokens_of
from mlxmtp.cli.terminal.clipboard import copied_picture
from mlxmtp.errors import LoadError, UsageError

_PASTED = "image from the clipboard"


def carry_out(chat: Chat, argument: str) -> None:
    """Do what `/file argument` means. Raises UsageError, ContextOverflow."""
    files = chat.line.files
    word, _, number = argument.partition(" ")
    if not argument:
        rows = [f"{f'{i}. ' if files[1:] else ''}{_line(chat, one)}" for i, one in enumerate(files, 1)]
        chat.say("\n".join(rows) if rows else "No file waits for the next message. /file PATH adds one.")
    elif argument == "clear":
        files.clear()
        chat.say("No file waits any more.")
    elif word == "drop":
        if not number.isdecimal() or not 1 <= int(number) <= len(files):
            raise UsageError("/file drop takes the number of a file that waits; /file lists them.")
        chat.say(f"{files.pop(int(number) - 1).name} goes with no message.")
    else:
        _stage(chat, [gather(name) for name in names("/file", argument)])


def paste(chat: Chat) -> None:
    """Put the clipboard's image, or the file that was copied, before the next message. Raises UsageError."""
    copied = copied_picture()
    if isinstance(copied, str):
        _stage(chat, [gather(copied)])
        return
    number = 1 + sum(one.name.startswith(_PASTED) for one in chat.line.files)
    name = f"{_PASTED} {number}"
    found = of_bytes(copied, name)
    assert found is not None, "copied_picture looks at its first bytes"
    _stage(chat, [found])


def names(command: str, argument: str) -> list[str]:
    """Return names as a shell takes them apart. Raises UsageError."""
    try:
        return shlex.split(argument)
    except ValueError as error:
        raise UsageError(f"{command} {argument}: a quotation mark is missing.") from error


def _stage(chat: Chat, materials: Sequence[Material]) -> None:
    for one in materials:
        for note in one.notes:
            chat.out.note(note)
        chat.line.files.append(one)
    try:
        chat.ready()
    finally:  # without the model they wait all the same, only their tokens are not known
        refused = None
        for one in materials:
            try:
                chat.say(_line(chat, one))
                show(chat, one)
            except (UsageError, LoadError) as error:  # damaged, too large, or nothing that this model can see or hear
                chat.line.files.remove(one)
                refused = refused or error
        if refused is not None:
            raise refused


def _line(chat: Chat, one: Material) -> str:
    count = f", {tokens_of(chat, one)} tokens" if chat.model.worker.model is not None else ""
    return f"{one.name}{f', {one.files} files' if one.files > 1 else ''}{count}, goes with the next message"
