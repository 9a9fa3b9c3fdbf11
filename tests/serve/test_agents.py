"""Coding agents as they are published, each with a tool round, in a network that has no way out."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serve.agent_round import BIN, WORD
from tests.serve.running import call, running

ROOT = Path(__file__).parents[2]
ALONE = ["unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]


def _can_be_alone() -> bool:
    try:
        return subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["claude", "codex", "opencode"])
def test_an_agent_reads_a_file_with_the_settings_that_connect_gives(agent: str) -> None:
    if not (BIN / agent).exists():
        pytest.skip("no agents: npm install --prefix tests/serve/agents")
    if not _can_be_alone():
        pytest.skip("no network namespaces here: the agents would reach out")
    round_ = [sys.executable, "-m", "tests.serve.agent_round", agent]
    done = subprocess.run([*ALONE, *round_], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["code"] == 0, found["err"]
    assert WORD in found["out"]
    assert found["requests"]
    assert {status for _, status, _ in found["requests"]} == {"200"}, found["requests"]
    result = found["prompt"].rpartition("<|tool_response>")[2]
    assert WORD in result
    assert found["read_again"] == 0


@pytest.mark.slow
def test_the_ai_sdk_takes_a_thought_two_calls_counts_and_a_form(tmp_path: Path) -> None:
    if not (BIN.parent / "ai").exists() or shutil.which("node") is None:
        pytest.skip("no AI SDK: npm install --prefix tests/serve/agents")
    both = call('weather{city:"Rome"}') + call('weather{city:"Oslo"}') + "<|tool_response>"
    with running(tmp_path) as server:
        server.say(f"<|channel>thought\nHm.\n<channel|>Look: {both}", "Cold.<turn|>", both, '{"city":"Oslo"}<turn|>')
        asked = ["node", str(Path(__file__).parent / "agents" / "ai_sdk.mjs"), server.server.url]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    first, second = found["steps"]
    assert (first["text"], first["reasoning"], first["finishReason"]) == ("Look: ", "Hm.\n", "tool-calls")
    assert (first["results"], first["counted"]) == (["cold in Rome", "cold in Oslo"], True)
    assert (second["text"], second["finishReason"], second["counted"]) == ("Cold.", "stop", True)
    assert (found["calls"], found["finishReason"]) == ([{"city": "Rome"}, {"city": "Oslo"}], "tool-calls")
    assert (found["form"], found["errors"]) == ({"city": "Oslo"}, [])
