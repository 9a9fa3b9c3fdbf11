"""langchain-openai, pydantic-ai, llm, litellm and instructor, those that are installed, against the server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from mlxmtp.app.connect import CLIENTS, Server, write
from mlxmtp.app.remote import RemoteModel
from tests.serve.running import Running, call

ROOT = Path(__file__).parents[2]
CALL = call('weather{city:"Oslo"}') + "<|tool_response>"
CITY = {"name": "Oslo", "people": 7}
JSON = json.dumps(CITY) + "<turn|>"
COLD = "It is cold.<turn|>"

ANSWERS: dict[str, tuple[list[str], Any]] = {
    "langchain_openai": ([CALL, COLD, JSON], [{"city": "Oslo"}, "It is cold.", CITY]),
    "pydantic_ai": (
        [CALL, call('final_result{name:"Oslo",people:7}') + "<|tool_response>", CALL, JSON],
        [CITY, True, CITY, True],
    ),
    "llm": ([CALL, COLD, JSON], ["It is cold.", CITY]),
    "litellm": ([COLD, COLD], ["It is cold.", "It is cold."]),
    "instructor": ([call('City{name:"Oslo",people:7}') + "<|tool_response>"], CITY),
}


def test_python_frameworks(served: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = [name for name in ANSWERS if find_spec(name) is not None]
    if not here:
        pytest.skip("none of them is installed")
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    write(CLIENTS["llm"], Server(served.server.url, RemoteModel("fake", 4096), locked=False))
    for name in here:
        served.say(*ANSWERS[name][0])
    quiet = {"LANGSMITH_TRACING": "false", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYDANTIC_AI_TELEMETRY": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.serve.python_clients", served.server.url],
        cwd=ROOT,
        env={**os.environ, **quiet, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=600,  # three frameworks are imported; minutes where much else runs
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = {}
    for line in done.stdout.splitlines():
        found |= json.loads(line)
    assert found == {name: ANSWERS[name][1] for name in here}
