"""Who may ask: hosts, origins, keys; and bodies that are not what they should be."""

from __future__ import annotations

import json
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxmtp.errors import UsageError
from mlxmtp.serve.connections import TimedProtocol
from mlxmtp.serve.http import Door
from mlxmtp.serve.models import Models
from mlxmtp.serve.routes import Limits
from mlxmtp.serve.server import Options, Server, options_of
from mlxmtp.settings import load_settings
from tests.serve.running import Json, Running, running, wait_until

CHAT = "/v1/chat/completions"
BODY: Json = {"messages": [{"role": "user", "content": "Hi"}]}
ENDPOINTS = [
    CHAT,
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/api/chat",
    "/api/show",
]


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", "", "[", "localhost@evil"]
)
@pytest.mark.parametrize("path", [CHAT, "/v1/models", "/health", "/api/tags"])
def test_a_name_that_was_made_to_point_here_gets_nothing(served: Running, host: str, path: str) -> None:
    requests = len(served.decoder.requests)
    status, _, data = served.request("POST" if path == CHAT else "GET", path, BODY if path == CHAT else None, Host=host)
    assert status == 403, data
    assert len(served.decoder.requests) == requests


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8765", "127.0.0.1:1", "[::1]:8765"])
def test_names_of_this_machine_are_answered(served: Running, host: str) -> None:
    assert served.request("GET", "/v1/models", Host=host)[0] == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "http://localhost:3000", "null"])
def test_pages_may_not_ask(served: Running, origin: str) -> None:
    status, headers, _ = served.request("POST", CHAT, BODY, Origin=origin)
    assert status == 403
    assert "access-control-allow-origin" not in headers
    status, headers, _ = served.request("OPTIONS", CHAT, Origin=origin, Access_Control_Request_Method="POST")
    assert status == 403
    assert "access-control-allow-origin" not in headers


def test_pages_that_are_named_may(tmp_path: Path) -> None:
    origin = "http://localhost:3000"
    with running(tmp_path, Options(port=0, door=Door(origins=frozenset({origin})))) as server:
        asked = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "content-type"}
        status, headers, _ = server.request("OPTIONS", CHAT, Origin=origin, **asked)
        assert (status, headers["access-control-allow-origin"]) == (204, origin)
        assert headers["access-control-allow-headers"] == "content-type"
        server.say("Hi.<turn|>")
        status, headers, _ = server.request("POST", CHAT, BODY, Origin=origin)
        assert (status, headers["access-control-allow-origin"]) == (200, origin)
        assert "access-control-allow-credentials" not in headers
        assert server.request("POST", CHAT, BODY, Origin="http://localhost:3001")[0] == 403


def test_a_page_that_is_named_is_told_that_its_key_is_wrong(tmp_path: Path) -> None:
    origin = "http://localhost:3000"
    with running(tmp_path, Options(port=0, door=Door("secret", origins=frozenset({origin})))) as server:
        for path in ENDPOINTS:
            status, headers, _ = server.request("POST", path, BODY, Origin=origin, Authorization="Bearer wrong")
            assert (status, headers.get("access-control-allow-origin"), headers.get("vary")) == (401, origin, "Origin")
            for key in ("wrong", "secret"):
                asked = {"Origin": "http://localhost:3001", "Authorization": f"Bearer {key}"}
                status, headers, _ = server.request("POST", path, BODY, **asked)
                assert status in (401, 403)
                assert "access-control-allow-origin" not in headers
        assert server.decoder.requests == []


def test_a_key_is_asked_for(tmp_path: Path) -> None:
    with running(tmp_path, Options(port=0, door=Door("geheim-ü"))) as server:
        wrong: list[Json] = [
            {},
            {"Authorization": "Bearer geheim"},
            {"x_api_key": "geheim-"},
            {"Authorization": "geheim"},
        ]
        for headers in wrong:
            for path in ENDPOINTS:
                status, _, data = server.request("POST", path, BODY, **headers)
                assert status == 401, data
            assert server.request("GET", "/v1/models", **headers)[0] == 401
        assert server.decoder.requests == []
        assert server.request("GET", "/health")[0] == 200
        right = "geheim-ü".encode().decode("latin-1")  # as clients put it into a header
        assert server.request("GET", "/v1/models", Authorization=f"Bearer {right}")[0] == 200
        assert server.request("GET", "/v1/models", x_api_key=right, Host="name.example")[0] == 200
        other = {"Authorization": "Bearer another", "x_api_key": right}  # some clients send both
        assert server.request("GET", "/v1/models", **other)[0] == 200
        assert not any("geheim" in line for line in server.told)


def test_others_may_ask_only_with_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLXMTP_API_KEY", raising=False)
    key = tmp_path / "key"
    with pytest.raises(UsageError, match=r"0\.0\.0\.0 .* --api-key-file"):
        options_of(load_settings({"host": "0.0.0.0"}))
    key.write_text(" \n", encoding="utf-8")
    with pytest.raises(UsageError, match="is empty"):
        options_of(load_settings({"host": "0.0.0.0", "api_key_file": str(key)}))
    key.write_text("secret\n", encoding="utf-8")
    assert options_of(load_settings({"host": "0.0.0.0", "api_key_file": str(key)})).door.key == "secret"
    with pytest.raises(UsageError, match="cannot be read"):
        options_of(load_settings({"api_key_file": str(tmp_path / "none")}))
    with pytest.raises(UsageError, match="cannot be read from /dev/zero: File too large"):
        options_of(load_settings({"api_key_file": "/dev/zero"}))
    assert options_of(load_settings({})).door.key is None


def test_a_key_in_the_environment_goes_before_one_that_the_config_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_text("old\n", encoding="utf-8")
    (tmp_path / "config.toml").write_text(f"api_key_file = {json.dumps(str(tmp_path / 'key'))}\n", encoding="utf-8")
    home = {"MLXMTP_HOME": str(tmp_path), "HOME": str(tmp_path)}
    monkeypatch.delenv("MLXMTP_API_KEY", raising=False)
    assert options_of(load_settings({}, home)).door.key == "old"
    monkeypatch.setenv("MLXMTP_API_KEY", "new")
    assert options_of(load_settings({}, home)).door.key == "new"
    assert options_of(load_settings({"api_key_file": str(tmp_path / "key")}, home)).door.key == "old"


def test_a_port_that_is_taken_is_a_sentence(served: Running) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UsageError, match=f"127.0.0.1:{port} cannot be opened .* --port"):
            Server(Models(served.served), Options(port=port), print)


def test_a_port_is_taken_from_the_start_and_a_host_that_is_none_is_a_sentence(served: Running) -> None:
    models = Models(served.served)
    first = Server(models, Options(port=0), print)  # which does not run yet
    try:
        with pytest.raises(UsageError, match="cannot be opened"):
            Server(models, Options(port=int(first.url.rpartition(":")[2])), print)
        with pytest.raises(UsageError, match=r"a\.\.b:0 cannot be opened"):
            Server(models, Options(host="a..b", port=0), print)
    finally:
        first._socket.close()


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"5",
        b'{"messages": NaN}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"n": 1' + b"0" * 5000 + b"}",
    ],
    ids=range(9),
)
def test_a_body_that_is_no_request_is_refused(served: Running, path: str, body: bytes) -> None:
    status, _, data = served.request("POST", path, body)
    assert status == 400, data
    assert b"error" in data


def test_a_body_has_an_end(tmp_path: Path) -> None:
    with running(tmp_path, Options(port=0, limits=Limits(body=1000))) as server:
        status, _, _ = server.request("POST", CHAT, b"x" * 1001)
        assert status == 413
        with socket.create_connection(("127.0.0.1", server.port)) as peer:  # without a length
            peer.sendall(b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
            for _ in range(20):
                peer.sendall(b"64\r\n" + b"x" * 100 + b"\r\n")
            answer = b""
            while b"}}" not in answer:
                answer += (part := peer.recv(4096))
                assert part
        assert b" 413 " in answer.split(b"\r\n", 1)[0]
        assert b'"type":"error"' in answer
        server.say("Hi.<turn|>")
        assert server.post(CHAT, **BODY)["http"] == 200


def test_requests_that_break_off_leave_the_server_as_it_was(served: Running) -> None:
    beginnings = [
        b"", b"GET", b"\0" * 100, b"POST /v1/messages HTTP/1.1\r\n",
        b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{",
        b"GET / HTTP/9.9\r\n\r\n", b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ]  # fmt: skip
    for beginning in beginnings:
        with socket.create_connection(("127.0.0.1", served.port)) as peer:
            peer.sendall(beginning)
            peer.shutdown(socket.SHUT_WR)
            time.sleep(0.01)
    served.say("Hi.<turn|>")
    assert served.post(CHAT, **BODY)["http"] == 200


def test_a_head_that_does_not_come_is_not_waited_for(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    limit, begun = "mlxmtp.serve.connections.HEADER_SECONDS", TimedProtocol.connection_made
    connections: list[TimedProtocol] = []

    def made(connection: TimedProtocol, transport: Any) -> None:
        begun(connection, transport)
        connections.append(connection)

    monkeypatch.setattr(TimedProtocol, "connection_made", made)
    monkeypatch.setattr(limit, 0.2)
    for sent in (b"", b"POST /v1/mess"):
        with socket.create_connection(("127.0.0.1", served.port)) as peer:
            peer.settimeout(60)
            with suppress(ConnectionError):  # it may be closed before this is sent
                peer.sendall(sent)
                assert peer.recv(100) == b""
    monkeypatch.setattr(limit, 600)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    body = b'{"messages": [{"role": "user", "content": "Hi"}]}'
    waits: list[bool] = []
    with socket.create_connection(("127.0.0.1", served.port)) as peer:
        peer.settimeout(60)
        wait_until(lambda: len(connections) == 3)
        connection = connections[-1]
        assert connection._waiting is not None
        served.say("Hi.<turn|>")
        served.decoder.before_round = lambda _: waits.append(connection._waiting is not None)
        peer.sendall(head % len(body))
        wait_until(lambda: connection._waiting is None)  # a body has its own time, and so has an answer
        peer.sendall(body)
        assert b"200 OK" in peer.recv(4096)
        served.decoder.before_round = lambda _: None
        assert waits
        assert not any(waits)
        monkeypatch.setattr(limit, 0.2)
        with suppress(ConnectionError):
            peer.sendall(b"GET /hea")  # the next request on the same connection
            received = b"x"
            while received:
                received = peer.recv(4096)


def test_a_body_that_does_not_come_is_refused(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlxmtp.serve.http._BODY_SECONDS", 0.1)
    with socket.create_connection(("127.0.0.1", served.port)) as peer:
        peer.settimeout(60)
        peer.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{")
        answer = b""
        while b"}}" not in answer:
            answer += (part := peer.recv(4096))
            assert part, answer
    assert b" 408 " in answer.split(b"\r\n", 1)[0]
    assert b"The body did not come within" in answer
    monkeypatch.undo()
    served.say("Hi.<turn|>")
    assert served.post(CHAT, **BODY)["http"] == 200


def test_paths_and_methods_that_do_not_exist(served: Running) -> None:
    assert served.request("GET", "/v1/nothing")[0] == 404
    refused = served.get(CHAT)
    assert refused["error"]["type"] == "invalid_request_error"
    assert served.request("GET", CHAT)[0] == 405
    assert served.request("HEAD", "/")[0] == 200
    assert served.get("/v1/models/fake")["id"] == "fake"
    assert served.get("/v1/models/other/model")["error"]["code"] == "model_not_found"
    models = served.get("/v1/models")
    assert (models["object"], models["data"][0]["id"], models["has_more"]) == ("list", "fake", False)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=10,
)
NAMES = """messages input prompt system tools tool_choice temperature max_tokens stop stream n seed thinking reasoning
    options stream_options response_format text content role metadata model mlxmtp think output_config
    chat_template_kwargs""".split()


@settings(max_examples=150, deadline=None)
@given(path=st.sampled_from(ENDPOINTS), body=st.dictionaries(st.sampled_from(NAMES), JSON, max_size=6))
def test_no_body_breaks_the_server(served: Running, path: str, body: Json) -> None:
    served.decoder.answers.clear()
    served.say("Hi.<turn|>", *["Hi.<turn|>"] * 8)
    status, _, data = served.request("POST", path, body)
    assert status in (200, 400, 404), data
    assert not any("Unexpected" in line for line in served.told), served.told
