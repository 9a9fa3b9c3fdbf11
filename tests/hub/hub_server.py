"""A model hub on 127.0.0.1 that speaks what the real client uses, and breaks on request.

    GET  /api/models/ORG/REPO[/revision/REV][?blobs=true]   commit and files
    GET  /api/models/ORG/REPO/tree/REV                      the same as a list, in pages
    HEAD, GET /ORG/REPO/resolve/REV/FILE                    small files; large ones (LFS) redirect to
    HEAD, GET /cdn/ORG/REPO/COMMIT/FILE                     their bytes, with ranges, on another host

Names of headers are those of the hub: X-Repo-Commit, ETag, X-Linked-Size, X-Linked-ETag, X-Error-Code.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LFS_FROM = 20_000
"""Bytes from which a file is stored apart, as weights are on the hub."""

PAGE = 5
"""Files per page of a listing."""


@dataclass
class Fault:
    """What goes wrong with requests whose path contains `path`; `times` says how often, None always.

    `status`: answer with it, and `headers`. `drop_at`: close the connection after so many bytes of the body.
    `stall_at`: send nothing more after so many bytes. `flip_at`: change the byte there. `rate`: bytes per second.
    `ignore_range`: send the whole file whatever was asked for.
    """

    path: str
    times: int | None = 1
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    drop_at: int | None = None
    stall_at: int | None = None
    flip_at: int | None = None
    rate: int | None = None
    ignore_range: bool = False


@dataclass
class Repo:
    """One repository: its files by commit, and which commit each branch is."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False


@dataclass
class Served:
    """One answered request."""

    method: str
    path: str
    range: str | None
    token: str | None
    agent: str | None
    sent: int = 0


class Hub:
    """The server; `repos`, `faults` and `token` may be changed at any time, `served` is what happened."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.faults: list[Fault] = []
        self.served: list[Served] = []
        self.renamed: dict[str, str] = {}  # old names, which are redirected
        self.token = "hf_good"
        self.lock = threading.Lock()
        self.stop = threading.Event()
        self._server = Server(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def other_url(self) -> str:
        """The same server under another name: for a client it is a host that must not see the token."""
        return self.url.replace("127.0.0.1", "localhost")

    def close(self) -> None:
        self.stop.set()
        self._server.shutdown()
        self._server.server_close()

    def publish(self, name: str, source: Path | dict[str, bytes], *, branch: str = "main", **access: bool) -> str:
        """Put the files of a folder (or given ones) on a branch and return the commit."""
        files = source if isinstance(source, dict) else folder_files(source)
        digest = hashlib.sha1(name.encode())
        for path in sorted(files):
            digest.update(path.encode() + files[path])
        commit = digest.hexdigest()
        repo = self.repos.setdefault(name, Repo())
        repo.commits[commit] = files
        repo.refs[branch] = commit
        for key, value in access.items():
            setattr(repo, key, value)
        return commit

    def fail(self, path: str, **what: Any) -> Fault:
        """Break requests whose path contains `path`."""
        fault = Fault(path, **what)
        with self.lock:
            self.faults.append(fault)
        return fault

    def take_fault(self, path: str, *, body: bool) -> Fault | None:
        """The next fault of an answer as a whole, or of a file's `body`."""
        with self.lock:
            for fault in self.faults:
                if fault.path in path and fault.times != 0 and body == (fault.status is None):
                    if fault.times is not None:
                        fault.times -= 1
                    return fault
        return None

    def bytes_of(self, name: str) -> int:
        """Bytes of a file's content that went out so far, however often."""
        return sum(item.sent for item in self.served if item.path.endswith(name))


def folder_files(folder: Path) -> dict[str, bytes]:
    return {
        item.relative_to(folder).as_posix(): item.read_bytes() for item in sorted(folder.rglob("*")) if item.is_file()
    }


def blob_id(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that are killed in the middle are what the tests are about."""


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        agent = self.headers.get("User-Agent")
        self.record = Served(self.command, path, self.headers.get("Range"), token, agent)
        self.hub.served.append(self.record)
        fault = self.hub.take_fault(path, body=False)
        try:
            if fault is not None and fault.status is not None:
                self._reply(fault.status, fault.headers, b"{}")
            else:
                self._route(path, token)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _route(self, path: str, token: str | None) -> None:
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path):
            self._api(found[1], found[2] or "revision", found[3] or "main", token)
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(found[1], found[2], found[3], token)
        elif found := re.fullmatch(r"/cdn/([^/]+/[^/]+)/([^/]+)/(.+)", path):
            content = self.hub.repos[found[1]].commits[found[2]][found[3]]
            self._content(content, {"ETag": f'"{sha256(content)}"'})
        else:
            self._reply(404, {"X-Error-Code": "RepoNotFound"}, b"{}")

    def _allowed(self, name: str, token: str | None, *, metadata: bool) -> Repo | None:
        """The repository, or None after an answer that refuses, as the hub words it."""
        repo = self.hub.repos.get(name)
        refusal: tuple[int, dict[str, str]] | None = None
        if token is not None and token != self.hub.token:
            refusal = (401, {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif repo is None or (repo.private and token is None):
            refusal = (401 if token is None else 404, {"X-Error-Code": "RepoNotFound"})
        elif repo.gated and not metadata and token is None:
            refusal = (401, {"X-Error-Code": "GatedRepo", "X-Error-Message": f"Access to model {name} is restricted."})
        if refusal is not None:
            self._reply(*refusal, b"{}")
            return None
        return repo

    def _commit(self, repo: Repo, revision: str) -> str | None:
        commit = repo.refs.get(revision, revision)
        if commit in repo.commits:
            return commit
        self._reply(404, {"X-Error-Code": "RevisionNotFound"}, b"{}")
        return None

    def _api(self, name: str, what: str, revision: str, token: str | None) -> None:
        if (new := self.hub.renamed.get(name)) is not None:
            self._reply(307, {"Location": self.path.replace(name, new)}, b"")
            return
        name = next((one for one in self.hub.repos if one.lower() == name.lower()), name)  # the hub forgives the case
        repo = self._allowed(name, token, metadata=True)
        commit = None if repo is None else self._commit(repo, revision)
        if repo is None or commit is None:
            return
        files = repo.commits[commit]
        if what == "tree":
            self._tree(name, revision, files)
            return
        siblings = [{"rfilename": path, **_described(content)} for path, content in files.items()]
        if parse_qs(urlsplit(self.path).query).get("blobs") is None:
            siblings = [{"rfilename": path} for path in files]
        table = {"_id": "1", "id": name, "modelId": name, "sha": commit, "private": repo.private, "gated": False}
        self._json({**table, "tags": [], "siblings": siblings})

    def _tree(self, name: str, revision: str, files: dict[str, bytes]) -> None:
        start = int(parse_qs(urlsplit(self.path).query).get("cursor", ["0"])[0])
        rows = []
        for path, content in list(files.items())[start : start + PAGE]:
            row: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": blob_id(content)}
            if len(content) >= LFS_FROM:
                row["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 134}
            rows.append(row)
        more = start + PAGE < len(files)
        here = f"{self.hub.url}/api/models/{name}/tree/{revision}"
        link = {"Link": f'<{here}?recursive=True&cursor={start + PAGE}>; rel="next"'} if more else {}
        self._json(rows, link)

    def _resolve(self, name: str, revision: str, path: str, token: str | None) -> None:
        repo = self._allowed(name, token, metadata=False)
        commit = None if repo is None else self._commit(repo, revision)
        if repo is None or commit is None:
            return
        content = repo.commits[commit].get(path)
        headers = {"X-Repo-Commit": commit}
        if content is None:
            self._reply(404, {**headers, "X-Error-Code": "EntryNotFound"}, b"{}")
        elif len(content) >= LFS_FROM:
            linked = {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{sha256(content)}"'}
            there = f"{self.hub.other_url}/cdn/{name}/{commit}/{path}"
            self._reply(302, {**headers, **linked, "Location": there}, b"")
        else:
            self._content(content, {**headers, "ETag": f'"{blob_id(content)}"'})

    def _json(self, value: object, headers: dict[str, str] | None = None) -> None:
        self._reply(200, {**(headers or {}), "Content-Type": "application/json"}, json.dumps(value).encode())

    def _reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _content(self, content: bytes, headers: dict[str, str]) -> None:
        if part := re.fullmatch(r"bytes=(\d+)-(\d+)", self.record.range or ""):  # a header, which meets no fault
            start, end = int(part[1]), min(int(part[2]) + 1, len(content))
            self._reply(
                206, {**headers, "Content-Range": f"bytes {start}-{end - 1}/{len(content)}"}, content[start:end]
            )
            return
        fault = (self.hub.take_fault(self.record.path, body=True) if self.command == "GET" else None) or Fault("")
        start = 0
        if self.record.range is not None and not fault.ignore_range:
            start = int(self.record.range.removeprefix("bytes=").split("-")[0])
            if start >= len(content):
                self._reply(416, {"Content-Range": f"bytes */{len(content)}"}, b"")
                return
            headers = {**headers, "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        if fault.flip_at is not None:
            at = fault.flip_at
            content = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
        self.send_response(206 if "Content-Range" in headers else 200)
        for key, value in {**headers, "Content-Length": str(len(content) - start), "Accept-Ranges": "bytes"}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self._body(memoryview(content)[start:], start, fault)

    def _body(self, body: memoryview, start: int, fault: Fault) -> None:
        step = 16_384 if fault.rate is None else max(1, fault.rate // 50)
        for at in range(0, len(body), step):
            piece = body[at : at + step]
            position = start + at
            for limit in (fault.drop_at, fault.stall_at):
                if limit is not None and position + len(piece) > limit:
                    piece = piece[: max(0, limit - position)]
            self.record.sent += len(piece)  # before a client that has it all can ask
            self.wfile.write(piece)
            self.wfile.flush()
            if fault.drop_at is not None and position + len(piece) >= fault.drop_at:
                self.close_connection = True
                return
            if fault.stall_at is not None and position + len(piece) >= fault.stall_at:
                self.hub.stop.wait(30)
                self.close_connection = True
                return
            if (rate := fault.rate) is not None:  # a test may change it meanwhile
                time.sleep(len(piece) / rate)


def _described(content: bytes) -> dict[str, Any]:
    table: dict[str, Any] = {"size": len(content), "blobId": blob_id(content)}
    if len(content) >= LFS_FROM:
        table["lfs"] = {"sha256": sha256(content), "size": len(content), "pointerSize": 134}
    return table
