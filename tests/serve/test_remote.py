"""`ask --url` and `chat --url`: a server's model answers as one here would, and every fault is a sentence."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mlxmtp.app.endpoints import endpoint_of
from mlxmtp.app.map import Job
from mlxmtp.app.map_inputs import Item
from mlxmtp.app.open import LearnedDrafting, Opener
from mlxmtp.app.remote import Remote
from mlxmtp.app.remote_model import Estimate, RemoteOpener, RemoteOpenModel, ServedModel
from mlxmtp.app.turn import Turn
from mlxmtp.chat.conversation import Conversation
from mlxmtp.chat.history import Exchange
from mlxmtp.chat.message import TextPart, ToolResult
from mlxmtp.cli import app
from mlxmtp.engine.constraint import Constraint
from mlxmtp.engine.events import End, Text, Thinking
from mlxmtp.engine.params import Params
from mlxmtp.errors import EndpointFailed, MlxmtpError, ModelNotFound, UsageError
from mlxmtp.serve.http import Door
from mlxmtp.serve.server import Options
from mlxmtp.settings import load_settings
from tests.serve.running import Running, call, running, wait_until

HI = [{"role": "user", "content": "Hi"}]


def model_of(served: Running) -> ServedModel:
    return ServedModel(Remote(served.server.url), "fake")


def test_an_answer_with_a_thought_and_its_numbers(served: Running) -> None:
    served.say("<|channel>thought\nHm.\n<channel|>Hello ü.<turn|>")
    params = Params(temp=0.5, seed=3, think=True, think_tokens=100, stop_strings=("END",), num_draft_tokens=2)
    *events, end = model_of(served).stream(HI, params)
    assert isinstance(end, End)
    assert "".join(one.text for one in events if isinstance(one, Text)) == "Hello ü."
    assert "".join(one.text for one in events if isinstance(one, Thinking)).strip() == "Hm."
    request = served.decoder.requests[-1]
    assert (request.sampling.temp, request.sampling.seed, request.draft) == (0.5, 3, 2)
    assert end.finish_reason == "stop"
    assert (end.stats.prompt_tokens, end.stats.seed) == (len(request.prompt), 3)
    assert end.stats.rounds > 0


@pytest.mark.parametrize("parallel", [1, 3])
def test_a_job_asks_a_server(served: Running, parallel: int) -> None:
    """`map --url`: in order, and what the server refuses is an error of that input alone."""
    served.say(*["Yes.<turn|>"] * 3)
    here = RemoteOpenModel(model_of(served), served.served, None, LearnedDrafting(Path(), None), 1000)  # type: ignore[arg-type]
    asked = [
        Item(name, name, prompt) for name, prompt in (("a", "Hi"), ("b", "word " * 9_000), ("c", "Ho"), ("d", "Hu"))
    ]
    found = list(Job(here, asked, Params(max_tokens=8), parallel).results())
    assert [one.item.name for one in found] == ["a", "b", "c", "d"]
    assert [one.response for one in found] == ["Yes.", "", "Yes.", "Yes."]
    assert "context" in found[1].error
    assert found[3].end is not None


def test_an_answer_goes_on_and_is_held_to_a_form(served: Running) -> None:
    served.say("world<turn|>", '{"a": 1}<turn|>', "ab<turn|>")
    begun = [*HI, {"role": "assistant", "content": "Hello"}]
    answer = model_of(served).stream(begun, continues=True)
    assert "".join(one.text for one in answer if isinstance(one, Text)) == "world"
    assert served.prompt().endswith("<|turn>model\nHello")
    for form in (Constraint.schema({"type": "object"}), Constraint("regex", "[ab]+")):
        list(model_of(served).stream(HI, Params(constraint=form)))
        assert served.decoder.requests[-1].constraint is not None


def test_a_server_finds_the_thought_and_the_tokens_of_past_calls(served: Running, tmp_path: Path) -> None:
    said = "<|channel>thought\nHm.\n<channel|>" + call('read{ path: "b c", line: 1e-7 }')
    served.say(f"{said}<|tool_response>", "Done.<turn|>")
    here = RemoteOpenModel(model_of(served), served.served, None, LearnedDrafting(tmp_path, None), 1000)  # type: ignore[arg-type]
    tools = [{"type": "function", "function": {"name": "read", "description": "Reads.", "parameters": {}}}]
    turn = Turn(Conversation(), "ask", Exchange("Read."))
    turn.begin(here, Params(think=True), tools=tools)
    assert turn.run(turn.stream(Params(think=True)), lambda _: True) is None
    turn.returned([ToolResult(call_id=turn.calls[0].id, name="read", content=(TextPart("7"),))])
    assert turn.run(turn.stream(Params(think=True)), lambda _: True) is not None
    assert said in served.prompt()


def test_closing_an_answer_stops_the_server(served: Running) -> None:
    served.say("x" * 4000)
    closed, rounds = served.decoder.closed, list[int]()

    def slowly(number: int) -> None:
        rounds.append(number)
        time.sleep(0.03)

    served.decoder.before_round = slowly
    answer = model_of(served).stream(HI)
    assert isinstance(next(answer), Text)
    answer.close()
    wait_until(lambda: served.decoder.closed > closed)
    served.decoder.before_round = lambda _: None
    assert rounds[-1] < 1000  # of 1334, which take 40 s


def test_a_wait_can_be_ended(served: Running) -> None:
    class Stop(Exception):
        pass

    def on_prefill(done: int, total: int) -> None:
        assert (done, total) == (0, 0)
        raise Stop

    served.say("x<turn|>")
    served.decoder.before_round = lambda _: time.sleep(0.5)
    with pytest.raises(Stop):
        list(model_of(served).stream(HI, on_prefill=on_prefill))
    served.decoder.before_round = lambda _: None
    wait_until(lambda: not served.decoder.answers)


def program(served: Running, home: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = app.main(["ask", "--url", served.server.url, "--no-stdin", *words])
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLXMTP_HOME", str(tmp_path))
    monkeypatch.setenv("MLXMTP_MODEL", "e4b")  # of this machine: it says nothing about the server's
    return tmp_path


def test_ask_with_a_session(served: Running, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    served.say("One.<turn|>", "Two.<turn|>")
    code, out, err = program(served, home, capsys, "--json", "--save", "First?")
    said = json.loads(out)
    assert (code, said["model"], said["response"]) == (0, "fake", "One.")
    code, out, err = program(served, home, capsys, "-c", "Second?")
    assert (code, out, err) == (0, "Two.\n", "")
    assert "One.<turn|>" in served.prompt()
    assert "Second?" in served.prompt()


def test_a_form_that_a_stop_string_cut_on_the_server_is_no_answer(
    served: Running, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    served.say("123 45<turn|>")
    code, out, err = program(served, home, capsys, "--regex", "[0-9 ]+", "--stop", " ", "Hi")
    assert (code, out, "leave out --stop" in err) == (1, "123\n", True)


def test_a_server_that_is_typed_goes_before_one_that_is_configured(
    served: Running, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLXMTP_URL", "http://127.0.0.1:1")
    (home / "config.toml").write_text(f'[endpoint.team]\nurl = "{served.server.url}"\n', encoding="utf-8")
    for name in (served.server.url, "team"):
        served.say("Typed.<turn|>")
        assert app.main(["ask", "--no-stdin", "-m", name, "Hi"]) == 0
        assert capsys.readouterr().out == "Typed.\n"
    for words in (["-m", "fake"], ["--url", "http://127.0.0.1:1", "-m", "team"], ["-m", "auto"]):
        assert app.main(["ask", "--no-stdin", *words, "Hi"]) == 1, words
        assert "No server answers at http://127.0.0.1:1" in capsys.readouterr().err
    (home / "config.toml").write_text(
        f'[endpoint.team]\nurl = "{served.server.url}"\n[router]\nsmall = "team"\nbig = ["team"]\n', encoding="utf-8"
    )
    assert endpoint_of(load_settings({"model": "auto"})) is None


def test_what_goes_on_has_its_form_with_what_it_goes_on_from() -> None:
    begun = [*HI, {"role": "assistant", "content": "aa"}]
    for text, good in (("bb", True), ("ba", False)):
        chunk = json.dumps({"choices": [{"delta": {"content": text}, "finish_reason": "stop"}]})
        with saying(http(f"data: {chunk}\n\ndata: [DONE]\n\n".encode())) as url:
            answer = ServedModel(Remote(url), "x", ours=False).stream(
                begun, Params(constraint=Constraint("regex", "a+b+")), continues=True
            )
            if good:
                assert Text("bb") in list(answer)
                assert answer.complete
            else:
                with pytest.raises(EndpointFailed, match="did not keep to the form"):
                    list(answer)


def test_ask_says_what_the_server_refuses(served: Running, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for length in (6000, 20_000):
        code, out, err = program(served, home, capsys, "x" * length)
        assert (code, out) == (1, "")
        assert f"refuses: The prompt is too long: {length // 1000}0" in err
    assert "By estimate the prompt has 5,009 tokens, and the context of 'fake' holds 4,096: the server says" in err
    code, _, err = program(served, home, capsys, "--dry-run", "Hi")
    assert (code, "name one with -m" in err) == (2, True)
    code, _, err = program(served, home, capsys, "-m", "e4b", "Hi")
    assert (code, "it has fake" in err) == (3, True)


def test_what_only_an_estimate_finds_too_long_is_answered(
    served: Running, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Estimate, "encode", lambda _, text: [0] * 10 * len(text))
    for more in ([], ["-c"]):
        served.say("Yes.<turn|>")
        code, out, err = program(served, home, capsys, "--save", *more, "x" * 500)
        assert (code, out) == (0, "Yes.\n")
        assert "By estimate" in err


def test_a_key_is_needed_and_never_shown(tmp_path: Path) -> None:
    with running(tmp_path, Options(port=0, door=Door("secret-key"))) as server:
        with pytest.raises(MlxmtpError, match="wants its key: set MLXMTP_API_KEY"):
            Remote(server.server.url).model()
        with pytest.raises(MlxmtpError) as error:
            Remote(server.server.url, "wrong-key").model()
        assert "wrong-key" not in str(error.value)
        assert Remote(f"{server.server.url}/v1/", "secret-key").model("fake").context == 4096


@contextmanager
def saying(*answers: bytes) -> Iterator[str]:
    """A peer that answers each connection with given bytes, and closes it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            for answer in answers:
                peer, _ = listener.accept()
                with peer:
                    peer.recv(65536)
                    peer.sendall(answer)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        thread.join(5)


def http(body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


STREAM = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
ASKS: list[tuple[bytes, str]] = [
    (b"", "No server answers"),
    (b"SSH-2.0-OpenSSH\r\n", "No server answers"),
    (http(b"<html>"), "lists no models: name one"),
    (http(b"[]"), "lists no models: name one"),
    (http(b'{"data": [1]}'), "lists no models: name one"),
    (http(b"gone", "502 Bad Gateway"), "refuses: 502 Bad Gateway"),
    (http(b'{"error": "busy"}', "503 x"), "refuses: busy"),
]


@pytest.mark.parametrize(("answer", "said"), ASKS)
def test_what_is_no_server_of_models(answer: bytes, said: str) -> None:
    with saying(answer) as url, pytest.raises(MlxmtpError, match=said):
        Remote(url).model()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (STREAM + b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n', "broke off"),
        (STREAM + b"data: nonsense\n\n", "does not speak"),
        (STREAM + b'data: {"error": {"message": "no memory"}}\n\n', "could not answer: no memory"),
    ],
)
def test_a_stream_that_breaks_off(answer: bytes, said: str) -> None:
    with saying(answer) as url, pytest.raises(MlxmtpError, match=said):
        list(ServedModel(Remote(url), "x").stream(HI))


def test_a_prompt_that_is_refused() -> None:
    """The server is asked once more, without a field that it may not know."""
    refusal = http(b'{"error": {"message": "too long"}}', "400 Bad")
    with saying(refusal, refusal) as url, pytest.raises(MlxmtpError, match="refuses: too long"):
        list(ServedModel(Remote(url), "x").stream(HI))


@pytest.mark.parametrize("url", ["", "ftp://x", "http://", "http://x:99999", "http://a:b@x", "http://[x"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(UsageError, match="no address"):
        Remote(url)


def test_the_servers_model_counts_as_there(served: Running, loaded: Callable[..., Opener]) -> None:
    opener = loaded(url=served.server.url)
    assert opener.has("fake")
    assert opener.has("default")  # another name of it, by which it is not listed
    assert loaded(url=served.server.url, model="default").target("default").name == "fake"
    assert not opener.has("e4b")
    assert opener.target("e4b").name == "fake"  # from the config: it names a model of this machine
    with pytest.raises(ModelNotFound):
        loaded(url=served.server.url, model="e4b").target("e4b")


@pytest.fixture
def loaded(home: Path) -> Callable[..., Opener]:
    from mlxmtp.settings import load_settings

    def opener(**flags: str) -> Opener:
        loaded = load_settings(flags)
        endpoint = endpoint_of(loaded)
        assert endpoint is not None
        return RemoteOpener(loaded, tell=lambda _: None, endpoint=endpoint)

    return opener


def test_asking_imports_no_networks() -> None:
    code = (
        "import sys, mlxmtp.app.remote, mlxmtp.app.connect; sys.exit('mlx' in sys.modules or 'httpx2' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
