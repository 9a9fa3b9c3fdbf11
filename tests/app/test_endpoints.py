"""Other servers' ways of speaking the protocol, and every fault of theirs, on this machine's own address."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxmtp.app.endpoints import Endpoint, endpoint_of, with_model
from mlxmtp.app.remote import Chunks, Remote
from mlxmtp.app.remote_model import RemoteAnswer, RemoteOpener, ServedModel
from mlxmtp.bench import suite
from mlxmtp.cli import app
from mlxmtp.engine.constraint import Constraint
from mlxmtp.engine.events import Call, End, Event, Text, Thinking
from mlxmtp.engine.params import Params
from mlxmtp.errors import ConfigError, EndpointFailed, MlxmtpError, UsageError
from mlxmtp.settings import load_settings
from tests.app.faulty import DONE, MODELS, STREAM, Step, http, peer, refused, said

HI = [{"role": "user", "content": "Hi"}]


def delta(**fields: object) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": fields}]}).encode() + b"\n\n"


def ask(url: str, params: Params | None = None, *, ours: bool = False, patience: float = 60) -> list[Event]:
    model = ServedModel(Remote(url, first_byte=patience), "large", ours=ours, patience=patience)
    return [event for event in model.stream(HI, params) if not isinstance(event, Thinking) or event.text]


WAYS: dict[str, bytes] = {
    "as usual": said("Hello ü.") + said(reason="stop") + DONE,
    "a role first, a null at the end": delta(role="assistant", content="") + said("Hello ü.", reason="stop") + DONE,
    "comments and CRLF": b": keepalive 1/2\r\n\r\n" + said("Hello ", newline=b"\r\n") + b":\r\n\r\n"
    + said("ü.", reason="stop", newline=b"\r\n") + b"data: [DONE]\r\n\r\n",
    "no blank after the colon, names of events": said("Hello ü.", reason="stop").replace(b"data: ", b"event: x\ndata:"),
    "no [DONE]": said("Hello ü.") + said(reason="stop"),
    "ends with the last line": (said("Hello ü.") + said(reason="stop")).rstrip(b"\n"),
    "usage with the last words": said("Hello ü.", reason="stop", usage={"prompt_tokens": 9, "completion_tokens": 3}),
    "usage in a chunk of its own": said("Hello ü.", reason="stop")
    + b'data: {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 3}}\n\n' + DONE,
    "usage of another kind": said("Hello ü.", reason="stop", usage={"prompt_tokens": None, "completion_tokens": "3",
    "prompt_tokens_details": 7}, mlxmtp={"passes": 3, "tokens_per_pass": "many"}) + DONE,
    "choices null beside": b'data: {"choices": null, "id": "x"}\n\n' + said("Hello ü.", reason="stop") + DONE,
    "an error that is null": said("Hello ü.", reason="stop", error=None) + DONE,
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_streaming_is_read(way: str) -> None:
    with peer(STREAM + WAYS[way]) as server:
        *events, end = ask(server.url)
    assert "".join(one.text for one in events if isinstance(one, Text)) == "Hello ü."
    assert isinstance(end, End)
    assert (end.finish_reason, end.stats.sent_to) == ("stop", "127.0.0.1")
    if "usage" in way and "kind" not in way:
        assert (end.stats.prompt_tokens, end.stats.generation_tokens) == (9, 3)
    assert end.stats.tokens_per_pass == 0


def test_a_stream_of_known_length_may_end_with_its_last_line() -> None:
    """Newer Pythons (3.13) close the connection when that line has been read."""
    body = (said("Hello ") + said("ü.", reason="stop")).rstrip(b"\n")
    with peer(http(body, "200 OK", "Content-Type: text/event-stream")) as server:
        assert ask(server.url)[:2] == [Text("Hello "), Text("ü.")]


def test_one_object_where_a_stream_was_asked_for() -> None:
    body = {"choices": [{"message": {"role": "assistant", "content": "Hello."}, "finish_reason": "length"}]}
    with peer(http(json.dumps(body).encode(), "200 OK", "Content-Type: application/json")) as server:
        text, end = ask(server.url)
    assert (text, getattr(end, "finish_reason", None)) == (Text("Hello."), "length")


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_thoughts_by_both_names(name: str) -> None:
    with peer(STREAM + delta(**{name: "Hm."}) + said("So.", reason="stop") + DONE) as server:
        assert ask(server.url)[:2] == [Thinking("Hm."), Text("So.")]


def test_calls_in_pieces_whole_and_as_objects() -> None:
    def call(**fields: object) -> bytes:
        return delta(tool_calls=[fields])

    ways = [
        call(index=0, id="a", function={"name": "f", "arguments": '{"x'})
        + call(index=0, function={"arguments": '": 1}'})
        + call(index=1, id="b", function={"name": "g", "arguments": ""}),
        call(id="a", function={"name": "f", "arguments": '{"x": 1}'}) + call(id="b", function={"name": "g"}),
        call(id="a", function={"name": "f", "arguments": {"x": 1}}) + call(id="b", function={"name": "g"}),
        call(id="a", function={"name": "f", "arguments": '{"x'}) + call(function={"arguments": '": 1}'})
        + call(id="b", function={"name": "g"}),
        call(index=0, id="a", function={"name": "f", "arguments": '{"x": 1}'})
        + call(index=0, id="b", function={"name": "g", "arguments": "{}"}),
        call(index=0, id="a", function={"name": "f", "arguments": ""})
        + call(index=0, function={"arguments": '{"x'}) + call(index=0, function={"arguments": '": 1}'})
        + call(index=0, id="b", function={"name": "g", "arguments": ""}) + call(index=0, function={"arguments": "{}"}),
        call(index=0, id="a", function={"name": "f", "arguments": '{"x'})  # a new id for each piece: older vLLM
        + call(index=0, id="b", function={"arguments": '": 1}'}) + call(index=1, id="c", function={"name": "g"}),
    ]  # fmt: skip
    for way in ways:
        with peer(STREAM + way + said(reason="tool_calls") + DONE) as server:
            first, second, end = ask(server.url)
        assert (first, second) == (Call("f", {"x": 1}), Call("g", {}))
        assert getattr(end, "finish_reason", "") == "tool"


def test_a_stop_is_heard_while_a_call_is_written() -> None:
    def piece(**fields: object) -> bytes:
        return delta(tool_calls=[{"index": 0, **fields}])

    class Stopped(Exception):
        pass

    heard = []

    def on_prefill(*_: int) -> None:
        heard.append(1)
        if len(heard) == 30:
            raise Stopped

    call = piece(id="a", function={"name": "f", "arguments": "{"}) + piece(function={"arguments": " "}) * 50
    end = piece(function={"arguments": "}"}) + said(reason="tool_calls") + DONE
    with peer(STREAM + call + end) as server:
        answer = ServedModel(Remote(server.url), "large").stream(HI, on_prefill=on_prefill)
        with pytest.raises(Stopped):
            list(answer)


SLOW = 0.4
FAULTS: dict[str, tuple[list[Step], str, bool]] = {
    "429": ([http(b'{"error": {"message": "slow down"}}', "429 Too Many", "Retry-After: 7")], "429", True),
    "503": ([http(b"<html>", "503 Service Unavailable")], "503", True),
    "a date": ([http(b"", "503 x", "Date: Wed, 21 Oct 2026 07:28:00 GMT",
                     "Retry-After: Wednesday, 21-Oct-26 07:28:30 GMT")], "503", True),
    "no date": ([http(b"", "503 x", "Retry-After: soon")], "503", True),
    "403": ([http(b'{"error": {"message": "pages of x are not allowed"}}', "403 Forbidden")], "403", False),
    "400": ([http(b'{"error": "no such model"}', "400 Bad")], "400", False),
    "401": ([http(b"", "401 Unauthorized")], "401", False),
    "no status": ([b"SSH-2.0-OpenSSH\r\n"], "SSH", True),
    "nothing": ([b""], "Remote end closed", True),
    "a page": ([http(b"<html>", "200 OK", "Content-Type: text/html")], "it broke off", True),
    "garbage": ([STREAM + b"data: nonsense\n\n"], "another protocol", True),
    "other JSON": ([STREAM + b'data: {"choices": [3]}\n\n'], "another protocol", True),
    "a list": ([STREAM + b"data: []\n\n"], "another protocol", True),
    "calls of another kind": ([STREAM + delta(tool_calls=[3])], "another protocol", True),
    "an error": ([STREAM + b'data: {"error": {"message": "no memory"}}\n\n'], "could not answer", True),
    "cut": ([STREAM + said("Half")], "it broke off", True),
    "cut in a chunked stream": (
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n40\r\n" + said("Half")], "it broke off", True),
    "slow to begin": ([SLOW * 5, STREAM + said("late", reason="stop")], "", True),
    "alive without a token": ([STREAM, *(cast("list[Step]", [b": keepalive\n\n", 0.1]) * 30)], "no token within", True),
    "arguments that are none": (
        [STREAM + delta(tool_calls=[{"id": "a", "function": {"name": "f", "arguments": "[1]"}}])
         + said(reason="tool_calls") + DONE], "cannot be read", False),
    "an argument that is no number of JSON": (
        [STREAM + delta(tool_calls=[{"id": "a", "function": {"name": "f", "arguments": '{"x": 1e999}'}}])
         + said(reason="tool_calls") + DONE], "cannot be read", False),
}  # fmt: skip


@pytest.mark.parametrize("ours", [True, False])
def test_what_may_be_anything_has_no_type_for_servers_of_others(ours: bool) -> None:
    """ "any" is a word of this program: a server that checks schemas refuses it."""
    numbers = {"type": "object", "properties": {"n": {"type": "array", "items": {"type": "any"}}}}
    tool = {"type": "function", "function": {"name": "f", "description": "", "parameters": numbers}}
    with peer(STREAM + said("Hi.", reason="stop") + DONE) as server:
        list(ServedModel(Remote(server.url), "large", ours=ours).stream(HI, tools=[tool]))
    sent = server.bodies[-1]["tools"][0]["function"]["parameters"]["properties"]["n"]
    assert sent == {"type": "array", "items": {"type": "any"} if ours else {}}


TIMES = ("slow to begin", "alive without a token")  # the others are not about time


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_a_sentence(fault: str) -> None:
    steps, reason, counts = FAULTS[fault]
    with peer(steps, steps) as server, pytest.raises(EndpointFailed) as error:
        ask(server.url, patience=SLOW if fault in TIMES else 60)
    assert reason in error.value.reason
    assert (error.value.counts, error.value.retry_after) == (counts, {"429": 7, "a date": 30}.get(fault))
    assert str(error.value).count("\n") == 0


def test_a_server_that_forbids_says_why_itself() -> None:
    with peer(FAULTS["403"][0]) as server, pytest.raises(EndpointFailed, match="refuses: pages of x are not allowed"):
        ask(server.url)


@pytest.mark.parametrize("before", [b"", delta(role="assistant", content="")])
def test_a_prompt_may_be_read_in_silence_behind_the_head(monkeypatch: pytest.MonkeyPatch, before: bytes) -> None:
    monkeypatch.setattr("mlxmtp.app.remote._SILENT", 0.2)
    with peer([STREAM + before, 1.0, said("Late.", reason="stop") + DONE]) as server:
        assert ask(server.url, patience=60)[0] == Text("Late.")


def test_silence_within_an_answer_breaks_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlxmtp.app.remote._SILENT", 0.2)
    steps: list[Step] = [STREAM + said("Half"), 60.0, said(reason="stop") + DONE]
    with peer(steps) as server, pytest.raises(EndpointFailed, match="broke off"):
        ask(server.url, patience=30)


def test_a_call_may_be_written_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlxmtp.app.remote._SILENT", 0.2)
    call = delta(tool_calls=[{"index": 0, "id": "a", "function": {"name": "f", "arguments": "{}"}}])
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    with peer([STREAM + said("Let me see."), 1.0, call + said(reason="tool_calls") + DONE]) as server:
        text, called, _ = ServedModel(Remote(server.url), "large").stream(HI, tools=tools)
    assert (text, called) == (Text("Let me see."), Call("f", {}, id="a"))


def test_nobody_listens() -> None:
    with refused() as url, pytest.raises(EndpointFailed, match="No server answers"):
        ask(url)


@pytest.mark.parametrize(
    ("form", "text", "good"),
    [
        (Constraint.schema({"type": "object", "required": ["a"]}), '{"a": 1}', True),
        (Constraint.schema({"type": "object", "required": ["a"]}), '{"b": 1}', False),
        (Constraint.schema({"properties": {"a": {"enum": ["x", "y"]}}}), '{"a": "z"}', False),
        (Constraint.schema({}), "[1]", True),
        (Constraint.schema({"type": "object"}), "Sure! Here it is", False),
        (Constraint("regex", "[ab]+"), "abab", True),
        (Constraint("regex", "[ab]+"), "abc", False),
    ],
)
def test_a_form_that_a_server_passes_over_is_noticed(form: Constraint, text: str, good: bool) -> None:
    with peer(STREAM + said(text, reason="stop") + DONE) as server:
        if good:
            assert Text(text) in ask(server.url, Params(constraint=form))
        else:
            with pytest.raises(EndpointFailed, match="did not keep to the form"):
                ask(server.url, Params(constraint=form))


def test_other_servers_get_only_what_they_know() -> None:
    with peer(*[STREAM + said("x", reason="stop")] * 3) as server:
        ask(server.url, Params(temp=0.5, max_tokens=7, num_draft_tokens=2))
        ask(server.url, Params(think=True))
        ask(server.url, Params(num_draft_tokens=2), ours=True)
    plain, thinks, ours = server.bodies
    thinking = plain.pop("chat_template_kwargs")
    assert thinking == {"enable_thinking": False}
    assert {*plain} == {"model", "messages", "temperature", "max_tokens", "stream", "stream_options"}
    assert thinks["chat_template_kwargs"] == {"enable_thinking": True}
    assert ours["mlxmtp"] == {"num_draft_tokens": 2}


EXTRA = {"type": "extra_forbidden", "loc": ["body", "chat_template_kwargs"], "msg": "Extra inputs are not permitted"}
INVALID: dict[str, tuple[object, str, str]] = {  # body, status, words of it that are told
    "OpenAI": (
        {"error": {"message": "Unrecognized argument: chat_template_kwargs"}},
        "400 Bad Request",
        "Unrecognized",
    ),
    "FastAPI": ({"detail": [EXTRA]}, "422 Unprocessable Entity", "Extra inputs"),
    "Mistral": ({"object": "error", "message": {"detail": [EXTRA]}}, "422 Unprocessable Entity", "Extra inputs"),
    "a place in a list": ({"error": {"message": "Invalid body", "loc": ["chat_template_kwargs"]}}, "400 x", "Invalid"),
    "no name": ({"message": "unknown field"}, "400 Bad Request", "unknown field"),
    "nothing": ({}, "422 x", "does not say why"),
}


@pytest.mark.parametrize("way", INVALID)
def test_a_server_that_refuses_the_switch_for_thoughts_is_asked_without_it(way: str) -> None:
    body, status, told = INVALID[way]
    no, yes = http(json.dumps(body).encode(), status), STREAM + said("x", reason="stop")
    with peer(no, yes, yes) as server:
        model = ServedModel(Remote(server.url), "large")
        assert [next(iter(model.stream(HI))) for _ in range(2)] == [Text("x")] * 2
    assert ["chat_template_kwargs" in body for body in server.bodies] == [True, False, False]
    with peer(no, no, yes) as server:  # something else is wrong, so nothing is learned from it
        model = ServedModel(Remote(server.url), "large")
        with pytest.raises(EndpointFailed, match=told):
            next(iter(model.stream(HI)))
        assert next(iter(model.stream(HI))) == Text("x")
    assert ["chat_template_kwargs" in body for body in server.bodies] == [True, False, True]


def extra(*names: str) -> bytes:
    """A refusal of fields as Mistral words it."""
    told = [{**EXTRA, "loc": ["body", name]} for name in names]
    body = {"object": "error", "message": {"detail": told}}
    return http(json.dumps(body).encode(), "422 Unprocessable Entity")


OPTIONS, TEMPLATE = "stream_options", "chat_template_kwargs"


@pytest.mark.parametrize(
    ("refusals", "refused"),
    [
        ([extra(OPTIONS)], [OPTIONS]),
        ([http(b'{"error": {"message": "include_usage is not known"}}', "400 Bad Request")], [OPTIONS]),
        ([extra(OPTIONS, TEMPLATE), extra(TEMPLATE)], [OPTIONS, TEMPLATE]),
        ([http(b"{}", "400 Bad Request"), extra(OPTIONS)], [TEMPLATE, OPTIONS]),
    ],
)
def test_a_server_that_refuses_the_wish_for_counts_is_asked_without_it(
    refusals: list[bytes], refused: list[str]
) -> None:
    yes = STREAM + said("x", reason="stop")
    with peer(*refusals, yes, yes) as server:
        model = ServedModel(Remote(server.url), "large")
        assert [next(iter(model.stream(HI))) for _ in range(2)] == [Text("x")] * 2
    sent = [[name for name in (OPTIONS, TEMPLATE) if name in body] for body in server.bodies]
    left = [[name for name in (OPTIONS, TEMPLATE) if name not in refused[:asked]] for asked in range(len(refused) + 1)]
    assert sent == [*left, left[-1]]
    with peer(extra(OPTIONS), extra("messages"), extra("messages"), yes) as server:  # something else is wrong
        model = ServedModel(Remote(server.url), "large")
        with pytest.raises(EndpointFailed, match="messages"):
            next(iter(model.stream(HI)))
        assert next(iter(model.stream(HI))) == Text("x")
    assert [OPTIONS in body for body in server.bodies] == [True, False, False, True]


@pytest.mark.parametrize(
    ("url", "there"),
    [
        ("http://[::1]", ("::1", 80)),
        ("https://[2001:db8::beef]/v1", ("2001:db8::beef", 443)),
        ("http://[::1]:8765", ("::1", 8765)),
        ("https://gpu.example", ("gpu.example", 443)),
    ],
)
def test_an_address_without_a_port_has_that_of_its_scheme(
    monkeypatch: pytest.MonkeyPatch, url: str, there: tuple[str, int]
) -> None:
    asked = []

    def connect(address: tuple[str, int], *_: object) -> None:
        asked.append(address)
        raise OSError("not here")

    monkeypatch.setattr("socket.create_connection", connect)
    with pytest.raises(EndpointFailed, match="not here"):
        Remote(url).models()
    assert asked == [there]


@pytest.mark.parametrize(
    ("given", "sent"),
    [("", "/v1"), ("/v1/", "/v1"), ("/api", "/api/v1"), ("/v1beta/openai", "/v1beta/openai"), ("/x/v2", "/x/v2")],
)
def test_addresses_with_and_without_a_version(given: str, sent: str) -> None:
    with peer() as server:
        assert Remote(server.url + given).model().name == "large"
    assert server.requests[0].startswith(f"GET {sent}/models HTTP".encode())


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
NAMED = st.fixed_dictionaries(
    {},
    optional={
        "choices": VALUES
        | st.lists(
            st.fixed_dictionaries(
                {},
                optional={
                    "delta": VALUES
                    | st.fixed_dictionaries(
                        {},
                        optional={
                            "content": VALUES,
                            "reasoning": VALUES,
                            "tool_calls": VALUES
                            | st.lists(
                                st.fixed_dictionaries(
                                    {},
                                    optional={"index": VALUES, "id": VALUES, "function": VALUES
                                              | st.fixed_dictionaries({"name": VALUES, "arguments": VALUES})},
                                ),
                                max_size=2,
                            ),
                        },
                    ),
                    "finish_reason": VALUES,
                },
            ),
            max_size=2,
        ),
        "usage": VALUES | st.dictionaries(st.sampled_from(["prompt_tokens", "completion_tokens"]), VALUES),
        "mlxmtp": VALUES | st.dictionaries(st.sampled_from(["passes", "drafted", "tokens_per_pass"]), VALUES),
        "error": VALUES,
    },
)  # fmt: skip


class Given(Chunks):
    """Chunks that came already."""

    def __init__(self, chunks: list[object]) -> None:
        self.remote, self._given = Remote("127.0.0.1"), chunks

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield from (self._checked(one) for one in self._given)

    def close(self) -> None:
        pass


@given(st.lists(NAMED | VALUES, max_size=3))
def test_whatever_a_server_sends(chunks: list[object]) -> None:
    try:
        *_, end = RemoteAnswer(Given(chunks), None, Params())
    except EndpointFailed:
        return
    assert isinstance(end, End)
    assert json.dumps(end.stats.to_dict())


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLXMTP_HOME", str(tmp_path))
    monkeypatch.setenv("TEAM_KEY", "sk-secret")
    return tmp_path


def test_an_endpoint_of_the_config_answers(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = [STREAM + said("One.", reason="stop"), STREAM + said("Two.", reason="stop"), http(b"", "401 No")]
    with peer(*answers) as server:
        (home / "config.toml").write_text(f'[endpoint.team]\nurl = "{server.url}"\nkey_env = "TEAM_KEY"\n')
        assert app.main(["ask", "--no-stdin", "-m", "team", "--save", "--json", "First?"]) == 0
        first = json.loads(capsys.readouterr().out)
        assert (first["model"], first["response"], first["stats"]["sent_to"]) == ("large", "One.", "127.0.0.1")
        assert app.main(["ask", "--no-stdin", "-c", "Second?"]) == 0  # the conversation was with it
        assert capsys.readouterr().out == "Two.\n"
        assert app.main(["ask", "--no-stdin", "-m", "team", "Third?"]) == 1
        assert "sk-secret" not in capsys.readouterr().err
    assert all(b"Authorization: Bearer sk-secret" in one for one in server.requests)
    assert [message["content"] for message in server.bodies[1]["messages"]] == ["First?", "One.", "Second?"]
    kept = [one.read_text() for one in home.rglob("*") if one.is_file()]
    assert not any("sk-secret" in text for text in kept)


def test_tools_run_here_for_the_model_of_a_server(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    called = [{"index": 0, "id": "a", "function": {"name": "calculate", "arguments": '{"expression": "6 * 7"}'}}]
    wrong = [{"index": 0, "id": "b", "function": {"name": "calculate", "arguments": '{"expression": 42}'}}]
    steps = [STREAM + delta(tool_calls=one) + said(reason="tool_calls") + DONE for one in (wrong, called)]
    with peer(*steps, STREAM + said("It is 42.", reason="stop")) as server:
        assert app.main(["ask", "--no-stdin", "-m", server.url, "--tools", "calculator", "--json", "6 * 7?"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["response"] == "It is 42."
    assert [one["result"] for one in found["calls"]] == [
        "It was not run: expression must be of type string, not 42.",
        "42",
    ]
    assert [one["role"] for one in server.bodies[-1]["messages"]] == ["user", *["assistant", "tool"] * 2]


def test_an_answer_that_is_cut_is_one(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a form a limit is no failure; in one it is."""
    answers = [STREAM + said("One", reason="length")] * 2
    with peer(*answers) as server:
        words = ["ask", "--no-stdin", "-m", server.url, "--max-tokens", "1", "Hi"]
        assert app.main(words) == 0
        assert "was cut after 1 tokens (--max-tokens)" in capsys.readouterr().err
        assert app.main([*words, "--json-output"]) == 1


@pytest.mark.parametrize("reason", ["content_filter", "abort"])
def test_an_answer_that_the_server_ended_early_is_none(
    home: Path, capsys: pytest.CaptureFixture[str], reason: str
) -> None:
    cut = delta(tool_calls=[{"index": 0, "id": "a", "function": {"name": "f", "arguments": '{"x'}}])
    with peer(STREAM + said("Half") + cut + said(reason=reason) + DONE) as server:
        assert app.main(["ask", "--no-stdin", "-m", server.url, "Hi"]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("Half")
    assert f"ended its answer early ({reason})" in err


CUT = said('{"a": 1', reason="stop")


@pytest.mark.parametrize(
    ("answer", "form", "whole"),
    [
        (CUT, ["--schema", "a int"], False),
        (said('{"a": 1}', reason="stop"), ["--schema", "a int"], True),
        (said("ab", reason="stop"), ["--regex", "abc"], False),
        (said("ab", reason="stop"), ["--regex", r"(?x) ab \z"], True),  # Rust's, which Python does not read
        (CUT.replace(b'"finish_reason"', b'"stop_reason": "}", "finish_reason"'), ["--json-output"], False),
    ],
)
def test_what_a_stop_string_cut_within_its_form_is_no_answer(
    home: Path, capsys: pytest.CaptureFixture[str], answer: bytes, form: list[str], whole: bool
) -> None:
    with peer(STREAM + answer) as server:
        assert app.main(["ask", "--no-stdin", "-m", server.url, *form, "--stop", "}", "Hi"]) == (0 if whole else 1)
    assert whole or "leave out --stop" in capsys.readouterr().err


def test_a_key_goes_only_where_its_owner_has_said(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLXMTP_API_KEY", "sk-own")
    (home / "config.toml").write_text('[endpoint.team]\nurl = "http://team.example"\n', encoding="utf-8")

    def keyed(flags: dict[str, Any], **environment: str) -> bool:
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            endpoint = endpoint_of(load_settings(flags))
        assert endpoint is not None
        return endpoint.remote(5).keyed

    for address in ("http://far.example", "http://127.far.example", "http://localhost.far.example:8765"):
        assert not keyed({"model": address})
        assert not keyed({"url": address})
        assert keyed({}, MLXMTP_URL=address)
    for address in ("http://localhost:1", "127.0.0.1:1", "http://[::1]:1/v1"):
        assert keyed({"url": address})
    monkeypatch.setenv("MLXMTP_MODEL", "http://team.example")
    another = endpoint_of(with_model(load_settings({}), "http://far.example", "flag"))
    assert another is not None
    assert not another.remote(5).keyed
    assert not keyed({"model": "team"})  # its table names no key
    assert not keyed({"url": "http://far.example"}, MLXMTP_URL="http://team.example")
    with peer(http(b"", "401 Who")) as server:
        monkeypatch.setattr("mlxmtp.app.endpoints.is_loopback", lambda host: False)
        with pytest.raises(MlxmtpError, match=r"name it in the config, .* or set MLXMTP_URL"):
            list(ServedModel(Endpoint(url=server.url).remote(5), "x").stream(HI))
    assert not any(b"sk-own" in one for one in server.requests)


@pytest.mark.parametrize("key", ["sk-secret\n", "sk-\r\nX-Admin: secret", "sk-\u2028secret"])
def test_a_key_that_no_header_holds_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(UsageError, match=r"The key for team.example .*: set TEAM_KEY anew") as error:
        Remote("http://team.example", key, "TEAM_KEY")
    assert "secret" not in str(error.value)


TYPED, SESSION = {"model": "flag"}, {"model": "session"}


@pytest.mark.parametrize(
    ("model", "origins", "address"),
    [
        ("team", SESSION, "http://team.example"),
        ("team", {**SESSION, "url": "flag"}, "http://other.example"),
        ("large", SESSION, "http://other.example"),
        ("http://third.example", SESSION, "http://other.example"),  # whatever a server calls its model
        ("http://third.example", TYPED, "http://third.example"),
    ],
)
def test_a_sessions_model_counts_as_typed(home: Path, model: str, origins: dict[str, str], address: str) -> None:
    (home / "config.toml").write_text('url = "http://other.example"\n[endpoint.team]\nurl = "http://team.example"\n')
    loaded = load_settings({})
    loaded = replace(loaded, settings=replace(loaded.settings, model=model), origins={**loaded.origins, **origins})
    found = endpoint_of(loaded)
    assert found is not None
    assert found.url == address
    assert found.model == (None if model == "team" or address in model else model)


def test_a_session_goes_on_at_its_server(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = [STREAM + said(text, reason="stop") for text in ("One.", "Two.")]
    with peer(*answers) as server, peer() as other:
        (home / "config.toml").write_text(f'[endpoint.team]\nurl = "{server.url}"\n')
        assert app.main(["ask", "--no-stdin", "-m", "team", "--save", "First?"]) == 0
        monkeypatch.setenv("MLXMTP_URL", other.url)
        assert app.main(["ask", "--no-stdin", "-c", "Second?"]) == 0
        assert capsys.readouterr().out == "One.\nTwo.\n"
    with peer(*answers) as server:
        monkeypatch.delenv("MLXMTP_URL")
        monkeypatch.setenv("MLXMTP_MODEL", server.url)
        assert app.main(["ask", "--no-stdin", "--save", "First?"]) == 0
        assert app.main(["ask", "--no-stdin", "-c", "Second?"]) == 0
        assert capsys.readouterr().out == "One.\nTwo.\n"
        assert [body["model"] for body in server.bodies] == ["large", "large"]


def test_a_session_of_a_model_on_this_machine_stays_on_it(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["ask", "--no-stdin", "-q", "--max-tokens", "4"]
    assert app.main([*asked, "-m", "pocket", "--save", "First?"]) == 0
    with peer(STREAM + said("Far.", reason="stop")) as server:
        monkeypatch.setenv("MLXMTP_MODEL", server.url)
        assert app.main([*asked, "-c", "Second?"]) == 0
        assert "Far." not in capsys.readouterr().out
        assert not server.bodies
        monkeypatch.delenv("MLXMTP_MODEL")
        monkeypatch.setenv("MLXMTP_URL", server.url)  # it lists another model, which goes on with it
        assert app.main(["ask", "--no-stdin", "-c", "Third?"]) == 0
        shown = capsys.readouterr()
        assert shown.out == "Far.\n"
        assert "Model 'pocket', which this conversation was with, is not here" in shown.err
        assert [body["model"] for body in server.bodies] == ["large"]


def test_serve_and_bench_leave_the_server_of_the_settings_alone(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLXMTP_URL", "http://127.0.0.1:1")
    assert app.main(["serve", "-m", "no-such-model"]) == 3
    assert app.main(["bench", "-m", "no-such-model"]) == 3
    assert capsys.readouterr().err.count("Model 'no-such-model' is not known") == 2


def test_a_name_that_is_nearly_an_endpoints(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "config.toml").write_text('[endpoint.team]\nurl = "http://team.example"\n', encoding="utf-8")
    assert app.main(["ask", "--no-stdin", "-m", "taem", "Hi"]) == 3
    assert "Model 'taem' is not known: did you mean 'team'?" in capsys.readouterr().err


def test_a_key_that_is_not_set(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEAM_KEY")
    endpoint = Endpoint(url="127.0.0.1:1", key_env="TEAM_KEY", name="team")
    with pytest.raises(ConfigError, match="takes its key from TEAM_KEY, which is not set"):
        RemoteOpener(load_settings({}), print, endpoint=endpoint)


@pytest.mark.parametrize("listed", [http(b"", "404 Not Found"), http(b""), MODELS])
def test_a_server_that_does_not_list_its_models(home: Path, listed: bytes) -> None:
    """The name that the config gives is believed; without one it must be asked for."""
    with peer(models=listed) as server:
        opener = RemoteOpener(load_settings({}), print, endpoint=Endpoint(url=server.url, model="x"))
        assert opener.target(None).name == "x"
        if listed is not MODELS:
            with pytest.raises(MlxmtpError, match="lists no models: name one"):
                Remote(server.url).model()
    with refused() as url, pytest.raises(MlxmtpError, match="No server answers"):
        RemoteOpener(load_settings({}), print, endpoint=Endpoint(url=url, model="x")).target(None)


@pytest.mark.parametrize("command", ["ask", "map"])
def test_an_endpoint_needs_no_networks(home: Path, command: str) -> None:
    """Neither MLX nor tokenizers are imported, and no memory is asked for."""
    (home / "a.txt").write_text("a")
    words = {"ask": ["--no-stdin", "Hi"], "map": ["Say {}", str(home / "a.txt")]}[command]
    with peer(STREAM + said("Hello.", reason="stop")) as server:
        code = (
            "import sys\nfrom mlxmtp.cli import app\n"
            f"code = app.main([{command!r}, '-m', {server.url!r}, *{words!r}])\n"
            "sys.exit(code or bool({'mlx.core', 'tokenizers', 'jinja2', 'httpx2'} & sys.modules.keys()))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, "Hello." in done.stdout) == (0, True), done.stderr


def test_map_asks_the_small_one_and_the_big_one_about_all(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the built-in model; a file of answers that is complete needs only the summary."""
    (home / "a.txt").write_text("a drafter", encoding="utf-8")
    words = ["map", "-m", "auto", "--max-tokens", "4", "-o", str(home / "o"), "--summary", "Alike?"]
    words += ["What is {}?", str(home / "a.txt")]
    with peer(*[STREAM + said("Alike.", reason="stop")] * 2) as server:
        router = (
            f'[router]\nsmall = "pocket"\nbig = "team"\nremote = "fallback"\n[endpoint.team]\nurl = "{server.url}"\n'
        )
        (home / "config.toml").write_text(f'{router}sends = ["attachments"]\n', encoding="utf-8")
        for _ in range(2):
            assert app.main(words) == 0
            out, err = capsys.readouterr()
            assert out == "--- summary ---\nAlike.\n\n", err
            assert "Summed up by team: summary; text went to 127.0.0.1." in err
        small = json.loads((home / "o").read_text(encoding="utf-8"))
        asked = server.bodies[-1]["messages"][0]["content"]
        assert asked == f"--- {home / 'a.txt'} ---\n{small['response'].strip()}\n\nAlike?"
        (home / "config.toml").write_text(router, encoding="utf-8")  # what comes from files stays here
        assert app.main(words) == 0
        assert "Summed up by pocket: summary, but team gets no attachments." in capsys.readouterr().err
    assert len(server.bodies) == 2


def test_bench_of_a_server(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "a.txt").write_text("Say something.", encoding="utf-8")
    usage = {"prompt_tokens": 5, "completion_tokens": 7}
    with peer(*[STREAM + said("a") + said("b", reason="stop", usage=usage)] * 3) as server:
        words = ["bench", "-m", server.url, "--suite", str(home / "a.txt"), "-r", "2", "-w", "1", "-n", "8"]
        assert app.main([*words, "--format", "json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert [one["tokens"] for one in report["runs"]] == [7, 7]
        assert report["complete"]
        assert server.bodies[-1]["max_tokens"] == 8
        assert app.main([*words, "--streams", "2"]) == 2
        assert app.main([*words, "-m", "pocket"]) == 2
        assert app.main(["bench", "-m", server.url, "-p", "64"]) == 2


def test_bench_of_a_server_sends_the_pictures_of_its_texts(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = Path(suite.__file__).with_name("suites") / "pictures" / "plan.png"
    row = {"prompt": "What is it?", "text": "A plan.", "system": "Be brief.", "image": str(picture)}
    (home / "own.jsonl").write_text(json.dumps(row), encoding="utf-8")
    usage = {"prompt_tokens": 5, "completion_tokens": 7}
    with peer(STREAM + said("a", reason="stop", usage=usage)) as server:
        assert app.main(["bench", "-m", server.url, "--suite", str(home / "own.jsonl"), "-r", "1", "-w", "0"]) == 0
    capsys.readouterr()
    url = f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "A plan.\n\nWhat is it?"}]
    [body] = server.bodies
    assert body["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}]


def test_inputs_of_map_fail_alone(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        (home / name).write_text(name, encoding="utf-8")
    with peer(http(b"", "500 Oh"), STREAM + said("Fine.", reason="stop")) as server:
        assert app.main(["map", "-m", server.url, "--parallel", "1", "{}", str(home / "a"), str(home / "b")]) == 1
    out, err = capsys.readouterr()
    assert out == f"--- {home / 'b'} ---\nFine.\n\n"
    assert "refuses: 500 Oh" in err
    assert "1 of 2 inputs have no answer" in err


def test_inputs_that_failed_are_asked_again_by_the_same_command(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "abc":
        (home / name).write_text(name, encoding="utf-8")
    one, two, three, summary = (STREAM + said(text, reason="stop") for text in ("One.", "Two.", "Three.", "All."))
    failed = http(b"", "500 Oh")
    with peer(failed, two, failed, summary, one, three, summary) as server:
        files = [str(home / name) for name in "abc"]
        words = ["map", "-m", server.url, "--parallel", "1", "-o", str(home / "out"), "--summary", "And?", "{}", *files]
        assert app.main(words) == 1
        assert "out says why, and the same command asks them again" in capsys.readouterr().err
        assert app.main(words) == 0
        assert "holds 1 of 3 answers already: continuing after them, 2 that failed first" in capsys.readouterr().err
    assert [json.loads(line)["response"] for line in (home / "out").read_text().splitlines()] == [
        "One.",
        "Two.",
        "Three.",
    ]
    assert len(server.bodies) == 7
    summed_up = server.bodies[-1]["messages"][-1]["content"]
    assert summed_up.index("One.") < summed_up.index("Two.") < summed_up.index("Three.")


def test_answers_that_are_too_long_by_estimate_are_summed_up_if_the_server_takes_them(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        (home / name).write_text(name, encoding="utf-8")
    long, summary = STREAM + said("ж" * 2000, reason="stop"), STREAM + said("All.", reason="stop")
    with peer(long, long, summary) as server:
        (home / "config.toml").write_text(f'[endpoint.team]\nurl = "{server.url}"\ncontext = 1024\n')
        words = ["map", "--url", "team", "-m", "A", "--parallel", "1", "--summary", "And?", "{}"]
        assert app.main([*words, str(home / "a"), str(home / "b")]) == 0
    assert capsys.readouterr().out.endswith("All.\n\n")
    assert server.bodies[-1]["messages"][-1]["content"].count("ж" * 2000) == 2
