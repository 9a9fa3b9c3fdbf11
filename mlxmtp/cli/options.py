"""From flags to settings and streams: options from the table of settings, those that commands share, `begin`."""

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import wraps
from typing import Annotated, Any

import typer
from typer import Context, Option
from typer.core import TyperCommand

from mlxmtp.cli.terminal import keyboard
from mlxmtp.cli.terminal.output import Look, Output
from mlxmtp.cli.terminal.signals import raises
from mlxmtp.environment import draws_pictures
from mlxmtp.errors import UsageError
from mlxmtp.settings import EVERY, Loaded, Rule, Setting, Settings, checked, load_settings, number_or_text, table_of

Command = Callable[..., None]

_MEANT = str.maketrans(dict.fromkeys("\\`$\"'", " "))


def takes(command: str, layout: str, table: type = Settings) -> Callable[[Command], Command]:
    """Add the settings that a command takes to the options of its function.

    `layout` is the order of its help: settings, sections of them, the function's own parameters, and `...` for those of
    its own that are not named. The settings' values do not reach the function: those that were given go into `ctx.obj`,
    over those that stood before the command (`mlxmtp --no-color ls`), for `begin`. A Rule beside an Option of the
    function's own refuses values in the words of the table.
    """
    entries = table_of(table)

    def decorate(function: Command) -> Command:
        signature = inspect.signature(function, eval_str=True)
        context, *own = (one.replace(kind=one.KEYWORD_ONLY) for one in signature.parameters.values())
        for one in own:
            _obey(*getattr(one.annotation, "__metadata__", (None,)))
        parameters = list(arranged({one.name: one for one in own}))
        taken = {one.name for one in parameters if one not in own}
        assert {name for name in taken if entries[name].commands != EVERY} == {
            name for name, one in entries.items() if command in one.commands
        }, f"the table of settings and the layout of {command} differ"

        @wraps(function)
        def run(ctx: Context, **values: Any) -> None:
            given = {name: read(name, value) for name, value in values.items() if name in taken}
            given = {name: value for name, value in given.items() if value not in (None, [])}
            ctx.ensure_object(dict).update(given)
            function(ctx, **{name: value for name, value in values.items() if name not in taken})

        run.__annotations__ = {}
        run.__signature__ = signature.replace(parameters=[context, *parameters])  # type: ignore[attr-defined]
        return run

    def read(name: str, value: Any) -> Any:
        return number_or_text(value) if entries[name].rule.reads in (int, float) and value is not None else value

    def arranged(own: dict[str, inspect.Parameter]) -> Iterator[inspect.Parameter]:
        words = layout.split()
        for word in words:
            if word == "...":
                yield from (one for name, one in own.items() if name not in words)
            elif word in own:
                yield own[word]
            else:
                section = [name for name, one in entries.items() if one.section == word and command in one.commands]
                yield from map(option, section or [word])

    def option(name: str) -> inspect.Parameter:
        one = entries[name]
        completion = model_names if name in ("model", "draft_model") else None
        default = Option(
            None, *one.flags, metavar=one.metavar, help=one.help, show_default=False, autocompletion=completion
        )
        reads = str if one.rule.reads in (int, float) else one.rule.reads  # the table says what is no number
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=reads | None)

    return decorate


def _obey(option: Any, rule: Rule | None = None) -> None:
    """Let a command's own option read what the rule beside it allows."""
    if rule is None:
        return
    words = (option.default, *option.param_decls)  # typer takes the first one for a default until it has a parameter
    flag = next(word for word in words if word.startswith("--"))

    def read(value: Any) -> Any:
        said = number_or_text(value) if isinstance(value, str) and rule.reads in (int, float) else value
        return checked(Setting(flag, rule, "", ""), said, flag, UsageError)

    option.parser = read


def begin(ctx: Context, *, repairs: bool = False) -> tuple[Loaded, Output]:
    """Return settings after precedence and the streams to write to; warnings of the config file are said.

    A command that `repairs` does without a config file that is wrong. Raises ConfigError elsewhere.
    """
    loaded = load_settings(ctx.ensure_object(dict), tolerant=repairs)
    settings = loaded.settings
    still, pictures = bool(settings.plain), draws_pictures()
    look = Look(bool(settings.quiet), not settings.no_color, loaded.dumb_terminal, still, pictures)
    out = Output.standard(look)
    for warning in loaded.warnings:
        out.note(warning)
    return loaded, out


def can_ask(out: Output) -> bool:
    """Say whether somebody is there to answer a question: both stdin and stderr are terminals."""
    return sys.stdin is not None and sys.stdin.isatty() and out.error_terminal


def confirmed(out: Output, question: str, *, default: bool) -> bool:
    """Ask at the terminal. Raises typer.Abort for Ctrl-C and Ctrl-D, with the shell's prompt on a row of its own."""
    out.settle()
    keyboard.release()
    try:
        with raises():
            return typer.confirm(question, default=default, err=True)
    except typer.Abort:
        out.line("")
        raise


def model_names(incomplete: str) -> list[str]:
    """Return the models that begin like that: those here and on the hub, aliases of one's own, folders."""
    from mlxmtp.app.endpoints import others_of
    from mlxmtp.app.models import Catalog
    from mlxmtp.files import expand_home, is_path

    loaded = load_settings({}, tolerant=True)
    names = [*(model.name for model in Catalog(loaded).listing(every=True).models), *loaded.aliases, *others_of(loaded)]
    if is_path(incomplete):
        folder = incomplete.rpartition("/")[0] + "/" if "/" in incomplete else ""
        with suppress(OSError):  # there is no such folder, or nobody may look into it
            names += [f"{folder}{one.name}/" for one in expand_home(folder or ".").iterdir() if one.is_dir()]
    return _offered(names, incomplete)


def _offered(names: Iterable[str], incomplete: str) -> list[str]:
    """Return the names that begin like that and mean nothing else to a shell."""
    return [name for name in names if name.startswith(incomplete) and name == _plain(name)]


def _plain(text: str) -> str:
    """Return a text without what a shell runs or ends a word at: zsh reads what completion offers once more."""
    return text.translate(_MEANT)


def removable_names(incomplete: str) -> list[str]:
    """Return the models here that begin like that and are no part of the program."""
    from mlxmtp.app.models import BUILT_IN, Catalog

    here = Catalog(load_settings({}, tolerant=True)).listing().models
    return _offered((model.name for model in here if model.name != BUILT_IN), incomplete)


def session_ids(incomplete: str) -> list[tuple[str, str]]:
    """Return ids and names of sessions that begin like that, with their titles, newest first."""
    from mlxmtp.chat.sessions import Sessions
    from mlxmtp.settings import find_places

    sessions = Sessions(find_places().sessions).listing().sessions
    words = [(one.name if one.name and one.name == _plain(one.name) else one.id, one) for one in sessions]
    named = [(word, _plain(one.title)) for word, one in words if word.startswith(incomplete)]
    return named or [(one.id, _plain(one.title)) for one in sessions if one.id.startswith(incomplete)]


ToolWords = Annotated[
    list[str] | None,
    Option("--tools", metavar="NAME", help="Let it use time, calculator, files=FOLDER, fetch, a server of `mcp`."),
]
_RESUME = "Continue another session: id or name; chat lists them."
Continue = Annotated[bool, Option("-c", "--continue", help="Continue the latest session.")]
Resume = Annotated[str | None, Option("-r", "--resume", metavar="ID", help=_RESUME, autocompletion=session_ids)]
Json = Annotated[bool, Option("--json", help="As JSON.")]
Unasked = Annotated[bool, Option("-y", "--yes", help="Do not ask.")]


class LoneResume(TyperCommand):
    """A command whose -r may stand alone, which typer has no way to say: an empty ID means "let me choose"."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the empty ID where none follows."""
        words = [*args, "-"]
        for at in reversed(range(len(args))):
            if words[at] in ("-r", "--resume") and words[at + 1].startswith("-"):
                words.insert(at + 1, "")
        return super().parse_args(ctx, words[:-1])
