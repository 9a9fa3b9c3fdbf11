"""Calls of tools as a person meets them: in pipes and in a terminal, with a tool server that is a process."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from mlxmtp.app.tools.approval import Approvals
from mlxmtp.app.tools.builtin import builtin
from mlxmtp.app.tools.calls import CallRunner
from mlxmtp.app.tools.chosen import Tools
from mlxmtp.app.tools.toolbox import Tool, Toolbox
from mlxmtp.chat.message import ToolCall
from mlxmtp.cli.calls import agrees, asking, asking_in_chat, request_text
from mlxmtp.cli.repl.chat import ChosenModel
from mlxmtp.cli.terminal.output import Output
from tests.cli.conftest import PATIENCE, Program, Terminal
from tests.cli.talking import Conversing
from tests.serve.running import TEMPLATE, call
from tests.text_checkpoint import write_text_checkpoint

SERVER = Path(__file__).parents[1] / "app" / "raw_server.py"
END = "<|tool_response>"
ECHO, WAIT = call('echo{text:"seven"}') + END, call("wait{}") + END
ANSWER = "That is all.<turn|>"


@pytest.fixture
def program(tmp_path: Path) -> Program:
    home = tmp_path / "home"
    home.mkdir()
    server = {"command": sys.executable, "args": [str(SERVER), f"heard={tmp_path / 'heard'}"]}
    (home / "mcp.json").write_text(json.dumps({"mcpServers": {"raw": server}}))
    (home / "mine.py").write_text("def count(word: str) -> int:\n    return len(word)\n")
    return Program(home, write_text_checkpoint(tmp_path / "model", context=8192, template=TEMPLATE))


def heard(program: Program) -> Path:
    return program.home.parent / "heard"


def strays(program: Program) -> list[str]:
    """Servers of this test that still run."""
    listed = subprocess.run(["ps", "-A", "-ww", "-o", "args="], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if str(heard(program)) in line and "raw_server" in line]


def wait_for_no_strays(program: Program) -> None:
    """One that was ended may still be listed for a moment."""
    deadline = time.monotonic() + PATIENCE
    while left := strays(program):
        assert time.monotonic() < deadline, left
        time.sleep(0.02)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_ask_calls_what_is_allowed_and_only_the_answer_is_on_stdout(program: Program) -> None:
    program.answers = [ECHO, ANSWER]
    done = program.run("ask", "--tools", "raw", "--allow", "raw/echo", "--save", "Say it")
    assert (done.returncode, done.stdout) == (0, b"That is all.\n"), done.stderr
    exported = program.run("sessions", "export", *ids(program)).stdout.decode()
    assert '*(Called echo: {"text": "seven"})*' in exported
    assert "*(echo returned: seven)*" in exported
    wait_for_no_strays(program)


def test_what_a_function_prints_is_not_on_stdout(program: Program) -> None:
    lines = ["import os", 'print("imported")', "def count(word: str) -> int:", '    print("called")']
    lines += ['    os.system("echo child")', "    return len(word)", ""]
    (program.home / "loud.py").write_text("\n".join(lines))
    program.answers = [call('count{word:"seven"}') + END, ANSWER]
    done = program.run("ask", "--functions", "loud.py", "--allow", "loud/count", "Count it")
    assert (done.returncode, done.stdout) == (0, b"That is all.\n"), done.stderr
    assert all(done.stderr.count(one) == 1 for one in (b"imported\n", b"called\n", b"child\n"))


def test_programs_read_of_calls_and_texts_around_them_stand_apart(program: Program) -> None:
    program.answers = [f"Let me ask.{ECHO}", f"\n{ANSWER}"]
    words = ["ask", "--tools", "raw", "--allow", "raw/echo", "Say it"]
    assert program.run(*words).stdout == b"Let me ask.\n\nThat is all.\n"
    events = [json.loads(line) for line in program.run(*words, "--jsonl").stdout.splitlines()]
    assert [kind for kind, _ in groupby(one["type"] for one in events)] == [
        "start", "text", "call", "result", "text", "end",
    ]  # fmt: skip
    texts = "".join(one["text"] for one in events if one["type"] == "text")
    called, result = (one for one in events if one["type"] in ("call", "result"))
    assert (called["name"], called["arguments"]) == ("echo", {"text": "seven"})
    assert (result["id"], result["result"], result["is_error"]) == (called["id"], "seven", False)
    whole = json.loads(program.run(*words, "--json").stdout)
    assert whole["response"] == texts == "Let me ask.\n\nThat is all."
    [one] = whole["calls"]
    assert {key: one[key] for key in ("name", "arguments", "result", "is_error")} == {
        "name": "echo", "arguments": {"text": "seven"}, "result": "seven", "is_error": False,
    }  # fmt: skip


def ids(program: Program) -> list[str]:
    listed = json.loads(program.run("sessions", "--json").stdout)
    return [one["id"] for one in listed["sessions"]]


def test_a_call_is_shown_as_it_is() -> None:
    tool, given = Tool("far", "act", "", {}, lambda *_: ""), {"a\n  safe": "rm \u202eX \u200b\u2028", "b": 'é 中 "'}
    assert request_text(tool, given).split("\n") == [
        "far/act wants to run with",
        r'  a\n  safe: "rm \u202eX \u200b\u2028"',
        '  b: "é 中 \\""',
    ]


def test_ask_without_a_person_refuses_and_says_what_would_allow_it(program: Program) -> None:
    program.answers = [ECHO, ANSWER]
    done = program.run("ask", "--tools", "raw", "Say it")
    assert (done.returncode, done.stdout) == (1, b"That is all.\n")
    assert b"--allow raw/echo allows it" in done.stderr
    assert not heard(program).exists()


def test_ask_does_without_tools_that_do_not_start(program: Program) -> None:
    (program.home / "mcp.json").write_text('{"mcpServers": {"raw": {"command": "no-such-program"}}}')
    program.answers = [ANSWER]
    done = program.run("ask", "--tools", "raw", "Say it")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"no program 'no-such-program'. Try: mlxmtp mcp check raw" in done.stderr
    assert program.run("ask", "Say it").returncode == 0
    assert program.run("ask", "--tools", "row", "Say it").returncode == 2


@pytest.mark.few(2)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_no_server_is_left_behind(program: Program, number: signal.Signals) -> None:
    program.answers = [WAIT, ANSWER]
    running = program.start("ask", "--tools", "raw", "--allow", "raw/*", "Wait")
    wait_for(heard(program))
    assert strays(program), "it runs and is not seen"
    running.send_signal(number)
    running.communicate()
    assert running.returncode == 128 + number
    wait_for_no_strays(program)


def test_a_router_calls_tools_and_stays_with_its_model(program: Program) -> None:
    big = write_text_checkpoint(program.home.parent / "big", context=8192, template=TEMPLATE)
    skill = '[[skill]]\nname = "hard"\npattern = "hard"\nmodel = "big"\n'
    (program.home / "config.toml").write_text(f'[router]\nsmall = "{program.model}"\nbig = "{big}"\n{skill}')
    program.answers, program.names_model = [ECHO, ANSWER], False
    tools = ["--tools", "raw", "--allow", "raw/echo"]
    first = json.loads(program.run("ask", "-m", "auto", *tools, "--save", "--json", "A hard one").stdout)
    assert (first["response"], [one["result"] for one in first["calls"]]) == ("That is all.", ["seven"])
    assert (first["stats"]["answered_by"], first["stats"]["route"]) == (str(big), f"{big}: hard")
    program.answers = [ANSWER]
    second = json.loads(program.run("ask", "-c", "--json", "And now?").stdout)
    assert second["stats"]["route"] == f"{big}: as before"
    wait_for_no_strays(program)


def test_ask_ends_when_it_goes_on_calling(program: Program) -> None:
    program.answers = [call(f'echo{{text:"{number}"}}') + END for number in range(11)]
    done = program.run("ask", "--tools", "raw", "--allow", "raw/echo", "Say it")
    assert done.returncode == 1
    assert b"after 10 rounds" in done.stderr


def test_a_question_in_ask_is_answered_at_the_terminal(program: Program) -> None:
    program.answers = [ECHO, ANSWER]
    terminal = program.terminal("ask", "--tools", "raw", "Say it", columns=100)
    terminal.wait_for("or say why not:")
    terminal.wait_for("raw/echo wants to run with")
    terminal.wait_for('text: "seven"')
    terminal.send("not today\r")
    assert terminal.finish() == 0
    shown = "\n".join(terminal.lines())
    assert 'echo {"text": "seven"} ✗ It was not allowed: not today.' in shown
    assert "That is all." in shown
    assert not heard(program).exists()


class Person(Output):
    """Sits at a terminal that is stdin, and types the next of `answers` once a question is there."""

    def __init__(self, *answers: str) -> None:
        self.descriptor, theirs = os.openpty()
        self.stdin, self.answers = os.fdopen(theirs), [*answers]

    def types(self, keys: str) -> None:
        os.write(self.descriptor, keys.encode())
        assert select.select([self.stdin], [], [], PATIENCE)[0]

    def settle(self) -> None:
        pass

    def line(self, text: str = "") -> None:
        if "?" in text:
            self.types(self.answers.pop(0))

    def read(self, question: str) -> str:
        self.line(question)
        return self.stdin.readline().strip()


@pytest.fixture
def person(monkeypatch: pytest.MonkeyPatch) -> Iterator[Person]:
    there = Person()
    monkeypatch.setattr("sys.stdin", there.stdin)
    yield there
    there.stdin.close()
    os.close(there.descriptor)


@pytest.mark.parametrize("command", ["ask", "chat"])
def test_what_was_typed_before_a_question_allows_no_call(
    command: str, person: Person, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")  # where `chat` reads no keys one by one
    ran: list[str] = []

    def act(given: Mapping[str, Any], _: object) -> str:
        ran.append(given["to"])
        return "Done."

    ask = asking(person) if command == "ask" else asking_in_chat(person.read)
    runner = CallRunner(Toolbox([Tool("far", "act", "", {}, act)]), Approvals(tmp_path / "approvals.json", ask=ask))
    person.types("y\ny\n")
    person.answers = ["y\ny\n", "not that\n"]
    said = runner.carry_out([ToolCall(id=one, name="act", arguments={"to": one}) for one in "ab"])
    assert ran == ["a"]
    assert [one.is_error for one in said] == [False, True]
    assert not person.answers


def test_what_was_typed_before_a_question_sends_no_text(person: Person) -> None:
    person.types("y\n")
    person.answers = ["\n", "y\n"]
    assert [agrees(person, "Send it?") for _ in range(2)] == [False, True]


def test_text_before_a_question_in_ask_is_drawn_once(program: Program) -> None:
    program.answers = [f"Let me **look**.{ECHO}", ANSWER]
    terminal = program.terminal("ask", "--tools", "raw", "Say it", columns=100)
    terminal.wait_for("or say why not:")
    terminal.wait_until("lines of their own", lambda lines: {"Let me look.", "raw/echo wants to run with"} <= {*lines})
    terminal.send("y\r")
    assert terminal.finish() == 0
    shown = terminal.lines()
    assert shown.count("Let me look.") == 1
    assert shown.count("That is all.") == 1
    assert sum("or say why not:" in line for line in shown) == 1


def talk(program: Program, *args: str) -> Terminal:
    terminal = program.terminal("chat", "--tools", "raw,calculator", *args, columns=100, rows=40)
    terminal.wait_until("the prompt", lambda lines: lines[-1:] == [">"])
    return terminal


def ask(terminal: Terminal, text: str) -> None:
    terminal.send(f"{text}\r")


def prompts(terminal: Terminal, count: int) -> None:
    """Wait for the prompt behind that many answers with their figures."""
    terminal.wait_until(
        f"answer {count}", lambda lines: lines[-1] == ">" and sum("tok/s" in line for line in lines) >= count
    )


def test_chat_asks_and_remembers_as_it_was_told(program: Program) -> None:
    program.answers = [part for _ in range(4) for part in (ECHO, ANSWER)]
    terminal = talk(program)
    ask(terminal, "One")
    terminal.wait_for("or say why not:")
    terminal.send("y\r")
    prompts(terminal, 1)
    terminal.wait_for('echo {"text": "seven"} → seven')
    ask(terminal, "Two")
    terminal.wait_until("a second question", lambda lines: sum("or say why not:" in line for line in lines) == 2)
    terminal.send("c\r")
    prompts(terminal, 2)
    ask(terminal, "Three")
    prompts(terminal, 3)
    terminal.send("\x14")  # Ctrl+T
    terminal.wait_until("the call in full", lambda lines: "seven" in lines)
    ask(terminal, "/clear")
    terminal.wait_for("A new conversation.")
    ask(terminal, "Four")
    terminal.wait_until("a third question", lambda lines: sum("or say why not:" in line for line in lines) == 3)
    terminal.send("a\r")
    prompts(terminal, 4)
    kept = json.loads((program.home / "approvals.json").read_text())
    assert [*kept] == ["raw/echo"]
    ask(terminal, "/tools off raw")
    terminal.wait_for("echo, wait, pid: off.")
    ask(terminal, "/export talk.md")
    terminal.wait_for("Written to")
    terminal.send("\x04")
    assert terminal.finish() == 0
    assert '*(Called echo: {"text": "seven"})*' in (program.home / "talk.md").read_text()
    wait_for_no_strays(program)


def test_ctrl_c_ends_a_running_tool_and_keeps_the_turn(program: Program) -> None:
    program.answers = [WAIT, ECHO, ANSWER]
    terminal = talk(program, "--allow", "raw/*")
    ask(terminal, "Wait")
    terminal.wait_until("the running tool", lambda lines: re.search(r"wait, \d+ s", "\n".join(lines)) is not None)
    terminal.send("\x03")
    terminal.wait_for("wait {} ✗ The person stopped it.")
    terminal.wait_until("the prompt", lambda lines: lines[-1] == ">")
    ask(terminal, "Go on")
    terminal.wait_for('echo {"text": "seven"} → seven')
    terminal.wait_for("That is all.")
    prompts(terminal, 1)
    terminal.send("\x04")
    assert terminal.finish() == 0
    wait_for_no_strays(program)


def test_a_closed_window_leaves_no_server(program: Program) -> None:
    program.answers = [WAIT]
    terminal = talk(program, "--allow", "raw/*")
    ask(terminal, "Wait")
    wait_for(heard(program))
    terminal.process.send_signal(signal.SIGHUP)
    terminal.finish()
    wait_for_no_strays(program)


def test_check_tells_of_every_server_that_is_not_off(program: Program) -> None:
    servers = json.loads((program.home / "mcp.json").read_text())["mcpServers"]
    keyed, off = {"command": "x", "env": {"KEY": "${MISSING}"}}, {"command": "no-such-program", "disabled": True}
    (program.home / "mcp.json").write_text(json.dumps({"mcpServers": {"keyed": keyed, "off": off, **servers}}))
    checked = program.run("mcp", "check")
    assert checked.returncode == 1, checked.stderr
    assert b"keyed: needs MISSING in the environment\nraw (raw 0): 3 tools in" in checked.stdout
    assert b"Error: keyed: no tools." in checked.stderr
    assert b"off: there is no program" in program.run("mcp", "check", "off").stdout
    (program.home / "mcp.json").write_text(json.dumps({"mcpServers": {"off": off}}))
    assert b"is to be started" in program.run("mcp", "check").stderr


def test_servers_are_named_listed_checked_and_forgotten(program: Program) -> None:
    added = program.run("mcp", "add", "-e", "KEY=${HOME}", "more", sys.executable, str(SERVER), "injecting")
    assert (added.returncode, added.stdout) == (0, b""), added.stderr
    assert b"mlxmtp mcp check more" in added.stderr
    assert program.run("mcp", "add", "more", "x").returncode == 2
    assert program.run("mcp", "add", "--header", "A: b", "far", "https://far.example/mcp").returncode == 0
    (program.home / "approvals.json").write_text('{"far/look": "a hash", "raw/echo": "another"}')
    assert program.run("mcp", "add", "--force", "far", "https://far.example/mcp").returncode == 0
    assert json.loads((program.home / "approvals.json").read_text()) == {"raw/echo": "another"}
    listed = program.run("mcp", "ls").stdout.decode()
    assert program.run("mcp", "--json").stdout == program.run("mcp", "ls", "--json").stdout
    assert b"mlxmtp mcp ls --json" in program.run("mcp", "--json", "ls").stderr
    assert [line.split("\t")[0] for line in listed.splitlines()] == ["NAME", "raw", "more", "far"]
    checked = program.run("mcp", "check", "raw", "more")
    assert checked.returncode == 0, checked.stderr
    assert "raw (raw 0): 3 tools in" in checked.stdout.decode()
    assert "left out: 'bad[2Jname' (no usable name)" in checked.stdout.decode()
    assert program.run("mcp", "check", "nothing").returncode == 2
    assert program.run("mcp", "rm", "raw").returncode == 0
    assert program.run("mcp", "rm", "raw").returncode == 2
    wait_for_no_strays(program)


def test_a_tool_that_does_not_come_back_does_not_keep_the_process() -> None:
    code = """
import time
from itertools import groupby
from pathlib import Path
from mlxmtp.app.tools.approval import Approvals
from mlxmtp.app.tools.calls import CallRunner
from mlxmtp.app.tools.functions import tool_of
from mlxmtp.app.tools.toolbox import Toolbox
from mlxmtp.chat.message import ToolCall

def sleeps() -> str:
    time.sleep(600)
    return ""

box = Toolbox([tool_of(sleeps)])
runner = CallRunner(box, Approvals(Path("none"), ["functions/*"]), seconds=0.1)
[result] = runner.carry_out([ToolCall(id="1", name="sleeps", arguments={})])
assert result.is_error
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr


def test_the_vocabulary_for_calls_is_ready_before_the_first_question(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    talking = Conversing(tmp_path, model=program.model)
    monkeypatch.setattr(ChosenModel, "load", lambda *_, **__: None)  # it is there
    target = talking.talk.model.target
    assert target is not None
    talking.talk.load(target)
    assert talking.worker.idle(PATIENCE)
    assert not talking.model._tables
    talking.talk.tools = Tools(Approvals(tmp_path / "approvals.json"), own=builtin("time"))
    talking.talk.load(target)
    assert talking.worker.idle(PATIENCE)
    assert talking.model._tables
