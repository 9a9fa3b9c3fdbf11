"""README.md, typed line by line: our own hub is behind `pull`, and has a model that sees, hears and calls.

Stand-ins are a `pip` and a `claude` that only look at what they are given, and less to measure for `bench`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pexpect
import pytest
import soundfile

from scripts.goldens.pictures import SOUNDS
from tests.free_port import free_port
from tests.hub.hub_server import Hub
from tests.media_golden import pictures
from tests.seeing import write_seeing_pocket

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SHIM = """#!/bin/sh
case "$1" in
    serve) set -- "$@" --port {port} ;;
    connect) set -- "$@" --url http://127.0.0.1:{port} ;;
    bench) set -- "$@" --suite chat -n 8 -r 1 -w 0 ;;
    map) set -- "$@" --max-tokens 40 ;;
esac
case "$*" in
    *photo.jpg*) set -- "$@" --max-tokens 8 ;;
    *assets/*|*calculator*|*Ada*) set -- "$@" --temp 0 ;;
esac
exec {python} -m mlxmtp "$@"
"""
CLAUDE = """#!{python}
import json, sys, urllib.request
settings = json.loads(sys.argv[sys.argv.index("--settings") + 1])
print(urllib.request.urlopen(settings["env"]["ANTHROPIC_BASE_URL"] + "/health").read().decode())
"""


def commands() -> list[str]:
    """Every line of the fenced blocks, without its comment."""
    blocks = (ROOT / "README.md").read_text(encoding="utf-8").split("```")[1::2]
    lines = [line for block in blocks for line in block.partition("\n")[2].splitlines()]
    return [re.sub(r"\s{2,}#.*", "", line) for line in lines]


def answers() -> list[list[str]]:
    """Commands of the README with what the built-in model answers, as it says."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").split("```")[1].splitlines()
    return [re.split(r"\s{2,}#\s", line) for line in lines if line.startswith("mlxmtp ask")]


@dataclass(frozen=True)
class Reader:
    """Somebody with a home folder, some files, and `mlxmtp` in the PATH."""

    folder: Path
    environment: dict[str, str]
    port: int

    def type(self, line: str, timeout: float = 300) -> str:
        """Run a line to its end and return what it printed. Every part of a pipe has to succeed."""
        done = subprocess.run(
            ["bash", "-c", f"set -o pipefail; {line}"], env=self.environment, cwd=self.folder, timeout=timeout,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def converse(self, line: str) -> None:
        """Ask one question in a terminal, and leave."""
        child = pexpect.spawn("bash", ["-c", line], env=self.environment, cwd=str(self.folder), timeout=300)
        child.expect("/help")
        child.send("What is MTP?\r")
        child.expect("tok/s")
        child.send("\x04")
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == 0, line


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    """A hub with E2B on it: the built-in model with towers and a template of tools."""
    server = Hub()
    yield server
    server.close()


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory, hub: Hub) -> Reader:
    folder = tmp_path_factory.mktemp("reader")
    seeing = write_seeing_pocket(folder / "seeing")
    shutil.copyfile(ROOT / "scripts/pocket/chat_template.jinja", seeing / "chat_template.jinja")
    hub.publish("mlx-community/gemma-4-e2b-it-4bit", seeing)
    hub.publish("mlx-community/gemma-4-E2B-it-assistant-bf16", ROOT / "assets/pocket/drafter")
    port = free_port()
    _write_programs(folder / "bin", port)
    _write_files(folder)
    environment = {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1",
        "HOME": str(folder), "MLXMTP_HOME": str(folder / "home"), "HF_HOME": str(folder / "hf"), "HF_ENDPOINT": hub.url,
        "TERM": "xterm-256color",
    }  # fmt: skip
    return Reader(folder, environment, port)


def _write_programs(folder: Path, port: int) -> None:
    folder.mkdir()
    shims = {"mlxmtp": SHIM.format(port=port, python=sys.executable), "claude": CLAUDE.format(python=sys.executable)}
    for name, text in {**shims, "pip": '#!/bin/sh\n[ "$*" = "install ." ]\n'}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)


def _write_files(folder: Path) -> None:
    (folder / "notes").mkdir()
    for name in ("one", "two"):
        (folder / f"notes/{name}.txt").write_text(f"Note {name}: a drafter guesses the next tokens.\n")
    (folder / "assets").mkdir()
    for name in ("shapes.png", "digits.wav"):
        shutil.copyfile(ROOT / "assets" / name, folder / "assets" / name)
    (folder / "src").mkdir()
    (folder / "src/main.py").write_text("PORT = 8765\n")
    pictures()[0].resize((300, 300)).save(folder / "photo.jpg")
    soundfile.write(folder / "memo.wav", SOUNDS[0], 16_000)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(folder)]
    for words in (["init", "-q"], ["add", "notes"], ["commit", "-q", "-m", "Notes"]):
        subprocess.run([*git, *words], check=True)
    (folder / "notes/one.txt").write_text("Another note.\n")


def test_every_command_of_the_readme_works(reader: Reader) -> None:
    background: list[subprocess.Popen[bytes]] = []
    said: dict[str, str] = {}
    try:
        for line in commands():
            if line.startswith("scripts/"):  # makes an environment where there is none: scripts/test has done so
                if (ROOT / ".venv/bin/mlxmtp").exists():
                    said[line] = subprocess.run(
                        shlex.split(line), cwd=ROOT, env=reader.environment, check=True, capture_output=True, text=True
                    ).stdout
            elif line.startswith("mlxmtp serve"):
                background.append(
                    subprocess.Popen(["bash", "-c", f"exec {line}"], env=reader.environment, cwd=reader.folder)
                )
                _wait_for(reader.port)
            elif "mlxmtp chat" in line:
                reader.converse(line)
            else:
                said[line] = reader.type(line)
    finally:
        for process in background:
            process.terminate()
            process.wait(120)
    _judge(reader, said)


def _wait_for(port: int) -> None:
    for _ in range(1200):
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError("the server does not listen")


def _judge(reader: Reader, said: dict[str, str]) -> None:
    """Compare what the comments of the README promise with what came."""
    keys = ("tee", "--regex", "What is a", "claude")
    found = {key: text for line, text in said.items() for key in keys if key in line}
    assert found["tee"] == (reader.folder / "pipe.sh").read_text()
    assert "mlxmtp" in found["tee"]
    assert "```" not in found["tee"]
    assert re.fullmatch(r"[^.]+\.", found["--regex"].strip())
    assert "drafter" in found["--regex"]
    assert "draft" in found["What is a"].lower()
    for line, answer in answers():
        assert said[line].strip() == answer
    assert json.loads(found["claude"])["status"] in ("ok", "loading")
    assert len((reader.folder / "notes.jsonl").read_text().splitlines()) == 2
