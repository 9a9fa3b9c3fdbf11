"""Tool servers: what they offer and answer over pipes and HTTP, that bad ones harm nothing, and that none is left."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain, count
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import uvicorn

from mlxmtp.app.tools import mcp_servers
from mlxmtp.app.tools.approval import Approvals, Decision
from mlxmtp.app.tools.calls import CallRunner
from mlxmtp.app.tools.chosen import Tools
from mlxmtp.app.tools.mcp_servers import Servers
from mlxmtp.app.tools.server_list import ServerEntry, ServerList
from mlxmtp.app.tools.toolbox import LONGEST
from mlxmtp.chat.message import ToolCall, text_of
from mlxmtp.engine.declarations import declaration
from mlxmtp.environment import with_variables
from mlxmtp.errors import ConfigError, UsageError
from tests.app.faulty import http, peer, refused

HERE = Path(__file__).parent
PATIENCE = 120.0


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let servers take the time that a busy machine needs."""
    monkeypatch.setattr(mcp_servers, "START", PATIENCE)
    monkeypatch.setattr(mcp_servers, "RENEW", PATIENCE)


def raw(*manners: str, name: str = "raw") -> ServerEntry:
    return ServerEntry(name, sys.executable, (str(HERE / "raw_server.py"), *manners))


def held_up(first: str) -> ServerEntry:
    """A server that ends at each call of `echo`, behind what a shell does first at every start."""
    return ServerEntry("odd", "sh", ("-c", f'{first}; exec "$@"', "sh", *(raw().command, *raw("dies").args)))


@contextmanager
def using(*entries: ServerEntry, allow: Sequence[str] = ("*",), ask: Any = None, folder: Path) -> Iterator[Tools]:
    """Tools of servers, all of them allowed unless it is said which."""
    named = [f"{one.name}/*" for one in entries] if allow == ("*",) else allow
    servers = Servers(entries)
    try:
        yield Tools(Approvals(folder / "approvals.json", named, ask), servers=servers)
    finally:
        servers.close()
        servers._thread.join(PATIENCE)  # `close` does not wait for what a busy machine is slow to end
        assert not servers._thread.is_alive()


def called(
    tools: Tools,
    name: str,
    limit: float = PATIENCE,
    stopped: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
    **arguments: Any,
) -> str:
    """What the model reads of one call."""
    runner = CallRunner(tools.box, tools.approvals, seconds=limit, stopped=stopped, clock=clock)
    [result] = runner.carry_out([ToolCall(id="call_1", name=name, arguments=arguments)])
    return text_of(result.content)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def gone(pid: int) -> bool:
    """Whether a process is no more, or only its entry is left."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return False


class TestList:
    @pytest.fixture
    def servers(self, tmp_path: Path) -> ServerList:
        return ServerList(tmp_path / "mcp.json")

    def test_the_usual_form_is_read_and_what_it_says_about_trust_is_not(self, servers: ServerList) -> None:
        servers.file.write_text(
            '{"mcpServers": {"a": {"command": "npx", "args": ["-y", "x"], "env": {"K": "v"}, "alwaysAllow": ["*"],'
            ' "trust": true, "type": "stdio"}, "b": {"type": "http", "url": "https://b.example/mcp",'
            ' "headers": {"X": "y"}, "disabled": true}}, "other": 1}'
        )
        a, b = servers.entries()
        assert (a.shown, a.env, b.url, b.headers, b.off) == (
            "npx -y x", {"K": "v"}, "https://b.example/mcp", {"X": "y"}, True,
        )  # fmt: skip
        servers.add(ServerEntry("c", "run", ("it",)))
        servers.remove("a")
        assert [one.name for one in servers.entries()] == ["b", "c"]
        assert '"other": 1' in servers.file.read_text()
        assert servers.file.stat().st_mode & 0o077 == 0

    def test_no_file_is_no_server(self, servers: ServerList) -> None:
        assert servers.entries() == []
        with pytest.raises(UsageError, match="no tool server 'a': there are none"):
            servers.remove("a")

    @pytest.mark.parametrize(
        ("text", "wrong"),
        [
            ("{", "cannot be read"),
            ("[" * 100_000, "cannot be read"),
            ("[]", "must be of the form"),
            ('{"mcpServers": []}', "must be of the form"),
            ('{"mcpServers": {"a": 1}}', "must be an object"),
            ('{"mcpServers": {"a": {}}}', "needs a command or a url"),
            ('{"mcpServers": {"a": {"command": "x", "url": "http://x"}}}', "not both"),
            ('{"mcpServers": {"a": {"command": 1}}}', "no usable command"),
            ('{"mcpServers": {"a": {"command": "x", "args": "y"}}}', "no usable args"),
            ('{"mcpServers": {"a": {"command": "x", "args": [1]}}}', "no usable args"),
            ('{"mcpServers": {"a": {"command": "x", "env": {"K": 1}}}}', "no usable env"),
            ('{"mcpServers": {"a": {"url": "file:///etc/passwd"}}}', "must begin with http"),
            ('{"mcpServers": {"a": {"type": "sse", "url": "http://x"}}}', "SSE"),
            ('{"mcpServers": {"a b": {"command": "x"}}}', "cannot be called 'a b'"),
            ('{"mcpServers": {"builtin": {"command": "x"}}}', "cannot be called 'builtin'"),
        ],
    )
    def test_a_file_that_cannot_be_used_is_refused_in_a_sentence(
        self, servers: ServerList, text: str, wrong: str
    ) -> None:
        servers.file.write_text(text)
        with pytest.raises(ConfigError, match=wrong):
            servers.entries()

    def test_keys_come_from_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TOKEN", "t0")
        monkeypatch.delenv("MISSING", raising=False)
        entry = ServerEntry("a", url="http://x/${MISSING:-mcp}", headers={"Authorization": "Bearer ${TOKEN}"})
        assert entry.filled().headers == {"Authorization": "Bearer t0"}
        assert entry.filled().url == "http://x/mcp"
        with pytest.raises(ConfigError, match="needs MISSING in the environment"):
            ServerEntry("a", "x", ("${MISSING}",)).filled()
        there = ServerEntry("a", "x", ("${TOKEN}",), cwd="/in/${TOKEN}").filled()
        assert (there.cwd, there.origin) == ("/in/t0", "x '${TOKEN}' in /in/${TOKEN}"), "no key is hashed"


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n", " "])
def test_what_ends_the_line_of_a_key_is_no_part_of_it(monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    monkeypatch.setenv("KEY", f"s3cret{end}")
    entry = ServerEntry("a", url="http://x/mcp", headers={"Authorization": "Bearer ${KEY}", "Empty": ""})
    assert entry.filled().headers == {"Authorization": "Bearer s3cret", "Empty": ""}


@pytest.mark.parametrize("inside", ["\r\nX: y", "\n", "\r", "\0", "\x1b[2J", "\x7f", "ü", "\u2028"])
def test_a_header_that_no_header_holds_is_refused_without_its_value(
    monkeypatch: pytest.MonkeyPatch, inside: str
) -> None:
    monkeypatch.setattr(os, "environ", {"KEY": f"s3c{inside}ret"})
    monkeypatch.setattr(with_variables, "__defaults__", (os.environ,))
    entry = ServerEntry("a", url="http://x/mcp", headers={"Authorization": "Bearer ${KEY}"})
    with pytest.raises(ConfigError, match="The header Authorization of the tool server 'a' has a line break") as caught:
        entry.filled()
    assert "s3c" not in str(caught.value)
    assert "ret" not in str(caught.value)


def test_without_the_library_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcp_servers, "installed_version", lambda package, missing="": "1.12.4")
    with pytest.raises(UsageError, match=r"mcp, 2.3 or newer. Run: pip install 'mlxmtp\[mcp\]'"):
        Servers([raw()])


class TestCalls:
    def test_a_servers_tools_are_listed_called_and_gone_with_it(self, tmp_path: Path) -> None:
        with using(raw("media"), folder=tmp_path) as tools:
            assert tools.renew() == []
            assert [*tools.box.tools] == ["echo", "wait", "pid"]
            assert tools.declarations[0]["function"]["description"] == "Echo a text."
            assert called(tools, "echo", text="a\nb") == (
                "a\nb\n[image: image/png]\ninside\n[resource_link: file:///b]"
            )  # fmt: skip
            pid = int(called(tools, "pid").split("\n")[0])
            assert not gone(pid)
        assert gone(pid)

    def test_one_without_its_variable_keeps_no_other_from_starting(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("MISSING", raising=False)
        with using(ServerEntry("keyed", "x", ("${MISSING}",)), raw(), folder=tmp_path) as tools:
            assert "'keyed' does not work: needs MISSING in the environment." in tools.renew()[0]
            assert [*tools.box.tools] == ["echo", "wait", "pid"]

    def test_a_schema_that_is_too_large_is_left_out_without_being_followed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        followed: list[str] = []

        def declare(name: str, *rest: Any) -> Any:
            followed.append(name)
            return declaration(name, *rest)

        monkeypatch.setattr(mcp_servers, "declaration", declare)
        with using(raw("deep"), folder=tmp_path) as tools:
            tools.renew()
            assert tools.servers is not None
            [server] = tools.servers.all
            assert server.left_out == [f"{name} (its schema is too large)" for name in ("deep", "wide")]
            assert [*tools.box.tools] == ["echo", "wait", "pid"]
        assert "wide" not in followed
        assert "echo" in followed

    def test_arguments_that_no_call_can_have_are_said(self, tmp_path: Path) -> None:
        with using(raw("brackets"), folder=tmp_path) as tools:
            assert tools.renew() == [
                "raw offers arguments of echo that no call can have (ids[]), left out.",
                "raw offers find (no call can have its arguments ids[]), left out.",
                "raw offers tag (no call can have its arguments xml:lang), left out.",
            ]
            assert [*tools.box.tools] == ["echo", "wait", "pid"]
            assert called(tools, "echo", text="x") == "x"

    def test_two_servers_with_the_same_tools_are_told_apart(self, tmp_path: Path) -> None:
        with using(raw(), raw(name="other"), folder=tmp_path) as tools:
            tools.renew()
            assert {"echo", "other.echo"} <= {*tools.box.tools}
            assert called(tools, "pid") != called(tools, "other.pid")
            tools.box.switch("other", on=False)
            assert tools.renew() == []
            assert len(tools.declarations) == 3

    def test_nothing_runs_without_approval_and_the_question_has_the_whole_call(self, tmp_path: Path) -> None:
        asked: list[Any] = []

        def ask(tool: Any, given: Any) -> Decision:
            asked.append((tool.label, given))
            return Decision("always")

        with using(raw(), folder=tmp_path, allow=(), ask=ask) as tools:
            tools.renew()
            assert called(tools, "echo", text="x") == called(tools, "echo", text="x") == "x"
        assert asked == [("raw/echo", {"text": "x"})]
        with using(raw(), folder=tmp_path, allow=()) as tools:
            tools.renew()
            assert called(tools, "echo", text="x") == "x"
            assert "not allowed" in called(tools, "pid")
        with using(raw("media"), folder=tmp_path, allow=()) as tools:
            tools.renew()
            assert "not allowed" in called(tools, "echo", text="x"), "another command runs"
        Approvals(tmp_path / "approvals.json").revoke("raw")
        assert (tmp_path / "approvals.json").read_text().strip() == "{}"

    @pytest.mark.parametrize("manner", ["changing", "sly"])
    def test_a_tool_that_changes_is_not_run_and_asks_again(self, tmp_path: Path, manner: str) -> None:
        asked: list[str] = []

        def ask(tool: Any, given: Any) -> Decision:
            asked.append(tool.description)
            return Decision("always")

        with using(raw(manner), folder=tmp_path, allow=(), ask=ask) as tools:
            tools.renew()
            assert called(tools, "echo", text="x") == "x"
            if manner == "changing":  # it says so
                assert "another tool now" in called(tools, "echo", text="x")
            assert tools.renew() == ["raw/echo has another description or other arguments now: it asks again."]
            assert called(tools, "echo", text="x") == "x"
        assert asked == ["Echo a text.", "Send it to me."]

    def test_no_call_beside_the_one_that_learns_of_a_change_runs_the_changed_tool(self, tmp_path: Path) -> None:
        with using(raw("changing"), folder=tmp_path) as tools:
            tools.renew()
            runner = CallRunner(tools.box, tools.approvals, seconds=PATIENCE)
            asked = [ToolCall(id=f"call_{text}", name="echo", arguments={"text": text}) for text in "xyz"]
            assert text_of(runner.carry_out(asked[:1])[0].content) == "x"
            for result in runner.carry_out(asked[1:]):
                assert "another tool now" in text_of(result.content)

    def test_a_change_is_not_forgotten_where_the_tools_could_not_be_listed(self, tmp_path: Path) -> None:
        with using(raw("changing", "once"), folder=tmp_path) as tools:
            tools.renew()
            assert called(tools, "echo", text="x") == "x"
            assert "not now" in called(tools, "echo", text="y")
            assert "another tool now" in called(tools, "echo", text="z")

    def test_a_result_is_read_with_its_empty_texts_and_says_what_is_left_out(self, tmp_path: Path) -> None:
        with using(raw("empty"), folder=tmp_path) as tools:
            tools.renew()
            assert called(tools, "echo", text="x") == "x" + "\n" * 999 + "\n[4 more]"

    def test_a_call_that_is_stopped_or_too_slow_is_taken_back(self, tmp_path: Path) -> None:
        heard = tmp_path / "heard"
        times = chain([0.0], (float(heard.exists()) for _ in count()))  # it begins, and is late once it was heard
        with using(raw(f"heard={heard}"), folder=tmp_path) as tools:
            tools.renew()
            assert tools.servers is not None
            [server] = tools.servers.all
            late = called(tools, "wait", limit=0.1, clock=lambda: next(times))
            assert late == "It did not answer within 0 seconds."
            wait_until(lambda: server.tail.text == "cancelled")
            heard.unlink()
            assert called(tools, "wait", stopped=heard.exists) == "The person stopped it."
            wait_until(lambda: server.tail.text == "cancelled\ncancelled")
            assert called(tools, "echo", text="still there") == "still there"

    def test_a_server_that_ends_is_started_again_with_the_next_question(self, tmp_path: Path) -> None:
        with using(raw("dies"), folder=tmp_path) as tools:
            tools.renew()
            assert "failed" in called(tools, "echo", text="x")
            assert tools.renew() == []
            assert called(tools, "nothing") == "There is no tool nothing."
            assert tools.servers is not None
            assert tools.servers.all[0].client is not None

    def test_no_question_waits_for_a_server_that_starts_again_slowly(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        there = tmp_path / "there"
        there.touch()
        with using(held_up(f'while [ ! -e "{there}" ]; do sleep 0.05; done'), folder=tmp_path) as tools:
            assert tools.renew() == []
            assert tools.servers is not None
            [server] = tools.servers.all
            there.unlink()
            assert "failed" in called(tools, "echo", text="x")
            with monkeypatch.context() as impatient:
                impatient.setattr(mcp_servers, "RENEW", 1.0)
                assert "The tool server 'odd' does not work" in tools.renew()[0]
                assert tools.renew() == []
            there.touch()
            wait_until(lambda: bool(server.tools))
            assert tools.renew() == []
            assert "failed" in called(tools, "echo", text="x"), "it is there"

    def test_a_server_whose_second_start_hangs_is_given_up_and_started_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hangs = tmp_path / "hangs"
        with using(held_up(f'if [ -e "{hangs}" ]; then exec sleep 1000; fi'), folder=tmp_path) as tools:
            assert tools.renew() == []
            assert tools.servers is not None
            [server] = tools.servers.all
            hangs.touch()
            assert "failed" in called(tools, "echo", text="x")
            with monkeypatch.context() as impatient:
                impatient.setattr(mcp_servers, "RENEW", 0.5)
                impatient.setattr(mcp_servers, "START", 0.2)
                assert "The tool server 'odd' does not work" in tools.renew()[0]
                wait_until(lambda: server.task is not None and server.task.done())
            assert "did not list its tools" in server.failure
            hangs.unlink()
            assert tools.renew() == []
            assert server.tools

    def test_servers_that_do_not_start_are_said_once_with_what_they_wrote(self, tmp_path: Path) -> None:
        broken = ServerEntry("broken", sys.executable, ("-c", "raise SystemExit('no licence')"))
        absent = ServerEntry("absent", "no-such-program")
        nobody = ServerEntry("nobody", url="http://127.0.0.1:9/mcp")
        with using(raw(), broken, absent, nobody, folder=tmp_path) as tools:
            said = "\n".join(tools.renew())
            assert "It wrote: no licence" in said
            assert "there is no program 'no-such-program'" in said
            assert "'nobody' does not work" in said
            assert tools.renew() == []
            assert called(tools, "echo", text="x") == "x"


def test_a_server_gets_little_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "x")
    entry = ServerEntry("raw", sys.executable, (str(HERE / "raw_server.py"), "environment"), env={"GIVEN": "y"})
    with using(entry, folder=tmp_path) as tools:
        assert tools.renew() == []
        found = json.loads(called(tools, "pid"))
    added = {"LC_CTYPE", "__CF_USER_TEXT_ENCODING"}  # by Python and by macOS
    assert {*found} - added <= {"HOME", "LOGNAME", "PATH", "SHELL", "TERM", "USER", "GIVEN"}
    assert (found["GIVEN"], found["PATH"]) == ("y", os.environ["PATH"])


@pytest.mark.parametrize("place", ["/${KEY}/mcp", "/mcp?key=${KEY}"])
def test_a_key_in_an_address_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setenv("KEY", "s3cret")
    with peer(*[http(b"", "404 Not Found")] * 9) as web, refused() as url:
        away, nobody = ServerEntry("away", url=web.url + place), ServerEntry("nobody", url=url + place)
        with using(away, nobody, folder=tmp_path) as tools:
            told = "\n".join(tools.renew())
    assert away.url in told
    assert nobody.url in told
    assert "s3cret" not in told
    assert all(b"s3cret" in one for one in web.requests)


@contextmanager
def serving(port: int = 0) -> Iterator[str]:
    """The address of a server made with the library, on a thread."""
    from tests.app.tool_server import server

    web = uvicorn.Server(uvicorn.Config(server.streamable_http_app(), log_level="critical", ws="none"))
    with socket.create_server(("127.0.0.1", port)) as listener:
        thread = Thread(target=web.run, args=([listener],))
        thread.start()
        wait_until(lambda: web.started)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"
        web.should_exit = web.force_exit = True  # a client may hold its stream open
        thread.join(PATIENCE)


@pytest.fixture(scope="module")
def kitchen() -> Iterator[str]:
    with serving() as url:
        yield url


@pytest.mark.parametrize("over", ["pipes", "http"])
def test_a_server_made_with_the_library(tmp_path: Path, kitchen: str, over: str) -> None:
    entry = ServerEntry("kitchen", url=kitchen) if over == "http" else ServerEntry(
        "kitchen", sys.executable, (str(HERE / "tool_server.py"),)
    )  # fmt: skip
    with using(entry, folder=tmp_path) as tools:
        assert tools.renew() == []
        assert called(tools, "add", a=2, b=3) == "5"
        assert "why not" in called(tools, "fail", why="why not")
        assert called(tools, "add", a="x", b=3) != "5"
        long = called(tools, "say", text="7 ", times=50_000)
        assert len(long) < LONGEST + 100
        assert "[cut: 100,000 characters" in long
        told: list[str] = []
        runner = CallRunner(
            tools.box,
            tools.approvals,
            seconds=PATIENCE,
            stopped=lambda: any("of 600 stirring" in text for text in told),
            on_progress=lambda call, seconds, text: told.append(text),
        )
        [stopped] = runner.carry_out([ToolCall(id="1", name="slow", arguments={"seconds": 600})])
        assert text_of(stopped.content) == "The person stopped it.", told[-1:]
        assert "not answer" in called(tools, "slow", limit=0.3, seconds=600)


def test_a_server_over_http_that_was_away_is_there_again(tmp_path: Path) -> None:
    with ExitStack() as stack:
        there = stack.enter_context(ExitStack())
        url = there.enter_context(serving())
        tools = stack.enter_context(using(ServerEntry("kitchen", url=url), folder=tmp_path))
        assert tools.renew() == []
        for _ in range(2):
            there.close()
            assert "failed" in called(tools, "add", a=2, b=3)
            away = tools.renew()[0]
            assert "The tool server 'kitchen' does not work" in away
            assert tools.renew() == []
            there.enter_context(serving(int(url.split(":")[2].removesuffix("/mcp"))))
            assert tools.renew() == []
            assert called(tools, "add", a=2, b=3) == "5"


class TestHostile:
    def test_an_endless_answer_is_cut_off(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from mlxmtp.app.tools import transports

        monkeypatch.setattr(transports, "MOST", 2**20)
        with using(raw("endless"), folder=tmp_path) as tools:
            tools.renew()
            assert "failed" in called(tools, "echo", text="x")

    def test_a_flood_ends_the_server(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from mlxmtp.app.tools import transports

        monkeypatch.setattr(transports, "MOST", 2**20)
        with using(raw("flood"), folder=tmp_path) as tools:
            assert "without being asked" in tools.renew()[0]
            assert not tools.box

    def test_a_huge_result_is_cut(self, tmp_path: Path) -> None:
        with using(raw("huge"), folder=tmp_path) as tools:
            tools.renew()
            assert len(called(tools, "echo", text="x")) < LONGEST + 100

    def test_lies_and_garbage_are_passed_over(self, tmp_path: Path) -> None:
        with using(raw("lying"), folder=tmp_path) as tools:
            tools.renew()
            assert called(tools, "echo", text="x") == "x"

    def test_an_expression_of_the_servers_is_never_run(self, tmp_path: Path) -> None:
        with using(raw("regex"), folder=tmp_path) as tools:
            tools.renew()
            assert called(tools, "echo", text="x") == "x"

    def test_what_cannot_be_offered_is_left_out(self, tmp_path: Path) -> None:
        with using(raw("many", "deep", "injecting"), folder=tmp_path) as tools:
            said = tools.renew()
            assert len(tools.box.tools) <= 200
            assert any("no usable name" in text for text in said)
            assert not any("\x1b" in text for text in said)
        with using(raw("deep"), folder=tmp_path) as tools:
            assert [text for text in tools.renew() if "too large" in text]
            assert "echo" in tools.box.tools

    def test_a_strangers_words_are_clean(self, tmp_path: Path) -> None:
        with using(raw("injecting"), folder=tmp_path) as tools:
            tools.renew()
            texts = [tools.declarations[0]["function"]["description"], called(tools, "echo", text="x")]
            assert not {*"".join(texts)} & {"\x1b", "\x07", "\u202e"}

    def test_a_server_that_never_answers_is_given_up(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(mcp_servers, "START", 0.3)
        with using(raw("mute"), folder=tmp_path) as tools:
            assert "did not list its tools within 0 seconds" in tools.renew()[0]

    def test_what_it_writes_for_people_stays_small(self, tmp_path: Path) -> None:
        with using(raw("chatty"), folder=tmp_path) as tools:
            tools.renew()
            assert tools.servers is not None
            assert 0 < len(tools.servers.all[0].tail.text) <= 8_000

    def test_one_that_will_not_go_is_killed_with_its_children(self, tmp_path: Path) -> None:
        with using(raw("deaf"), folder=tmp_path) as tools:
            tools.renew()
            assert tools.servers is not None
            child, server = int(tools.servers.all[0].tail.text), int(called(tools, "pid"))
        wait_until(lambda: gone(child) and gone(server))
