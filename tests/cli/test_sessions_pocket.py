"""A conversation over several processes with the built-in model: what is continued is what one process would say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import mlxmtp
from tests.cli.test_ask_pocket import POCKET, ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (POCKET / "drafter" / "model.safetensors").is_file(), reason="the built-in model has not been trained"
    ),
]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    own = {"HOME": str(tmp_path), "MLXMTP_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    return {"PATH": os.environ["PATH"], "OPENBLAS_NUM_THREADS": "1", **own}


def run(environment: dict[str, str], *args: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "mlxmtp", *args]
    return subprocess.run(command, env=environment, input=stdin, capture_output=True, timeout=120, check=False)


def test_questions_over_three_processes_are_one_conversation(environment: dict[str, str]) -> None:
    questions = ["What is a drafter?", "How do I turn it off?", "What does it cost?"]
    said: list[dict[str, Any]] = []
    for number, question in enumerate(questions):
        how = ["-c"] if number else ["--save", "-m", "pocket", "-s", "Be brief."]
        done = run(environment, "ask", *how, "--json", "--temp", "0", question)
        assert (done.returncode, done.stderr) == (0, b"")
        said.append(json.loads(done.stdout))
    assert len({answer["session"] for answer in said}) == 1

    model = mlxmtp.load("pocket")
    messages = [{"role": "system", "content": "Be brief."}]
    for question, answer in zip(questions, said, strict=True):
        messages.append({"role": "user", "content": question})
        events = list(model.stream(messages, mlxmtp.Params(temp=0.0)))
        text = "".join(event.text for event in events if isinstance(event, mlxmtp.Text))
        assert answer["response"] == text
        assert answer["stats"]["prompt_tokens"] == len(model.tokenizer.prompt_ids(messages))
        messages.append({"role": "assistant", "content": text})

    shown = run(environment, "sessions", "show", said[0]["session"]).stdout.decode()
    assert all(answer["response"] in shown for answer in said)
    (listed,) = json.loads(run(environment, "sessions", "--json").stdout)["sessions"]
    assert (listed["title"], listed["turns"], listed["model"]) == (questions[0], 3, "pocket")


def test_thoughts_are_saved_for_people_and_not_read_again(environment: dict[str, str]) -> None:
    first = run(environment, "ask", "--save", "-m", "pocket", "--think", "--json", "--temp", "0", "What is MTP?")
    answer = json.loads(first.stdout)
    assert answer["thinking"].strip()
    prompt = run(environment, "ask", "-c", "--dry-run", "And now?").stdout.decode()
    assert answer["response"] in prompt
    assert answer["thinking"].strip() not in prompt
    table = json.loads(run(environment, "sessions", "show", "--json", answer["session"]).stdout)
    assert table["exchanges"][0]["reply"]["thinking"] == answer["thinking"]
