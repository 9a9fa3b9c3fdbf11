"""Tool servers that others have written, over pipes and HTTP; `scripts/tool_servers` installs and calls them."""

from __future__ import annotations

import http.server
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from mlxmtp.app.tools.server_list import ServerEntry
from tests.app.test_mcp_servers import called, using, wait_until
from tests.free_port import free_port

FOLDER = Path(os.environ.get("MLXMTP_TOOL_SERVERS", ""))
pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(not FOLDER.name, reason="scripts/tool_servers has not installed them"),
]


def python(name: str, *args: str) -> ServerEntry:
    return ServerEntry(name, str(FOLDER / "bin" / f"mcp-server-{name}"), args)


def node(name: str, *args: str) -> ServerEntry:
    return ServerEntry(name, str(FOLDER / "node_modules" / ".bin" / f"mcp-server-{name}"), args)


def test_time(tmp_path: Path) -> None:
    with using(python("time"), folder=tmp_path) as tools:
        assert tools.renew() == []
        said = called(tools, "convert_time", source_timezone="Europe/Paris", time="12:00", target_timezone="Asia/Tokyo")
        assert "20:00" in said or "19:00" in said
        assert "nvalid" in called(tools, "get_current_time", timezone="Nowhere/Land")


def test_fetch(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<html><body><h1>Hello</h1><p>From here.</p></body></html>")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(tmp_path))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            pass

    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    Thread(target=web.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{web.server_port}/page.html"
    with using(python("fetch", "--ignore-robots-txt", "--allow-private-ips"), folder=tmp_path) as tools:
        assert tools.renew() == []
        assert "From here." in called(tools, "fetch", url=address)
        assert called(tools, "fetch", url=f"{address}.gone")
    web.shutdown()
    web.server_close()


def test_git(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path / "repo")], check=True)
    (tmp_path / "repo" / "new.txt").write_text("x")
    with using(python("git", "--repository", str(tmp_path / "repo")), folder=tmp_path) as tools:
        assert tools.renew() == []
        assert "new.txt" in called(tools, "git_status", repo_path=str(tmp_path / "repo"))


def test_filesystem(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "secret").write_text("x")
    with using(node("filesystem", str(tmp_path / "in")), folder=tmp_path) as tools:
        assert tools.renew() == []
        assert called(tools, "write_file", path=str(tmp_path / "in" / "a.txt"), content="A\nB")
        assert (tmp_path / "in" / "a.txt").read_text() == "A\nB"
        assert "A\nB" in called(tools, "read_text_file", path=str(tmp_path / "in" / "a.txt"))
        assert "denied" in called(tools, "read_text_file", path=str(tmp_path / "secret"))


def test_memory(tmp_path: Path) -> None:
    entry = node("memory")
    entry = ServerEntry("memory", entry.command, env={"MEMORY_FILE_PATH": str(tmp_path / "memory.jsonl")})
    with using(entry, folder=tmp_path) as tools:
        assert tools.renew() == []
        made = called(tools, "create_entities", entities=[{"name": "a", "entityType": "b", "observations": ["c"]}])
        assert "observations" in made
        assert "entityType" in called(tools, "read_graph")


@pytest.fixture
def everything(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[ServerEntry]:
    if request.param == "pipes":
        yield node("everything")
        return
    port = free_port()
    command = [node("everything").command, "streamableHttp"]
    with subprocess.Popen(command, env={**os.environ, "PORT": str(port)}, stderr=subprocess.DEVNULL) as process:

        def listens() -> bool:
            with socket.socket() as there:
                return there.connect_ex(("127.0.0.1", port)) == 0

        wait_until(listens)
        yield ServerEntry("everything", url=f"http://127.0.0.1:{port}/mcp")
        process.terminate()


@pytest.mark.parametrize("everything", ["pipes", "http"], indirect=True)
def test_everything(tmp_path: Path, everything: ServerEntry) -> None:
    with using(everything, folder=tmp_path) as tools:
        assert tools.renew() == []
        assert "hello" in called(tools, "echo", message="hello")
        for name in tools.box.tools:
            assert isinstance(called(tools, name, limit=5.0), str)
