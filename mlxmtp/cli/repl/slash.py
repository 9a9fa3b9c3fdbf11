"""Lines of the conversation: each is a message, a command, or a command that does not exist."""

import os
import select
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shutil import get_terminal_size

from mlxmtp.cli.terminal import keyboard
from mlxmtp.cli.terminal.rows import wrapped
from mlxmtp.cli.terminal.signals import raises, rings
from mlxmtp.settings import CHAT_KEYS
from mlxmtp.units import nearest

PROMPT = "> "
CONTINUED = "  "


@dataclass(frozen=True, slots=True)
class Line:
    """A line that was sent; `pasted`: its beginning came from the clipboard."""

    text: str
    pasted: bool = False


class Reader(ABC):
    """Gives lines; `refused` if the text that is given comes back, for a reason that stands above the line."""

    refused = False
    on_picture: Callable[[], None] | None = None  # takes the clipboard's image to the next message

    @abstractmethod
    def read(self, given: str = "", *, literal: bool = False, edits: bool = False, thought: str = "") -> Line:
        """Return the next line; the text `given` stands in it already, and is no command if it is `literal`.

        `thought` is what Ctrl+T shows. Raises EOFError (Ctrl+D) or KeyboardInterrupt: Ctrl+C in an empty line, and in
        any that `edits` what was said.
        """

    def agree(self, question: str) -> bool:
        """Ask `question [Y/n]` in a plain line; Enter alone means yes, Ctrl+C and Ctrl+D mean no."""
        answer = self.answer(f"{question} [Y/n]")
        return answer is not None and answer.strip().lower() in ("", "y", "yes")

    def answer(self, question: str) -> str | None:
        """Return what is typed after a question in a plain line; None for Ctrl+C and Ctrl+D."""
        keyboard.release()
        *rows, last = wrapped(question, get_terminal_size().columns - 1)
        sys.stdout.write("".join(f"{row}\n" for row in rows))
        try:
            with raises():
                return typed(f"{last} ")
        except (EOFError, KeyboardInterrupt):
            sys.stdout.write("\n")
            return None


def typed(prompt: str) -> str:
    """Return a plain line, as `input` does, which does not hear a Ctrl+C that comes between its prompt and its reading.

    Python notes a signal that comes there, and reads on; a byte for it ends the wait, and then its handler is called.
    """
    sys.stdout.write(prompt)
    sys.stdout.flush()
    ear, mouth = os.pipe()
    with open(ear, "rb", buffering=0) as told, rings(mouth):  # noqa: PTH123  (a descriptor)
        while sys.stdin not in select.select([sys.stdin, told], [], [])[0]:
            told.read(1)
    return input()


class PlainReader(Reader):
    """`input()`: no history, no colours, no escape codes."""

    def read(self, given: str = "", *, literal: bool = False, edits: bool = False, thought: str = "") -> Line:
        """Return a line, or a block. What is given cannot be put into it: it is shown, and Enter alone sends it."""
        keyboard.release()
        if given:
            sys.stdout.write("".join(f"{CONTINUED}{row}\n" for row in given.split("\n")))
        try:
            with raises():
                text = typed(PROMPT)
                if given and not text:
                    return Line(given, literal)
                while is_open(text):
                    text += "\n" + typed(CONTINUED)
        except (EOFError, KeyboardInterrupt):
            sys.stdout.write("\n")
            raise
        return Line(text.replace("\r", ""))


@dataclass(frozen=True, slots=True)
class Command:
    """One command: `usage` is what stands after its name, `more` what /help COMMAND adds."""

    name: str
    usage: str
    summary: str
    aliases: tuple[str, ...] = ()
    more: str = ""

    @property
    def synopsis(self) -> str:
        return f"/{self.name} {self.usage}".rstrip()


COMMANDS = (
    Command("help", "[COMMAND]", "this list, or more about one command"),
    Command("exit", "", "leave; the conversation is saved", ("quit", "bye"), "Ctrl+D does the same."),
    Command(
        "clear", "", "start a new conversation", ("new",),
        "The old one is saved: /sessions lists it, /load brings it back. System prompt and settings stay. "
        "If it could not be saved, you are asked first.",
    ),
    Command(
        "regen", "", "answer the last question again", ("retry",), "With another seed, unless /set seed has fixed it."
    ),
    Command("undo", "[N]", "take back the last question and answer, or the last N"),
    Command("redo", "", "bring back what /undo took", (), "Until the next question."),
    Command("edit", "[TEXT]", "change the last question", (), "Without TEXT the question comes back into the line."),
    Command("continue", "", "go on with an answer that was stopped or cut"),
    Command(
        "copy", "[all|code|N]", "the last answer to the clipboard", (),
        "all: the whole conversation; code: the last code block; N: the Nth code block of the last answer.",
    ),
    Command(
        "file", "PATH...", "files, images, audio for the next message", (),
        "@PATH within a message does the same. /file alone lists what waits; /file drop N drops one, /file clear all.",
    ),
    Command("paste", "", "the clipboard's image before the next message", (), "Ctrl+V does the same."),
    Command(
        "system", "[TEXT]", "the system prompt: show it, or set it", (), "@FILE reads a file, /system - removes it."
    ),
    Command("model", "[NAME]", "the model that answers: show it, or load another", (), "The conversation goes on."),
    Command(
        "set", "[KEY [VALUE]]", "settings of the next answers", (),
        f"Keys: {', '.join(CHAT_KEYS)}. 'default' as VALUE takes a setting back.",
    ),
    Command(
        "think", "[on|off|show|hide]", "reasoning before the answer, and whether it is shown", (),
        "Ctrl+T shows or hides a thought while it comes; at the prompt it shows the last one.",
    ),
    Command(
        "schema", "[SCHEMA|off]", "answers as JSON of a schema: show it, or set it", (),
        "SCHEMA is a file, JSON, module:Class of pydantic, or fields such as 'name, age int'.",
    ),
    Command(
        "tools", "[show|on|off NAME]", "what the model may call; switch it", (),
        "show: the last answer's calls in full, as Ctrl+T does at the prompt. NAME is a tool or a server.",
    ),
    Command(
        "draft", "[on|off|N|auto]", "the drafter, live: tokens drafted per round", (),
        "The text is the same either way; compare the speeds. /draft mtp,copy also copies drafts from the text.",
    ),
    Command("stats", "[on|off]", "all figures of the last answer; the line after each"),
    Command("context", "", "what fills the context"),
    Command("save", "[NAME]", "give this session a name"),
    Command("load", "NAME", "go on with another session", (), "NAME is a name, an id or its beginning."),
    Command("sessions", "", "saved conversations"),
    Command("export", "FILE.md|.json", "write the conversation to a file"),
)  # fmt: skip

BY_WORD = {f"/{word}": command for command in COMMANDS for word in (command.name, *command.aliases)}


@dataclass(frozen=True, slots=True)
class Call:
    """A command and what was typed after it, trimmed."""

    command: Command
    argument: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """Something that looks like a command and is none."""

    word: str
    nearest: str | None


@dataclass(frozen=True, slots=True)
class Message:
    """Text for the model, trimmed."""

    text: str


def _exists(word: str) -> bool:
    try:
        return Path(word).exists()
    except OSError:  # a name no file system takes
        return False


def parse(text: str, *, pasted: bool = False, exists: Callable[[str], bool] = _exists) -> Call | Unknown | Message:
    """Return what a line means; `exists` asks the disk about a path.

    Only the exact first word of a typed line counts. A line whose beginning was `pasted` is a message whatever that is,
    and so is one that begins with a path that exists; a space before the slash makes a message of anything.
    """
    if pasted or not text.startswith("/"):
        quoted = None if pasted else unquoted(text)
        return Message(text.strip() if quoted is None else quoted)
    word = text.partition("\n")[0].partition(" ")[0]
    command = BY_WORD.get(word)
    if command is not None:
        return Call(command, text[len(word) :].strip())
    name = word[1:].rstrip("0123456789?!.,:;")  # /undo2 and /help? are meant as commands, too
    if not name.replace("-", "").isalpha() or exists(word):
        return Message(text.strip())
    return Unknown(word, _nearest(word))


def unquoted(text: str) -> str | None:
    '''Return the text between `"""` and `"""`, which may be missing at the end; None if it does not begin so.'''
    start = text.strip()
    if not start.startswith('"""'):
        return None
    return start[3:].removesuffix('"""').strip("\n")


def is_open(text: str) -> bool:
    '''Return whether a `"""` block has begun and not ended: the line goes on.'''
    start = text.strip()
    return start.startswith('"""') and not (len(start) >= 6 and start.endswith('"""'))


def help_of(name: str) -> str:
    """Return what /help says of one command."""
    word = f"/{name.removeprefix('/')}"
    command = BY_WORD.get(word)
    if command is None:
        near = _nearest(word)
        return f"There is no {word}." + (f" Did you mean {near}?" if near else "")
    also = f" Also: {', '.join(f'/{alias}' for alias in command.aliases)}." if command.aliases else ""
    more = f" {command.more}" if command.more else ""
    return f"{command.synopsis}\n  {command.summary[0].upper()}{command.summary[1:]}.{more}{also}"


HELP = [(command.synopsis, command.summary) for command in COMMANDS]
KEYS_HELP = '''
Enter sends, Alt+Enter or Ctrl+J starts a line, """ begins and ends a block
Ctrl+C stops the answer, Ctrl+D leaves, Ctrl+R and arrows search the history
Tab completes, Ctrl+G opens the editor, Ctrl+T shows thought and calls
Ctrl+V puts the clipboard's image before the next message
@path reads a file or folder; a space before / sends it as text'''

PLAIN_KEYS_HELP = '''
Enter sends, """ begins and ends a block
Ctrl+C stops the answer, Ctrl+D leaves
@path reads a file or folder; a space before / sends it as text'''


def _nearest(word: str) -> str | None:
    # Nearer than /Users is to /set: most of a misspelt word is right.
    return nearest(word.lower(), BY_WORD, cutoff=0.7)
