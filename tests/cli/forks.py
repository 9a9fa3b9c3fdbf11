"""Processes of the stand-in program, each a fork of one that has imported everything: half a second less per process.

A child gets descriptors, folder, environment, terminal and signals as if it had been started. Imports are behind it,
and so is what the interpreter reads from the environment at its own start; tests of those take `Program.anew`.
"""

from __future__ import annotations

import atexit
import faulthandler
import gc
import importlib
import io
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from functools import cache
from pathlib import Path
from threading import Thread
from typing import Any, NoReturn

ROOT = Path(__file__).parents[2]
_PATIENCE = 240.0  # seconds until a process that does not start or end is given up
IMPORTED_LATE = [
    "anyio._backends._asyncio", "http.client", "jinja2.ext", "markdown_it.tree", "mcp", "mlxmtp.app.tools.builtin",
    "mlxmtp.app.tools.transports", "mlxmtp.engine.template", "prompt_toolkit.input.vt100",
    "prompt_toolkit.key_binding.bindings.search", "pygments.lexers", "tokenizers", "zoneinfo",
]  # fmt: skip


class Process:
    """A child with pipes to here, or in a terminal that is all its streams.

    `args` are the program's, or with `anew` those of a program that is started; `stdin` is a descriptor, or None for a
    pipe.
    """

    def __init__(
        self, args: Sequence[str], env: Mapping[str, str], cwd: Path, *,
        stdin: int | None = None, terminal: int | None = None, anew: bool = False,
    ) -> None:  # fmt: skip
        self.returncode: int | None = None
        self._reports, report = os.pipe()
        theirs, given = [report], [terminal] * 3
        if terminal is None:
            (read_in, write_in), (read_out, write_out), (read_err, write_err) = os.pipe(), os.pipe(), os.pipe()
            self.stdin = os.fdopen(write_in, "wb")
            self.stdout, self.stderr = os.fdopen(read_out, "rb", 0), os.fdopen(read_err, "rb", 0)
            theirs += [read_in, write_out, write_err]
            given = [read_in if stdin is None else stdin, write_out, write_err]
        request = {"args": [*args], "env": {**env}, "cwd": str(cwd), "terminal": terminal is not None, "anew": anew}
        payload = json.dumps(request).encode()
        socket.send_fds(_server(), [len(payload).to_bytes(4, "big")], [*given, report])  # type: ignore[list-item]
        _server().sendall(payload)
        for descriptor in theirs:
            os.close(descriptor)
        self.pid = self._report(_PATIENCE)

    def wait(self, timeout: float = _PATIENCE) -> int:
        """Return the exit code, a signal's number below zero."""
        while self.returncode is None:
            status = self._report(timeout)
            if not os.WIFSTOPPED(status):
                self.returncode = os.waitstatus_to_exitcode(status)
                os.close(self._reports)
        return self.returncode

    def wait_until_stopped(self) -> None:
        assert os.WIFSTOPPED(self._report(_PATIENCE))

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, given: bytes = b"", timeout: float = _PATIENCE) -> tuple[bytes, bytes]:
        """Write `given` to stdin, read the rest of stdout and stderr, and wait for the end."""
        said = [b"", b""]

        def write() -> None:
            with suppress(BrokenPipeError), self.stdin:
                self.stdin.write(given)

        def read(number: int) -> None:
            with (self.stdout, self.stderr)[number] as stream:
                said[number] = stream.read()

        threads = [Thread(target=write), *(Thread(target=read, args=(number,)) for number in (0, 1))]
        for thread in threads:
            thread.start()
        try:
            self.wait(timeout)
        finally:
            self.kill()
            for thread in threads:
                thread.join(timeout)
        return said[0], said[1]

    def _report(self, timeout: float) -> int:
        if not select.select([self._reports], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired("mlxmtp", timeout)
        report = os.read(self._reports, 4)
        assert report, "the server of forks has ended"
        return int.from_bytes(report, "big")


@cache
def _server() -> socket.socket:
    """Start the process that is forked, once; it ends with this one."""
    here, there = socket.socketpair()
    kept = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH")
    environ = {name: value for name, value in os.environ.items() if name in kept}
    environ |= {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "tests.cli.forks", str(there.fileno())]
    process = subprocess.Popen(
        command, env=environ, cwd=ROOT, stdin=subprocess.DEVNULL, pass_fds=[there.fileno()], start_new_session=True
    )
    there.close()

    def end() -> None:
        here.close()
        process.wait()

    atexit.register(end)
    return here


def serve(control: socket.socket, run: Callable[[], object]) -> None:
    """Fork for every request until nobody is there to ask; each fork has a parent that reports how it ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those parents
    while True:
        size, descriptors, _, _ = socket.recv_fds(control, 4, 4)
        if not size:
            return
        payload = control.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL)
        if os.fork() == 0:
            control.close()
            _report_on(json.loads(payload), descriptors, run)
        for descriptor in descriptors:
            os.close(descriptor)


def _report_on(request: Mapping[str, Any], descriptors: Sequence[int], run: Callable[[], object]) -> NoReturn:
    *standard, report = descriptors
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        os.close(report)
        _become(request, standard, run)
    for descriptor in standard:
        os.close(descriptor)
    os.write(report, pid.to_bytes(4, "big"))
    ended = False
    while not ended:
        _, status = os.waitpid(pid, os.WUNTRACED)
        with suppress(BrokenPipeError):  # nobody asks how it ended
            os.write(report, status.to_bytes(4, "big"))
        ended = not os.WIFSTOPPED(status)
    os._exit(0)


def _become(request: Mapping[str, Any], standard: Sequence[int], run: Callable[[], object]) -> NoReturn:
    """Be a process that has just been started."""
    if request["terminal"]:
        os.login_tty(os.dup(standard[0]))
    for number, descriptor in enumerate(standard):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(request["cwd"])
    if request["anew"]:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.execve(request["args"][0], request["args"], request["env"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv = ["mlxmtp", *request["args"]]
    sys.stdin = os.fdopen(0, encoding="utf-8", errors="surrogateescape", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # what importing `mlxmtp.__main__` does
    code = 1
    try:
        run()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0
    except BaseException:  # noqa: BLE001  (as the interpreter does)
        traceback.print_exc()
    os._exit(code)


def main() -> None:
    """Import what the program does, with the networks replaced, and serve."""
    from mlxmtp import cli
    from mlxmtp.__main__ import main as run
    from mlxmtp.app.tools import mcp_servers
    from mlxmtp.cli.app import main as run_command
    from tests.cli import fake_mlxmtp

    for module in pkgutil.walk_packages(cli.__path__, "mlxmtp.cli."):
        importlib.import_module(module.name)
    for name in IMPORTED_LATE:
        importlib.import_module(name)
    with redirect_stdout(io.StringIO()):
        run_command(["config", "path"])  # with the first one typer imports what it converts values with
    fake_mlxmtp.replace_networks()
    mcp_servers.START = _PATIENCE  # on a busy machine tool servers start late
    faulthandler.enable(2)  # which is every fork's own
    gc.freeze()
    serve(socket.socket(fileno=int(sys.argv[1])), run)


if __name__ == "__main__":
    main()
