"""The start of the command line, and the one place where errors become exit codes.

    0    an answer (also one cut at --max-tokens)
    1    failure: LoadError, MlxmtpError, and what nobody expected
    2    usage: UsageError, ConfigError, ContextOverflow, and what typer refuses
    3    ModelNotFound: not on this machine, and nobody to ask
    130  Ctrl-C
    141  the reader of stdout is gone

Nothing is imported at the top that takes time: Ctrl-C must end quietly from the first moment on.
"""

import os
import sys
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from io import StringIO
from typing import Any

from mlxmtp.cli.terminal import keyboard, signals

INTERRUPTED = 130
READER_GONE = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code; `argv` is without the program's name."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        signals.end_on_ctrl_c()
        _open_missing_descriptors()
    try:
        _greet(arguments)
        code = _run(arguments)
    except KeyboardInterrupt:
        code = INTERRUPTED
    if code == INTERRUPTED:
        keyboard.modes.restore()
    else:
        keyboard.release()
    if argv is None:
        # Here and now: the interpreter would tear down threads in the middle of foreign code, which can end in a crash.
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                if stream is not None:
                    stream.flush()
        os._exit(code)
    return code


def _open_missing_descriptors() -> None:
    """Put the null device where stdin, stdout or stderr was closed: the next file opened would take its number."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _greet(arguments: Sequence[str]) -> None:
    """Write the conversation's first line: here, because what reads the flags takes two tenths of a second."""
    command = next((one for one in arguments if not one.startswith("-")), None)
    if command != "chat" or {"-h", "--help", "--version"} & set(arguments):
        return
    if sys.stdin is not None and sys.stdin.isatty() and sys.stdout is not None and sys.stdout.isatty():
        keyboard.hold()  # first: who sees the line may type, and an Enter in line mode would be none
        sys.stdout.write("mlxmtp chat: /help, Ctrl+D to leave\n")
        sys.stdout.flush()


def _run(arguments: list[str]) -> int:
    from mlxmtp.cli.terminal.output import ReaderGone, abandon
    from mlxmtp.errors import MlxmtpError

    given: dict[str, object] = {}  # commands put their flags here
    try:
        from mlxmtp.cli.program import app

        with _words_of_bash(os.environ):
            result = app(args=arguments, prog_name="mlxmtp", standalone_mode=False, obj=given)
        return result if isinstance(result, int) else 0
    except ReaderGone:
        return READER_GONE
    except MlxmtpError as error:
        _explain(error, given)
        return error.exit_code
    except SystemExit as error:  # typer leaves this way after shell completion, and when the reader of --help is gone
        if sys.stdout is not None and isinstance(error.__context__, BrokenPipeError):
            abandon(sys.stdout)
            return READER_GONE
        return error.code if isinstance(error.code, int) else 0
    except Exception as error:  # noqa: BLE001  (the last frame: a person gets a sentence, never a traceback)
        return _refusal(error, given)


@contextmanager
def _words_of_bash(environ: MutableMapping[str, str]) -> Iterator[None]:
    """Let typer complete `e2b:q` as one word within it: bash makes three of it and wants what replaces the last.

    Bash 3.2, which macOS has, makes one word of it and replaces what follows the last colon all the same.
    """
    taken = environ.get("COMP_WORDS", "").split("\n")[: int(environ.get("COMP_CWORD", "0")) + 1]
    if environ.get("_MLXMTP_COMPLETE") != "complete_bash" or not any(":" in word for word in taken):
        yield
        return
    words: list[str] = []
    for before, word in zip(["", *taken], taken, strict=False):
        if words and ":" in (before, word):
            words[-1] += word
        else:
            words.append(word)
    environ.update(COMP_WORDS="\n".join(words), COMP_CWORD=str(len(words) - 1))
    replaced_in_part = ":" in taken[-2:] or (sys.platform == "darwin" and ":" in taken[-1])
    known = words[-1][: words[-1].rfind(":") + 1] if replaced_in_part else ""
    found = StringIO()
    try:
        with redirect_stdout(found):
            yield
    finally:
        sys.stdout.write("".join(line.removeprefix(known) for line in found.getvalue().splitlines(keepends=True)))


def _refusal(error: Exception, given: Mapping[str, object]) -> int:
    """Explain typer's own errors, and those that nobody expected."""
    import typer

    if isinstance(error, typer.Abort):
        return INTERRUPTED
    if isinstance(error, typer.TyperException):
        error.show()  # type: ignore[attr-defined]  # prints the usage of the command it belongs to
        _point_the_way(error)
        return error.exit_code
    _explain(error, given)
    return 1


def _point_the_way(error: Any) -> None:
    """Name the command that was meant, where typer only says that there is none."""
    import re

    from mlxmtp.cli.terminal.output import Output

    message, ctx = error.format_message(), getattr(error, "ctx", None)
    missing = re.match(r"No such (command|option):? '?([^'(]*)", message)
    if missing is None or ctx is None:
        return
    kind, name = missing.groups()
    if kind == "command" and ctx.command_path == "mlxmtp config":
        hint = "The settings are changed in an editor: mlxmtp config edit"
    elif kind == "command" and ctx.command_path == "mlxmtp" and name == "help":
        hint = "Help is an option, of every command, too: mlxmtp -h, mlxmtp ask -h"
    elif kind == "command" and ctx.command_path == "mlxmtp" and "Did you mean" not in message:
        hint = f'To ask something: mlxmtp ask "{name}"'
    elif kind == "option" and ctx.command_path == "mlxmtp ask" and (" " in name.strip() or "Possible" not in message):
        hint = 'A question that begins with a dash goes behind two: mlxmtp ask -- "- one item"'
    else:
        return
    Output.standard().line(hint)


def _explain(error: Exception, given: Mapping[str, object]) -> None:
    from mlxmtp.cli.terminal.output import Output, explain

    explain(error, Output.standard(), debug=bool(given.get("debug")))
