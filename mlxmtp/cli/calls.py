"""Calls of tools on a terminal: the question whether one may run, and the line that stays of it."""

from __future__ import annotations

import json
import signal
import sys
import termios
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from mlxmtp.app.tools.approval import AskPerson, Decision, Grant
from mlxmtp.app.tools.toolbox import Tool
from mlxmtp.chat.history import title_of
from mlxmtp.chat.message import ToolCall, ToolResult, text_of
from mlxmtp.cli.terminal import keyboard, signals
from mlxmtp.cli.terminal.output import Output
from mlxmtp.environment import dumb_terminal

if TYPE_CHECKING:
    from mlxmtp.app.tools.mcp_servers import Servers  # which imports asyncio

_COLUMNS = 60  # of the arguments, and of the result, in the line of a call
_GRANTS: dict[str, Grant] = {
    **dict.fromkeys(("y", "yes"), "once"),
    **dict.fromkeys(("c", "conversation"), "conversation"),
    **dict.fromkeys(("a", "always"), "always"),
    **dict.fromkeys(("", "n", "no"), "no"),
}
QUESTION = "Run it? [y]es, in this [c]onversation, [a]lways, [N]o, or say why not:"
_ONCE = "Run it? [y]es, [N]o, or say why not:"


def question_about(tool: Tool) -> str:
    """Return the question behind `request_text`."""
    return _ONCE if tool.singly else QUESTION


def request_text(tool: Tool, arguments: Mapping[str, Any]) -> str:
    """Return a call in full: server, tool, and every argument as it is."""
    shown = [f"  {_as_json(key)[1:-1]}: {_as_json(value)}" for key, value in arguments.items()]
    return "\n".join([f"{tool.label} wants to run" + (" with" if shown else ", without arguments"), *shown])


def _as_json(value: Any) -> str:
    """Return JSON with every character escaped that is not seen, or that changes the order of what is."""
    text = json.dumps(value, ensure_ascii=False)
    return "".join(one if one == " " or one.isprintable() else json.dumps(one)[1:-1] for one in text)


def decision_of(answer: str | None) -> Decision:
    """Return what a person typed as a decision; None is Ctrl+C or Ctrl+D."""
    if answer is None:
        return Decision("no")
    said = answer.strip()
    grant = _GRANTS.get(said.lower())
    return Decision("no", said) if grant is None else Decision(grant)


def call_line(call: ToolCall, result: ToolResult) -> str:
    """Return one line: `calculate {"expression": "1+1"} → 2`."""
    arguments = title_of(_as_json(call.arguments), _COLUMNS)
    outcome = title_of(text_of(result.content).strip() or "(nothing)", _COLUMNS)
    return f"{title_of(call.name)} {arguments} {'✗' if result.is_error else '→'} {outcome}"


def progress_line(call: ToolCall, seconds: float, told: str) -> str:
    """Return what is shown while a call runs: `fetch, 12 s, 3 of 9 pages`."""
    return f"{title_of(call.name)}, {seconds:.0f} s" + (f", {title_of(told, _COLUMNS)}" if told else "")


def call_in_full(call: ToolCall, result: ToolResult) -> str:
    """Return a call with all its arguments and its result."""
    return f"{call.name} {_as_json(call.arguments)}\n{text_of(result.content)}"


def asking(out: Output) -> AskPerson:
    """Return the question of `ask`, on stderr, answered at the terminal of stdin."""

    def ask(tool: Tool, arguments: Mapping[str, Any]) -> Decision:
        out.settle()
        keyboard.release()
        _drop_typed()
        out.line(request_text(tool, arguments))
        out.line(question_about(tool))
        answer = sys.stdin.readline()
        return decision_of(answer.rstrip("\n") if answer else None)

    return ask


def agrees(out: Output, question: str) -> bool:
    """Ask on stderr, and return whether the answer at the terminal is a yes; Enter alone is none."""
    out.settle()
    keyboard.release()
    _drop_typed()
    out.line(f"{question} [y/N]")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def asking_in_chat(read: Callable[[str], str | None]) -> AskPerson:
    """Return the question of `chat`; `read` shows it and returns the answer, None for Ctrl+C."""

    def ask(tool: Tool, arguments: Mapping[str, Any]) -> Decision:
        if dumb_terminal():  # elsewhere `read` keeps it for the next line
            _drop_typed()
        return decision_of(read(f"{request_text(tool, arguments)}\n{question_about(tool)}"))

    return ask


def _drop_typed() -> None:
    """Forget what was typed before a question was there: it is no answer to it."""
    with suppress(termios.error, OSError):  # no terminal
        termios.tcflush(sys.stdin, termios.TCIFLUSH)


@contextmanager
def in_use(servers: Servers | None) -> Iterator[None]:
    """End tool servers with the command, however it ends."""
    if servers is None:
        yield
        return
    signals.before_the_end.append(servers.kill)
    try:
        with signals.handled({signal.SIGTERM: signals.end, signal.SIGHUP: signals.end}):
            yield
    finally:
        servers.close()
        signals.before_the_end.remove(servers.kill)
