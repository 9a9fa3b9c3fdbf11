"""Files at addresses that requests name: only if the operator allows it, from public addresses, within bounds; PDFs."""

from __future__ import annotations

import base64
import io
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlxmtp.media.pdf import Page
from mlxmtp.serve import fetching
from mlxmtp.serve.contents import content_of, files_in, has_unread, read_all
from mlxmtp.serve.fetching import fetch
from mlxmtp.serve.fields import Fields, Refused
from mlxmtp.serve.server import Options, options_of
from mlxmtp.settings import load_settings
from tests.media.test_documents import WORDS, pdf_of
from tests.media_golden import pictures
from tests.serve.running import Json, Running, running


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    pictures()[number].save(buffer, "PNG")
    return buffer.getvalue()


TALL = png(0)


class Site(BaseHTTPRequestHandler):
    """Answers by path."""

    def do_GET(self) -> None:
        status, headers, body = {
            "/tall.png": (200, {}, TALL),
            "/moved": (302, {"Location": "/tall.png"}, b""),
            "/inside": (302, {"Location": "http://10.0.0.7/secret"}, b""),
            "/round": (301, {"Location": "/round"}, b""),
            "/large": (200, {}, b"x" * 200_000),
            "/page.pdf": (200, {}, pdf_of([WORDS])),
            "/host": (200, {}, self.headers["Host"].encode()),
            "/K%C3%A4se%20b.png?%C3%A4=%2F": (200, {}, TALL),
            "/accents": (302, {"Location": "/Käse b.png?ä=%2F".encode().decode("latin-1")}, b""),
        }.get(self.path, (404, {}, b""))
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.path == "/large":
            self.close_connection = True
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """The port of a site here, which `public` makes one of the open internet."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield str(server.server_port)
    server.shutdown()
    thread.join(5)
    server.server_close()


@contextmanager
def public(port: str) -> Iterator[None]:
    """Let `example.org` lie behind that port, and 10.0.0.7 be as private as it is."""
    real = fetching._is_public
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetching, "_is_public", lambda address: address == "127.0.0.1" or real(address))
        patch.setattr(socket, "getaddrinfo", lambda host, port, *_, **__: [
            (2, 1, 6, "", ("127.0.0.1" if host == "example.org" else host, port))])  # fmt: skip
        connect = socket.create_connection
        patch.setattr(socket, "create_connection", lambda place, *rest: connect((place[0], int(port)), *rest))
        yield


def test_what_is_public_is_fetched_also_after_it_has_moved(site: str) -> None:
    with public(site):
        assert fetch("http://example.org/tall.png", "x") == TALL
        assert fetch("http://example.org/moved", "x") == TALL


@pytest.mark.parametrize("path", ["Käse b.png?ä=%2F", "accents"])
def test_an_address_may_have_any_letter(site: str, path: str) -> None:
    with public(site):
        assert fetch(f"http://example.org/{path}", "x") == TALL


def test_the_usual_port_is_no_part_of_the_host(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Signatures of addresses are of the plain name."""
    plain = SimpleNamespace(wrap_socket=lambda sock, **_: sock)
    monkeypatch.setattr(socket.socket, "do_handshake", lambda _: None, raising=False)
    monkeypatch.setattr("ssl.create_default_context", lambda: plain)
    with public(site):
        assert fetch("https://example.org/host", "x") == fetch("http://example.org/host", "x") == b"example.org"


def test_what_is_connected_to_is_what_was_judged(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name may lead elsewhere when it is looked up a second time."""
    places: list[tuple[str, int]] = []
    with public(site):
        connect, found = socket.create_connection, socket.getaddrinfo
        looked_up: list[str] = []

        def look_up(host: str, *rest: Any, **more: Any) -> Any:
            looked_up.append(host)
            return found(host, *rest, **more)

        def create(place: tuple[str, int], *rest: Any) -> socket.socket:
            places.append(place)
            return connect(place, *rest)

        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        monkeypatch.setattr(socket, "create_connection", create)
        assert fetch("http://example.org/moved", "x") == TALL
        monkeypatch.undo()
    assert places == [("127.0.0.1", 80)] * 2
    assert looked_up.count("example.org") == 2  # once for each address


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("inside", "'10.0.0.7' is an address of this machine or its network"),
        ("round", "leads from one to another more than 3 times"),
        ("large", "is larger than 0 MB"),
        ("gone", "answers with status 404"),
    ],
)
def test_what_leads_astray_is_refused(site: str, path: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "MOST_BYTES", 100_000)
    with public(site), pytest.raises(Refused, match=sentence):
        fetch(f"http://example.org/{path}", "x")


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/a.png",
        "http://localhost:80/",
        "http://[::1]/",
        "http://[::ffff:10.0.0.1]/",
        "http://[64:ff9b::7f00:1]/",
        "http://[2002:7f00:1::]/",
        "http://169.254.169.254/latest/meta-data",
        "http://192.168.1.1/",
        "http://100.64.0.1/",
        "http://0.0.0.0/",
        "http://2130706433/",
        "http://224.0.0.1/",
    ],
)
def test_private_addresses_are_refused_in_every_spelling(url: str) -> None:
    with pytest.raises(Refused, match=r"is an address of this machine or its network|cannot be fetched"):
        fetch(url, "x")


@pytest.mark.parametrize(
    "url", ["ftp://example.org/a", "http://me:secret@example.org/", "http://example.org:22/", "http:///a"]
)
def test_other_ports_schemes_and_passwords_are_refused(url: str) -> None:
    with pytest.raises(Refused, match="only"):
        fetch(url, "x")


def test_a_site_that_keeps_silent_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, public(str(silent.getsockname()[1])):
        monkeypatch.setattr(fetching, "_SECONDS", 0.2)
        with pytest.raises(Refused, match="cannot be fetched"):
            fetch("http://example.org/tall.png", "x")


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: "])
def test_a_site_that_answers_drop_by_drop_is_left(head: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def drip() -> None:
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            connection.recv(4096)
            connection.sendall(head)
            for _ in range(200):
                connection.sendall(b"x")
                time.sleep(0.02)

    with socket.create_server(("127.0.0.1", 0)) as listener, public(str(listener.getsockname()[1])):
        monkeypatch.setattr(fetching, "_SECONDS", 0.2)
        thread = threading.Thread(target=drip)
        thread.start()
        try:
            with pytest.raises(Refused, match="cannot be fetched"):
                fetch("http://example.org/tall.png", "x")
        finally:
            thread.join(30)


def content(*parts: Json) -> list[Json]:
    found = content_of(Fields({"content": list(parts)}, "messages[0]"))
    assert isinstance(found, list)
    return [{"role": "user", "content": found}]


def test_addresses_are_read_only_with_permission(site: str) -> None:
    asked = content({"type": "image_url", "image_url": {"url": "https://example.org/tall.png", "detail": "low"}})
    assert has_unread(asked)
    with pytest.raises(Refused, match=r"messages\[0\].content\[0\].image_url.url: nothing is fetched .* --fetch-media"):
        read_all(asked, fetches=False)
    asked = content({"type": "image_url", "image_url": {"url": "http://example.org/tall.png", "detail": "low"}})
    with public(site):
        [part] = read_all(asked, fetches=True)[0]["content"]
    assert (part["image"].data, part["image_tokens"]) == (TALL, 70)
    assert options_of(load_settings({"fetch_media": True})).fetches
    assert not options_of(load_settings({})).fetches


def test_too_many_addresses_are_refused_before_the_first_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []

    def fetch(url: str, _: str) -> bytes:
        fetched.append(url)
        return TALL

    monkeypatch.setattr("mlxmtp.serve.fetching.fetch", fetch)
    part = {"type": "image_url", "image_url": {"url": "http://example.org/tall.png"}}
    asked = [{"role": "user", "content": [part] * 51}, {"role": "user", "content": [part] * 50}]
    with running(tmp_path, Options(port=0, fetches=True)) as server:
        answer = server.post("/v1/chat/completions", messages=asked)
    assert (answer["http"], fetched) == (400, [])
    assert "101 images" in answer["error"]["message"]


def test_files_of_a_request_have_a_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlxmtp.serve.fetching.fetch", lambda *_: TALL)
    monkeypatch.setattr("mlxmtp.serve.fetching._ALL_BYTES", 2 * len(TALL))
    part = {"type": "image_url", "image_url": {"url": "http://example.org/tall.png"}}
    for count, refused in ((2, False), (3, True)):
        asked = content(*[part] * count)
        with pytest.raises(Refused, match="send fewer") if refused else nullcontext():
            read_all(asked, fetches=True)


class Client(threading.Thread):
    """Asks, and may be left alone."""

    def __init__(self, server: Running, body: Json) -> None:
        super().__init__(daemon=True)
        self._server, self._body = server, body

    def run(self) -> None:
        with suppress(OSError, HTTPException, ValueError):
            self._server.post("/v1/chat/completions", **self._body)


def test_a_server_that_ends_waits_for_no_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []
    asked, comes = threading.Event(), threading.Event()

    def fetch(url: str, _: str) -> bytes:
        fetched.append(url)
        asked.set()
        assert comes.wait(60)
        return TALL

    monkeypatch.setattr("mlxmtp.serve.fetching.fetch", fetch)
    parts = [{"type": "image_url", "image_url": {"url": "http://example.org/tall.png"}}] * 4
    with running(tmp_path, Options(port=0, fetches=True)) as server:
        body = {"messages": [{"role": "user", "content": parts}]}
        client = Client(server, body)
        client.start()
        assert asked.wait(30)
        for _ in range(3):  # it would wait for a client otherwise
            server.server.stop()
        assert server.ended(30)
    client.join(30)
    comes.set()
    assert len(fetched) == 1


def test_pages_of_several_documents_count_together(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[int] = []

    def read(_: bytes, __: str, most: int) -> list[Page]:
        limits.append(most)
        return [Page(1, "", TALL)] * 60

    monkeypatch.setattr("mlxmtp.serve.contents.read_pages", read)
    part = {"type": "file", "file": {"file_data": in_base64(PDF)}}
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{in_base64(TALL)}"}}
    read_all([*content(part, picture), *content(part)], fetches=False)
    assert limits == [99, 39]
    assert files_in(content(part, picture, part)) == 1


def in_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


PDF = pdf_of([WORDS, ""])


@pytest.mark.parametrize(
    "part",
    [
        {"type": "file", "file": {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{in_base64(PDF)}"}},
        {"type": "input_file", "filename": "a.pdf", "file_data": in_base64(PDF)},
        {
            "type": "document",
            "title": "a.pdf",
            "source": {"type": "base64", "media_type": "application/pdf", "data": in_base64(PDF)},
        },
    ],
    ids=["chat completions", "responses", "messages"],
)
def test_documents_are_text_and_pictures(part: Json) -> None:
    pytest.importorskip("pypdfium2")
    read = read_all(
        content({"type": "text", "text": "Before."}, part, {"type": "text", "text": "After."}), fetches=False
    )
    first, picture, last = read[0]["content"]
    assert first["text"] == f"Before.\n--- a.pdf, page 1 ---\n{WORDS}"
    assert picture["image"].name == "a.pdf, page 2"
    assert last["text"] == "After."


def test_a_document_at_an_address_and_what_is_none(site: str) -> None:
    pytest.importorskip("pypdfium2")
    asked = content({"type": "document", "source": {"type": "url", "url": "http://example.org/page.pdf"}})
    with public(site):
        assert WORDS in read_all(asked, fetches=True)[0]["content"]
    with pytest.raises(Refused, match=r"content\[0\].file.file_data is no"):
        content({"type": "file", "file": {"file_data": in_base64(b"words")}})
    with pytest.raises(Refused, match="file_id is not supported here"):
        content({"type": "input_file", "file_id": "1"})
    broken = content({"type": "file", "file": {"file_data": in_base64(b"%PDF-1.4\nnothing")}})
    with pytest.raises(Refused, match=r"document.pdf is a PDF that cannot be read"):
        read_all(broken, fetches=False)


def test_what_is_sent_as_data_waits_for_nothing() -> None:
    asked = content({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{in_base64(TALL)}"}})
    assert not has_unread(asked)
