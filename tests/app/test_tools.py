"""Tools: what they may do, who allows them, what comes back, and that a loop of calls reads every token once."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from threading import Barrier, Event, Lock
from types import SimpleNamespace
from typing import Any, cast

import jsonschema
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

import mlxmtp
from mlxmtp.app.open import Checkpoint, LearnedDrafting, OpenModel
from mlxmtp.app.tools import approval
from mlxmtp.app.tools.approval import Approvals, Decision, Grant
from mlxmtp.app.tools.arguments import fault_in
from mlxmtp.app.tools.builtin import builtin, calculate, fetch
from mlxmtp.app.tools.calls import EQUAL, ROUNDS, CallRunner
from mlxmtp.app.tools.chosen import Tools, chosen_tools
from mlxmtp.app.tools.functions import functions_in, tool_of
from mlxmtp.app.tools.toolbox import LONGEST, Running, Tool, Toolbox, cleaned
from mlxmtp.app.turn import Turn
from mlxmtp.chat.conversation import Conversation
from mlxmtp.chat.history import Exchange
from mlxmtp.chat.message import ToolCall, text_of
from mlxmtp.cli.calls import question_about
from mlxmtp.engine.call_grammar import calls_only
from mlxmtp.engine.constraint import Matcher
from mlxmtp.engine.model import Model
from mlxmtp.engine.params import Params
from mlxmtp.engine.tokenizer import Tokenizer
from mlxmtp.errors import ConfigError, UsageError
from mlxmtp.models.config import read_config
from mlxmtp.settings import load_settings
from tests.app.faulty import http, peer
from tests.fake_decoder import FakeDecoder
from tests.forms import table, tokenizer
from tests.serve.running import TEMPLATE, call
from tests.text_checkpoint import write_text_checkpoint


def tool(name: str = "act", run: Any = lambda given: "done", server: str = "far", **more: Any) -> Tool:
    schema = {"type": "object", "properties": {"text": {"type": "string"}}}
    return Tool(server, name, "Acts.", schema, lambda given, running: str(run(given)), **more)


def ran(tool: Tool, **given: Any) -> str:
    return tool.run(given, Running())


def called(name: str, number: int = 0, **arguments: Any) -> ToolCall:
    return ToolCall(id=f"call_{number}", name=name, arguments=arguments)


def said(runner: CallRunner, *calls: ToolCall) -> list[str]:
    return [text_of(one.content) for one in runner.carry_out(calls)]


def runner_of(tmp_path: Path, *tools: Tool, answers: Any = None, **options: Any) -> CallRunner:
    ask = None if answers is None else lambda tool, given: answers.pop(0)
    return CallRunner(Toolbox(tools), Approvals(tmp_path / "approvals.json", (), ask), **options)


class TestFiles:
    @pytest.fixture
    def box(self, tmp_path: Path) -> Mapping[str, Tool]:
        (tmp_path / "in" / "sub").mkdir(parents=True)
        (tmp_path / "in" / "a.txt").write_text("one\ntwo\nthree")
        (tmp_path / "in" / "sub" / "b.txt").write_text("Two more")
        (tmp_path / "in" / "raw").write_bytes(b"\0\1")
        (tmp_path / "secret").write_text("two secrets")
        (tmp_path / "in" / "link").symlink_to(tmp_path / "secret")
        return {one.name: one for one in builtin(f"files={tmp_path / 'in'}")}

    def test_files_below_the_folder_are_listed_read_and_searched(self, box: Mapping[str, Tool]) -> None:
        assert ran(box["list_files"]) == "a.txt\nlink\nraw\nsub/"
        assert ran(box["read_file"], path="a.txt", first_line=2) == "two\nthree\n[lines 2 to 3 of 3]"
        assert ran(box["search_files"], text="TWO") == "a.txt:2: two\nsub/b.txt:1: Two more"

    @pytest.mark.parametrize("path", ["../secret", "link", "/etc/passwd", "sub/../../secret", "gone", "raw", "sub"])
    def test_nothing_else_is_read(self, box: Mapping[str, Tool], path: str) -> None:
        with pytest.raises(ValueError, match=r"not below|there is no|is no"):
            ran(box["read_file"], path=path)

    def test_what_is_hidden_is_neither_listed_nor_read(self, box: Mapping[str, Tool], tmp_path: Path) -> None:
        folder = tmp_path / "in"
        (folder / ".env").write_text("two keys")
        (folder / ".git").mkdir()
        (folder / ".git" / "config").write_text("two passwords")
        (folder / "shown").symlink_to(folder / ".env")
        assert ran(box["list_files"]) == "a.txt\nlink\nraw\nshown\nsub/"
        for path in (".env", ".git/config", "shown", "sub/../.env"):
            with pytest.raises(ValueError, match="is hidden"):
                ran(box["read_file"], path=path)
        for name, more in (("list_files", {}), ("search_files", {"text": "two"})):
            with pytest.raises(ValueError, match="is hidden"):
                ran(box[name], path=".git", **more)
        named = {one.name: one for one in builtin(f"files={folder / '.git'}")}
        assert ran(named["read_file"], path="config") == "two passwords"

    @pytest.mark.parametrize(("name", "way"), [("read_file", "read_bytes"), ("list_files", "iterdir")])
    def test_a_link_that_comes_in_between_is_noticed(
        self, box: Mapping[str, Tool], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, way: str
    ) -> None:
        really, sub = getattr(Path, way), tmp_path / "in" / "sub"

        def replaced(path: Path) -> Any:
            sub.rename(tmp_path / "in" / "before")
            sub.symlink_to(tmp_path / "in" / "before")
            return really(path)

        monkeypatch.setattr(Path, way, replaced)
        with pytest.raises(ValueError, match="has become a link"):
            ran(box[name], path="sub/b.txt" if name == "read_file" else "sub")

    def test_texts_are_decoded_as_attached_ones_are_and_keep_their_line_numbers(
        self, box: Mapping[str, Tool], tmp_path: Path
    ) -> None:
        (tmp_path / "in" / "wide.txt").write_bytes("\n\nä wide\r\nline".encode("utf-16"))
        assert ran(box["read_file"], path="wide.txt") == "\n\nä wide\nline"
        assert ran(box["search_files"], text="WIDE") == "wide.txt:3: ä wide"

    @pytest.mark.parametrize("way", ["iterdir", "is_symlink"])
    def test_a_search_goes_on_behind_a_folder_that_is_closed(
        self, box: Mapping[str, Tool], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, way: str
    ) -> None:
        """It may be listed and not looked into, too."""
        (tmp_path / "in" / "z.txt").write_text("two at the end")
        really, closed = getattr(Path, way), tmp_path / "in" / "sub"

        def forbidden(path: Path) -> Any:
            if closed in (path, path.parent) and (way == "iterdir" or path != closed):
                raise PermissionError(13, "Permission denied", str(path))
            return really(path)

        monkeypatch.setattr(Path, way, forbidden)
        assert ran(box["search_files"], text="two") == "a.txt:2: two\nz.txt:1: two at the end"

    def test_two_folders_are_told_apart(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("src", "docs"):
            (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path)
        box = chosen_tools(["files=src,files=docs"], load_settings({}), None).box
        told = {name: box.tools[name].description for name in ("read_file", "builtin.read_file")}
        assert [text.rpartition(". ")[2] for text in told.values()] == ["The folder is src.", "The folder is docs."]
        [alone] = (one for one in chosen_tools(["files=src"], load_settings({}), None).own if one.name == "read_file")
        assert "src" not in alone.description, "the built-in model knows these words"

    def test_a_search_that_nobody_waits_for_ends(self, box: Mapping[str, Tool]) -> None:
        assert box["search_files"].run({"text": "two"}, Running(over=True)) == "Nothing was found."

    @pytest.mark.parametrize("name", ["/nowhere/at/all", "~nobody-at-all/notes", "n" * 300])
    def test_a_folder_that_is_not_there_is_refused(self, name: str) -> None:
        with pytest.raises(UsageError, match=f"no folder {name}"):
            builtin(f"files={name}")


@pytest.mark.parametrize(("expression", "value"), [("2 + 3 * 4", "14"), ("-(2 ** 10) // 3", "-342"), ("1 / 4", "0.25")])
def test_the_calculator_calculates(expression: str, value: str) -> None:
    assert calculate(expression) == value


@pytest.mark.parametrize("expression", ["1/0", "9**9**9**9", "__import__('os')", "a", "'x' * 9", "(" * 500, "True", ""])
def test_the_calculator_does_nothing_else(expression: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        calculate(expression)


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/größe/a b?q=zwei Wörter&r=/?#teil", "/gr%C3%B6%C3%9Fe/a%20b?q=zwei%20W%C3%B6rter&r=/?"),
        ("/a%20b;c=(1),2/@x?y=%C3%B6+z&w[]=$1'*!", "/a%20b;c=(1),2/@x?y=%C3%B6+z&w[]=$1'*!"),
        ("", "/"),
    ],
)
def test_an_address_is_fetched_as_people_write_it(path: str, asked: str) -> None:
    with peer(http(b"Hello", "200 OK", "Content-Type: text/plain")) as web:
        assert fetch(web.url + path) == "Hello"
    assert web.requests[0].split(b"\r\n")[0] == f"GET {asked} HTTP/1.1".encode()


def test_functions_become_tools(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        'from typing import Literal\ndef add(a: int, b: float = 1, how: Literal["x", "y"] = "x") -> str:\n'
        '    """Adds."""\n    return a + b\ndef _hidden(): ...\n'
    )
    [add] = functions_in(str(tmp_path / "mine.py"))
    assert (add.label, add.description, add.reads) == ("mine/add", "Adds.", False)
    assert add.parameters["required"] == ["a"]
    assert add.parameters["properties"]["how"] == {"type": "string", "enum": ["x", "y"]}
    assert ran(add, a=2) == "3"


def test_a_file_of_functions_is_a_module(tmp_path: Path) -> None:
    """Dataclasses look up the module that they are of."""
    before = {*sys.modules}
    file = tmp_path / "data.py"
    file.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n\n@dataclass\nclass Point:\n"
        "    x: int\n\ndef double(x: int) -> int:\n    return 2 * Point(x).x\n"
    )
    [double] = functions_in(str(file))
    assert ran(double, x=2) == "4"
    file.write_text("raise ValueError('no')")
    with pytest.raises(UsageError, match="cannot be run: ValueError: no"):
        functions_in(str(file))
    assert not [name for name in {*sys.modules} - before if name.startswith("mlxmtp_functions")]


def test_an_async_function_is_run_to_its_end() -> None:
    async def add(a: int, b: int) -> int:
        await asyncio.sleep(0)
        return a + b

    assert ran(tool_of(add), a=1, b=2) == "3"


@pytest.mark.parametrize("given", [[1, "two", [True, None]], [], ["a"]])
def test_a_list_without_a_type_holds_anything(given: list[Any]) -> None:
    def total(items: list, rows: list[list] | None = None) -> int:
        return len(items)

    one = tool_of(total)
    assert fault_in({"items": given, "rows": [given]}, one.parameters) == ""
    assert fault_in({"items": "a"}, one.parameters) == 'items must be of type array, not "a"'
    grammar = calls_only([mlxmtp.declare(total)], tokenizer(), several=False)
    ids = tokenizer().encode(call(f"total{{items:{json.dumps(given, separators=(',', ':'))}}}"))
    matcher = Matcher(grammar, table())
    assert matcher.accept(ids) == len(ids)
    assert matcher.complete


def test_functions_of_another_file_are_others(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text("def act() -> str:\n    return ''\n")
    [one], [same], [other] = (functions_in(str(tmp_path / name / "mine.py")) for name in ("a", "a", "b"))
    assert one.label == other.label
    assert one.fingerprint == same.fingerprint != other.fingerprint


@pytest.mark.parametrize("name", ["gone.py", "~nobody-at-all/mine.py", "n" * 300 + ".py"])
def test_a_file_of_functions_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} is no Python file"):
        functions_in(name)


def test_functions_are_declared_for_the_api() -> None:
    def weather(town: str, days: int | None = None) -> str:
        """The forecast."""
        return f"{town} {days}"

    function = mlxmtp.declare(weather)["function"]
    assert (function["name"], function["description"]) == ("weather", "The forecast.")
    assert function["parameters"]["properties"]["days"] == {"type": "integer", "nullable": True}

    def wave(phase: complex) -> str:
        return str(phase)

    with pytest.raises(UsageError, match="tools take str, int"):
        mlxmtp.declare(wave)


def test_calls_of_declared_functions_are_events(tmp_path: Path) -> None:
    def weather(town: str) -> str:
        return f"Rain in {town}."

    talk = Scripted(tmp_path, Toolbox())
    talk.decoder.enqueue(talk.tokenizer.encode(call('weather{town:"Oslo"}') + END))
    events = talk.opened.model.stream([{"role": "user", "content": "Umbrella?"}], tools=[mlxmtp.declare(weather)])
    [one] = [event for event in events if isinstance(event, mlxmtp.Call)]
    assert weather(**one.arguments) == "Rain in Oslo."


def test_functions_without_annotations_are_named() -> None:
    def bare(x):
        return x

    with pytest.raises(UsageError, match="its parameter x has no annotation"):
        tool_of(bare)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.5, 2.0, "", "ab", "abcd"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner),
    max_leaves=5,
)
LIMIT = st.integers(-1, 3)
SCHEMAS = st.recursive(
    st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(["string", "integer", "number", "boolean", "null", "array", "object"])
            | st.just(["integer", "null"]),
            "enum": st.lists(VALUES.filter(lambda one: not isinstance(one, list | dict)), min_size=1, max_size=2),
            **dict.fromkeys(["minimum", "exclusiveMaximum"], LIMIT),
            **dict.fromkeys(["minLength", "maxItems"], st.integers(0, 3)),
            "multipleOf": st.sampled_from([0.5, 2]),
        },
    ),
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "properties": st.dictionaries(st.sampled_from("ab"), inner | st.just(False)),
            **dict.fromkeys(["minProperties", "maxProperties"], st.integers(0, 2)),
            "required": st.lists(st.sampled_from("abc"), unique=True),
            "additionalProperties": st.booleans() | inner,
            "items": inner | st.just(False),
            "prefixItems": st.lists(inner, min_size=1, max_size=2),
            "anyOf": st.lists(inner, min_size=1, max_size=2),
            "allOf": st.lists(inner, min_size=1, max_size=2),
            "$ref": st.just("#/$defs/one"),
        },
    ),
    max_leaves=4,
)


@given(VALUES, SCHEMAS, SCHEMAS)
@settings(max_examples=100, deadline=None)
def test_arguments_are_judged_as_jsonschema_does(value: Any, schema: dict[str, Any], other: dict[str, Any]) -> None:
    whole = {"type": "object", "properties": {"x": schema}, "$defs": {"one": {"type": "string", **other}}}
    try:
        valid = jsonschema.Draft202012Validator(whole).is_valid({"x": value})
    except RecursionError:  # it goes round in a circle, where there is nothing to compare with
        reject()
    assert (fault_in({"x": value}, whole) == "") == valid, fault_in({"x": value}, whole)


def test_a_call_that_does_not_fit_is_neither_asked_about_nor_run(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 5}}, "additionalProperties": False}
    act = replace(tool(run=lambda given: pytest.fail("it ran")), parameters=schema)
    runner = runner_of(tmp_path, act, answers=[])
    assert said(runner, called("act", n="5"), called("act", n=6), called("act", m=1)) == [
        'It was not run: n must be of type integer, not "5".',
        "It was not run: n must be at most 5, not 6.",
        "It was not run: m is not known: there is n.",
    ]


def test_the_first_items_of_a_list_have_schemas_of_their_own() -> None:
    pair: dict[str, Any] = {"prefixItems": [{"type": "string"}, {"type": "integer"}], "items": {"type": "boolean"}}
    schema = {"properties": {"x": pair}}
    assert fault_in({"x": ["a", 1, True]}, schema) == ""
    assert fault_in({"x": ["a", True]}, schema) == "x[1] must be of type integer, not true"
    assert fault_in({"x": ["a", 1, 2]}, schema) == "x[2] must be of type boolean, not 2"
    pair["items"] = False
    assert fault_in({"x": ["a", 1, 2]}, schema) == "x must have at most 2 items, not 3"
    before_2020 = {"properties": {"x": {"items": pair["prefixItems"], "additionalItems": False}}}
    assert fault_in({"x": ["a", "1"]}, before_2020) == 'x[1] must be of type integer, not "1"'
    assert fault_in({"x": ["a", 1, 2]}, before_2020) == "x must have at most 2 items, not 3"


def test_a_schema_without_end_is_looked_at_for_a_while() -> None:
    bomb = {"$ref": "#/$defs/a"}
    schema = {"type": "object", "$defs": {"a": {"anyOf": [bomb, bomb, {"items": bomb}]}}, "additionalProperties": bomb}
    assert fault_in({"x": [[1]]}, schema) == ""


@pytest.mark.parametrize(
    "reference", ["#/$defs/My%20T", "#/properties/x/anyOf/0", "#/$defs/again"], ids=["escaped", "in a list", "again"]
)
def test_references_are_followed_wherever_they_lead(reference: str) -> None:
    defs = {"My T": {"type": "integer"}, "again": {"$ref": "#/$defs/My%20T"}}
    schema = {"properties": {"x": {"anyOf": [{"type": "integer"}]}, "y": {"$ref": reference}}, "$defs": defs}
    assert fault_in({"y": 5}, schema) == ""
    assert fault_in({"y": "5"}, schema) == 'y must be of type integer, not "5"'


def test_a_schema_may_be_within_itself() -> None:
    schema = {"properties": {"v": {"type": "integer"}, "next": {"$ref": "#"}}}
    assert fault_in({"next": {"next": {"v": 5}}}, schema) == ""
    assert fault_in({"next": {"next": {"v": "5"}}}, schema) == 'next.next.v must be of type integer, not "5"'


class TestSwitching:
    @staticmethod
    def listed(tools: Tools, **servers: str) -> list[str]:
        """Labels of what is declared once each server lists these tools."""
        found = [
            SimpleNamespace(
                tools=[tool(name, server=server) for name in names.split()], complaint="", left_out=[], entry=None
            )
            for server, names in servers.items()
        ]
        tools.servers = cast("Any", SimpleNamespace(all=found, wait=lambda: None, renew=lambda: None))
        tools.renew()
        on = [one["function"]["name"] for one in tools.declarations]
        assert on == [name for name in tools.box.tools if tools.box.find(name)]
        return [tools.box.tools[name].label for name in on]

    @pytest.fixture
    def tools(self, tmp_path: Path) -> Tools:
        return Tools(Approvals(tmp_path / "approvals.json"))

    def test_a_server_that_is_off_stays_off_whatever_it_lists(self, tools: Tools) -> None:
        self.listed(tools, notes="read wipe", b="search")
        assert tools.box.switch("notes", on=False) == ["read", "wipe"]
        assert self.listed(tools, notes="read", b="search") == ["b/search"]
        assert self.listed(tools, notes="read wipe new", b="search") == ["b/search"]
        tools.box.switch("notes/read", on=True)
        assert self.listed(tools, notes="read wipe newer", b="search") == ["notes/read", "b/search"]
        assert self.listed(tools, notes="wipe", b="search") == ["b/search"]
        tools.box.switch("notes", on=False)
        assert self.listed(tools, notes="read wipe", b="search") == ["b/search"]
        tools.box.switch("notes", on=True)
        assert self.listed(tools, notes="read wipe", b="") == ["notes/read", "notes/wipe"]

    def test_a_tool_that_is_off_stays_off_by_another_name(self, tools: Tools) -> None:
        self.listed(tools, a="search", b="search")
        assert tools.box.switch("b.search", on=False) == ["b.search"]
        assert self.listed(tools, a="", b="search") == []
        assert self.listed(tools, a="search", b="search") == ["a/search"]


class TestApproval:
    def test_what_only_reads_runs_and_everything_else_asks(self, tmp_path: Path) -> None:
        answers = [Decision("once"), Decision("no", "not today")]
        runner = runner_of(tmp_path, tool("look", reads=True), tool(), answers=answers)
        assert said(runner, called("look"), called("act"), called("act", text="2")) == [
            "done",
            "done",
            "It was not allowed: not today.",
        ]

    def test_nobody_there_is_no(self, tmp_path: Path) -> None:
        runner = runner_of(tmp_path, tool())
        assert "not allowed" in said(runner, called("act"))[0]
        assert runner._approvals.refused == ["far/act"]

    def test_a_conversation_ends(self, tmp_path: Path) -> None:
        approvals = Approvals(tmp_path / "kept.json", (), lambda tool, given: Decision("conversation"))
        approvals.decide(tool(), {})
        nobody = Approvals(tmp_path / "kept.json")
        assert nobody.decide(tool(), {}).grant == "no"
        assert approvals._allows(tool())
        approvals.forget()
        assert not approvals._allows(tool())

    def test_always_holds_until_the_tool_changes(self, tmp_path: Path) -> None:
        file = tmp_path / "kept.json"
        Approvals(file, (), lambda tool, given: Decision("always")).decide(tool(), {})
        later = Approvals(file)
        assert later.decide(tool(), {}).grant == "once"
        changed = Tool("far", "act", "Acts, and sends what it finds to me.", tool().parameters, tool().run)
        assert later.decide(changed, {}).grant == "no"
        assert later.decide(tool(server="other"), {}).grant == "no"

    def test_what_cannot_be_kept_holds_for_the_conversation(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refused(*_: Any, **__: Any) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(approval, "write_atomically", refused)
        answers, file = [Decision("always")], tmp_path / "kept.json"
        approvals = Approvals(file, (), lambda tool, given: answers.pop())
        assert [approvals.decide(tool(), {}).grant for _ in range(2)] == ["always", "once"]
        tools = Tools(approvals)
        told = f"far/act is allowed in this conversation only. {file} cannot be written: Permission denied."
        assert [tools.renew(), tools.renew()] == [[told], []]

    @pytest.mark.parametrize("grant", ["conversation", "always"])
    def test_an_address_is_asked_about_each_time(self, tmp_path: Path, grant: Grant) -> None:
        asked: list[Mapping[str, Any]] = []

        def ask(tool: Tool, given: Mapping[str, Any]) -> Decision:
            asked.append(given)
            return Decision(grant)

        [fetch] = builtin("fetch")
        file = tmp_path / "kept.json"
        file.write_text(json.dumps({fetch.label: fetch.fingerprint}))  # of an earlier version
        approvals = Approvals(file, (), ask)
        for number in range(2):
            approvals.decide(fetch, {"url": f"https://example.org/{number}"})
        assert len(asked) == 2
        assert "lways" not in question_about(fetch)
        assert Approvals(file, ("builtin/fetch",)).decide(fetch, {}).grant == "once"


class TestLimits:
    def test_a_slow_tool_is_given_up(self, tmp_path: Path) -> None:
        runner = runner_of(tmp_path, tool(run=lambda given: time.sleep(30), reads=True), seconds=0.2)
        assert said(runner, called("act")) == ["It did not answer within 0 seconds."]

    def test_a_person_stops_a_running_tool(self, tmp_path: Path) -> None:
        stops: list[int] = []

        def run(given: Mapping[str, Any]) -> str:
            stops.append(1)
            time.sleep(30)
            return ""

        slow = tool(run=run, reads=True)
        runner = runner_of(tmp_path, slow, stopped=lambda: bool(stops))
        assert said(runner, called("act")) == ["The person stopped it."]

    def test_calls_that_hang_side_by_side_share_their_seconds(self, tmp_path: Path) -> None:
        now, over = [0.0], Event()

        def later(call: ToolCall, seconds: float, told: str) -> None:
            now[0] += 10.0

        hanging = tool(run=lambda given: over.wait(30), reads=True)
        runner = runner_of(tmp_path, hanging, clock=lambda: now[0], on_progress=later, seconds=60.0)
        late = said(runner, *(called("act", number, text=str(number)) for number in range(3)))
        over.set()
        assert late == ["It did not answer within 60 seconds."] * 3
        assert now == [60.0]

    def test_calls_that_a_server_takes_in_turn_have_their_seconds_each(self, tmp_path: Path) -> None:
        now, turns, looked = [0.0], Lock(), Event()

        def in_turn(given: Any) -> str:
            with turns:
                now[0] += 40.0
                looked.clear()
                looked.wait(5)  # somebody has looked how late it is
            return "done"

        options: dict[str, Any] = {"clock": lambda: now[0], "on_progress": lambda *_: looked.set(), "seconds": 60.0}
        runner = runner_of(tmp_path, tool(run=in_turn, reads=True), **options)
        assert said(runner, *(called("act", number, text=str(number)) for number in range(3))) == ["done"] * 3

    def test_what_runs_is_stopped_when_the_others_cannot_be_decided(self, tmp_path: Path) -> None:
        started, stopped = Event(), Event()

        def run(given: Mapping[str, Any], running: Running) -> str:
            running.on_stop = stopped.set
            started.set()
            stopped.wait(30)
            return ""

        def ask(tool: Tool, given: Mapping[str, Any]) -> Decision:
            assert started.wait(30)
            raise ConfigError("It is damaged.")

        slow = Tool("far", "slow", "", {"type": "object"}, run, reads=True)
        runner = CallRunner(Toolbox([slow, tool()]), Approvals(tmp_path / "approvals.json", (), ask))
        with pytest.raises(ConfigError):
            runner.carry_out([called("slow"), called("act")])
        assert stopped.is_set()

    def test_equal_calls_and_rounds_end(self, tmp_path: Path) -> None:
        runner = runner_of(tmp_path, tool(reads=True))
        texts = [said(runner, called("act"))[0] for _ in range(EQUAL + 1)]
        assert texts[:EQUAL] == ["done"] * EQUAL
        assert "made before" in texts[-1]
        for number in range(ROUNDS - EQUAL):
            assert not runner.spent
            last = said(runner, called("act", text=str(number)))[0]
        assert runner.spent
        assert "No more calls" in last

    @pytest.mark.parametrize(
        "fault", [ValueError("bad"), SystemExit(3), RecursionError(), asyncio.CancelledError("over")]
    )
    def test_a_tool_that_fails_says_so(self, tmp_path: Path, fault: BaseException) -> None:
        def run(given: Mapping[str, Any]) -> str:
            raise fault

        [result] = runner_of(tmp_path, tool(run=run, reads=True)).carry_out([called("act")])
        assert result.is_error

    def test_what_a_tool_does_to_its_arguments_leaves_the_call_as_it_was(self, tmp_path: Path) -> None:
        def total(given: Mapping[str, Any]) -> int:
            numbers = given["numbers"]
            return sum(numbers.pop() for _ in range(len(numbers)))

        asked = called("act", numbers=[1, 2])
        assert said(runner_of(tmp_path, tool(run=total, reads=True)), asked) == ["3"]
        assert asked.arguments == {"numbers": [1, 2]}

    def test_calls_of_one_answer_run_side_by_side(self, tmp_path: Path) -> None:
        together = Barrier(8)  # opens when all eight have come

        def run(given: Mapping[str, Any]) -> str:
            together.wait(30)
            return str(given["text"])

        runner = runner_of(tmp_path, tool(run=run, reads=True))
        assert said(runner, *(called("act", number, text=str(number)) for number in range(8))) == [*"01234567"]

    def test_a_tool_that_is_not_there_is_no_tool(self, tmp_path: Path) -> None:
        runner = runner_of(tmp_path, tool(reads=True))
        runner._box.switch("act", on=False)
        assert said(runner, called("act")) == ["There is no tool act."]


@given(st.text())
@settings(max_examples=50)
def test_a_strangers_text_has_no_control_characters(text: str) -> None:
    clean = cleaned(f"\x1b[2J\x07\u202e{text}")
    assert not {*clean} & {"\x1b", "\x07", "\u202e", "\r", "\x00", "\x9b"}
    assert len(cleaned(text + "x" * 2 * LONGEST)) < LONGEST + 100


def test_a_strangers_text_keeps_its_letters_and_lines() -> None:
    text = "\u0645\u06cc\u200c\u062e\u0648 \u0915\u094d\u200d\u0937 \U0001f468\u200d\U0001f469 hy\u00adphen\tend"
    assert cleaned(text) == text
    assert cleaned("a\r\nb\rc\nd") == "a\nb\nc\nd"


def test_descriptions_in_a_schema_are_cleaned_as_deep_as_they_are() -> None:
    bad = "a\x1b]0;t\x07b\u202ec\U000e0041\U000e0042d\u200be\x9bf"
    named: dict[str, Any] = {"description": bad}
    deep: dict[str, Any] = {**named, "type": "string", "enum": ["x\u202ey"]}
    for _ in range(5):
        deep = {**named, "type": "object", "properties": {"p": deep, "q": {**named, "type": "array", "items": deep}}}
    other = {"anyOf": [{"type": "string"}, {"type": "null"}, {"type": "string", **named}]}
    referred = {"$ref": "#/$defs/r"}
    told = {
        "type": "object",
        "properties": {"deep": deep, "other": other, "r": referred},
        "$defs": {"r": deep},
        **named,
    }
    before = json.dumps(told)
    box = Toolbox([Tool("s", "t", bad, told, lambda given, running: "done")])
    found: list[str] = []

    def look(value: Any) -> None:
        if isinstance(value, dict):
            found.extend([value["description"]] if isinstance(value.get("description"), str) else [])
        for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else []:
            look(one)

    look([*box.declarations])
    assert len(found) > 100
    assert {one for one in found if not one.startswith("Or: ")} == {"a]0;tbcdef"}
    assert not {one for one in "".join(found) if not one.isprintable()}
    assert '"enum": ["x\\u202ey"]' in json.dumps(box.declarations)  # a value that the tool must get as it is
    assert json.dumps(box.tools["t"].parameters) == before == json.dumps(told)


END = "<|tool_response>"


class Scripted:
    """A conversation with a decoder that says what is queued, and tools."""

    def __init__(self, folder: Path, box: Toolbox, *, think: bool = False, tokenizer: Tokenizer | None = None) -> None:
        """`folder` has the model, written if there is no `tokenizer` yet."""
        place = folder / "model"
        if tokenizer is None:
            write_text_checkpoint(place, context=65_536, template=TEMPLATE)
        self.tokenizer, self.decoder = tokenizer or Tokenizer.load(place), FakeDecoder()
        model = Model(self.decoder, read_config(place), self.tokenizer)
        self.opened = OpenModel(model, Checkpoint("fake", place), None, LearnedDrafting(folder / "data", None))
        self.box, self.params = box, Params(think=think)
        self.runner = CallRunner(box, Approvals(folder / "approvals.json"))
        self.conversation = Conversation()
        self.said: list[list[int]] = []

    def ask(self, *answers: str) -> str:
        for answer in answers:
            self.said.append(self.tokenizer.encode(answer))
            self.decoder.enqueue(self.said[-1])
        turn = Turn(self.conversation, "ask", Exchange("And? " * 4))
        turn.begin(self.opened, self.params, tools=self.box.declarations)
        while (outcome := turn.run(turn.stream(self.params), lambda event: True)) is None:
            turn.returned(self.runner.carry_out(turn.calls))
        assert not self.decoder.answers
        return outcome.text

    def read_again(self) -> list[int]:
        """Tokens of each prompt that the KV cache held and that are read once more."""
        held: list[int] = []
        counts = []
        for request, answer in zip(self.decoder.requests, self.said, strict=True):
            pairs = enumerate(zip(held, request.prompt, strict=False))
            counts.append(len(held) - next((i for i, (a, b) in pairs if a != b), min(len(held), len(request.prompt))))
            held = [*request.prompt, *answer[:-1]]
        return counts


def test_a_turn_goes_on_after_its_calls(tmp_path: Path) -> None:
    box = Toolbox([tool(run=lambda given: f"<turn|> {given['text']}", reads=True)])
    talk = Scripted(tmp_path, box)
    one, other = call('act{text:"a"}'), call('act{text:"b"}')
    text = talk.ask(f"Look: {one}{other}{END}", "Done.<turn|>")
    assert text == "Look: Done."
    results = [part for one in talk.conversation.history.messages for part in one.parts if part.type == "tool_result"]
    assert len(results) == 2
    prompt = talk.decoder.requests[-1].prompt
    turns = [token for token in prompt if token == talk.tokenizer.special_id("<turn|>")]
    assert len(turns) == len([one for one in talk.decoder.requests[0].prompt if one == turns[0]])
    assert talk.ask("More.<turn|>") == "More."
    events = [{"type": "message", **one.to_dict()} for one in talk.conversation.history.messages]
    assert Conversation.restore(events).messages() == talk.conversation.messages()


def loops(folder: Path, count: int, seed: int) -> None:
    """Random turns of random calls: the text is what was scripted, and no token is read twice."""
    chance = random.Random(seed)
    box = Toolbox([tool(run=lambda given: "7 " * chance.randrange(9), reads=True)])
    tokenizer: Tokenizer | None = None
    for number in range(count):
        think = chance.random() < 0.5
        talk = Scripted(folder, box, think=think, tokenizer=tokenizer)
        tokenizer = talk.tokenizer
        for _ in range(chance.randrange(1, 4)):
            talk.runner = CallRunner(box, Approvals(folder / "none.json"))
            answers = []
            for _ in range(chance.randrange(0, 5)):
                thought = f"<|channel>thought\nHm {chance.random()}.\n<channel|>" if think else ""
                words = chance.choice(["", "Look: ", "So  "])
                calls = [call(f'act{{ text: "{chance.randrange(99)}\n{{x}} "}}') for _ in range(chance.randrange(1, 4))]
                answers.append(f"{thought}{words}{''.join(calls)}{END}")
            talk.ask(*answers, f"End {chance.random()}.<turn|>")
        again = zip(talk.read_again(), talk.decoder.requests, strict=True)
        # A turn begins with the line of its role, and thoughts of the turn before leave the prompt then.
        line = talk.tokenizer.encode("\n")[-1]
        assert not [count for count, request in again if request.prompt[-1] != line and count], number


def test_random_loops_read_every_token_once(tmp_path: Path) -> None:
    loops(tmp_path, 8, 1)


@pytest.mark.thorough
def test_200_random_loops_read_every_token_once(tmp_path: Path) -> None:
    loops(tmp_path, 200, 2)
