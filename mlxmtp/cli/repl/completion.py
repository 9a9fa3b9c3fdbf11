"""Completion: commands, their arguments, paths after /file and @. Knows nothing of the line editor."""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mlxmtp.chat.material import BEFORE_MENTION
from mlxmtp.cli.repl.slash import BY_WORD, COMMANDS
from mlxmtp.files import expand_home

_MENTION = re.compile(BEFORE_MENTION + r"""@("[^"\n]*|[^\s"]*)$""")
_WORD = re.compile(r"""(?:^|(?<=\s))("[^"\n]*|[^\s"]*)$""")
_SWITCHES = {
    "think": ("on", "off", "show", "hide"),
    "draft": ("on", "off", "auto", "1", "2", "3", "5", "7"),
    "stats": ("on", "off"),
    "schema": ("off",),
    "copy": ("all", "code"),
}


@dataclass(frozen=True, slots=True)
class Sources:
    """Names that change; asked for only when Tab is pressed."""

    models: Callable[[], Sequence[str]] = tuple
    sessions: Callable[[], Sequence[str]] = tuple
    keys: Sequence[str] = ()


def complete(text: str, sources: Sources) -> tuple[int, list[str]]:
    """Return how many characters before the cursor to replace, and by what, best first."""
    mention = _MENTION.search(text)
    if text.startswith("/") and " " not in text and "\n" not in text:
        found = [word for word in BY_WORD if word.startswith(text)]
        main = {f"/{command.name}" for command in COMMANDS}
        return len(text), sorted(found, key=lambda word: (word not in main, word)) or _paths(text)
    if mention:
        return len(mention[1]), _paths(mention[1])
    word, space, argument = text.partition(" ")
    command = BY_WORD.get(word)
    if command is None or not space:
        return 0, []
    part = _WORD.search(argument)
    last = part[0] if part else ""
    return len(last), _arguments(command.name, argument, last, sources)


def common_start(words: Sequence[str]) -> str:
    """Return what all words begin with."""
    first, last = min(words, default=""), max(words, default="")
    return next((first[:at] for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), first)


def _arguments(command: str, argument: str, last: str, sources: Sources) -> list[str]:
    if command in ("file", "export"):
        return [_as_shell(path) for path in _paths(last)] if command == "file" else _paths(last)
    if argument != last:  # only the commands above take several words
        return []
    sought: dict[str, Callable[[], Sequence[str]]] = {
        "model": sources.models,
        "load": sources.sessions,
        "set": lambda: sources.keys,
        "help": lambda: [each.name for each in COMMANDS],
    }
    words = sought[command]() if command in sought else _SWITCHES.get(command, ())
    return [word for word in words if word.startswith(last)]


def _paths(typed: str) -> list[str]:
    """Return files and folders that begin so, in quotes where there are blanks; hidden ones only when asked for."""
    folder, name = os.path.split(typed.removeprefix('"'))
    try:
        entries = sorted(os.scandir(expand_home(folder or ".")), key=lambda entry: entry.name)
        found = [
            os.path.join(folder, entry.name) + ("/" if entry.is_dir() else "")  # noqa: PTH118  (keeps `~/` and `./`)
            for entry in entries
            if entry.name.startswith(name) and (name.startswith(".") or not entry.name.startswith("."))
        ]
    except OSError:
        return []
    return [quoted(path, always=typed.startswith('"')) for path in found]


def _as_shell(path: str) -> str:
    """Return a path as `/file` takes it apart again: quotation marks and backslashes stand for themselves."""
    name = path.removeprefix('"').removesuffix('"') if path.startswith('"') else path
    if not set(name) & set("'\"\\"):
        return path
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return quoted(escaped, always=True)


def quoted(path: str, *, always: bool = False) -> str:
    """Return a path in quotes if it has blanks; a folder's closing quote waits for what comes below it."""
    if not always and not any(character.isspace() for character in path):
        return path
    return f'"{path}' + ("" if path.endswith("/") else '"')
