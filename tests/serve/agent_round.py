"""One agent on one task against a scripted model: `python -m tests.serve.agent_round AGENT`, in a closed network.

The model calls a tool that reads a file, and says at the end what the file said. What is asked of it, and what the
agent printed, comes as JSON.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from mlxmtp.decode.round import Round
from tests.fake_decoder import FakeDecoder
from tests.serve.running import Running, call, running

BIN = Path(__file__).parent / "agents" / "node_modules" / ".bin"
WORD = "pelican-4711"
TASK = "What does note.txt say?"


class Scripted(FakeDecoder):
    """Answers by what the prompt holds: agents ask in an order of their own, for titles too."""

    def __init__(self, server: Running, written: str) -> None:
        super().__init__()
        self._server, self._written = server, written
        self.rounds_of_tools: list[tuple[list[int], list[int]]] = []  # prompt and answer, without those for titles

    def rounds(self, prompt_ids: Sequence[int], **options: Any) -> Generator[Round, None, None]:
        self._server.decoder = self
        before = len(self.requests)
        self.requests.append(type("Request", (), {"prompt": list(prompt_ids)})())
        prompt = self._server.prompt()
        del self.requests[before:]
        if "<|tool>" not in prompt:
            answer = "A note<turn|>"
        elif WORD in prompt:
            answer = f"<|channel>thought\nIt is there.\n<channel|>It says {WORD}.<turn|>"
        else:
            answer = f"<|channel>thought\nI read it.\n<channel|>I look: {self._written}<|tool_response>"
        said = self._server.tokenizer.encode(answer)
        if "<|tool>" in prompt:
            self.rounds_of_tools.append((list(prompt_ids), said))
        self.enqueue(said)
        yield from super().rounds(prompt_ids, **options)


def command(agent: str, server: Running, home: Path) -> tuple[list[str], dict[str, str]]:
    """Return how the agent is called, with the settings that `mlxmtp connect` gives it."""

    def connect(*arguments: str) -> str:
        given = [sys.executable, "-m", "mlxmtp", "connect", agent, "--url", server.server.url, *arguments]
        return subprocess.run(given, check=True, capture_output=True, text=True, env=environ(home)).stdout

    if agent == "claude":
        return [str(BIN / "claude"), "--settings", connect(), "--allowedTools", "Read", "-p", TASK], {}
    if agent == "codex":
        connect("--write")
        return [str(BIN / "codex"), "exec", "--profile", "mlxmtp", "--skip-git-repo-check", TASK], {}
    settings = {"OPENCODE_CONFIG_CONTENT": connect(), "OPENCODE_DISABLE_AUTOUPDATE": "1"}
    settings["OPENCODE_DISABLE_MODELS_FETCH"] = "1"
    return [str(BIN / "opencode"), "run", "--model", "mlxmtp/fake", TASK], settings


def environ(home: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "HOME": str(home),
        "TERM": "dumb",
    }


def main(agent: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        home, work = Path(place, "home"), Path(place, "work")
        home.mkdir()
        work.mkdir()
        (work / "note.txt").write_text(f"{WORD}\n")
        calls = {
            "claude": f'Read{{file_path:"{work}/note.txt"}}',
            "codex": 'exec_command{cmd:"cat note.txt"}',
            "opencode": f'read{{filePath:"{work}/note.txt"}}',
        }
        with running(Path(place), context=262_144) as server:
            decoder = Scripted(server, call(calls[agent]))
            server.model._decoder = decoder
            given, more = command(agent, server, home)
            done = subprocess.run(
                given,
                cwd=work,
                env={**environ(home), **more},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=90,
                check=False,
            )
            server.decoder = decoder
            last = server.prompt()
            metrics = server.request("GET", "/metrics")[2].decode()
    requests = re.findall(r'requests_total\{path="([^"]*)",status="(\d+)"\} (\d+)', metrics)
    answer = {"code": done.returncode, "out": done.stdout, "err": done.stderr, "requests": requests}
    sys.stdout.write(json.dumps({**answer, "prompt": last, "read_again": read_again(decoder)}))


def read_again(decoder: Scripted) -> int:
    """Return how many tokens of the prompt with the call and of that answer the next prompt does not begin with."""
    (first, said), (second, _) = decoder.rounds_of_tools[-2:]
    held = [*first, *said[:-1]]
    same = next((i for i, (a, b) in enumerate(zip(held, second, strict=False)) if a != b), len(held))
    return len(held) - same


if __name__ == "__main__":
    main(sys.argv[1])
