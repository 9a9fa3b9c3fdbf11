"""`mlxmtp serve` as people run it: the real program and the built-in model. Few tests: each is a start."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
QUESTIONS = ["What is a drafter?", "Say hello", "Name three colours.", "What is a snapshot?"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (ROOT / "assets" / "pocket" / "drafter" / "model.safetensors").is_file(),
        reason="the built-in model has not been trained",
    ),
]


class Process:
    """The server as a process, on a port that it chose."""

    def __init__(self, home: Path, *args: str) -> None:
        own = {"HOME": str(home), "MLXMTP_HOME": str(home), "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
        self.environment = {"PATH": os.environ["PATH"], **own}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlxmtp", "serve", "-m", "pocket", "--port", "0", *args],
            env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stderr is not None
        ready = self.process.stderr.readline()
        found = re.fullmatch(r"mlxmtp serves pocket with its drafter on (http://127\.0\.0\.1:\d+)\n", ready)
        assert found is not None, ready + self.process.stderr.read()
        self.url = found[1]

    def ask(self, question: str, path: str = "/v1/chat/completions", **body: Any) -> dict[str, Any]:
        data = json.dumps({"messages": [{"role": "user", "content": question}]} | body).encode()
        with urllib.request.urlopen(f"{self.url}{path}", data, timeout=120) as response:
            value: dict[str, Any] = json.loads(response.read())
        return value

    def end(self, number: int) -> tuple[int, str, str]:
        self.process.send_signal(number)
        out, error = self.process.communicate(timeout=120)
        return self.process.returncode, out, error


@contextmanager
def process(home: Path) -> Iterator[Process]:
    running = Process(home)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.communicate()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with process(tmp_path_factory.mktemp("serve")) as running:
        yield running


def test_every_text_is_that_of_ask_with_the_same_seed(server: Process) -> None:
    with ThreadPoolExecutor(4) as pool:  # at once: no answer may depend on those before it
        said = list(pool.map(lambda one: server.ask(one, seed=5, max_tokens=40), [*QUESTIONS, *QUESTIONS]))
    texts = [one["choices"][0]["message"]["content"] for one in said]
    assert texts[:4] == texts[4:]
    plain = server.ask(QUESTIONS[0], seed=5, max_tokens=40, mlxmtp={"num_draft_tokens": 0})
    assert plain["choices"][0]["message"]["content"] == texts[0]
    assert plain["mlxmtp"]["tokens_per_pass"] == 1
    _has_a_form_beside_a_thought(server)
    for question, text in zip(QUESTIONS[:2], texts, strict=False):
        command = [sys.executable, "-m", "mlxmtp", "ask", "-m", "pocket", "--seed", "5", "--max-tokens", "40", question]
        done = subprocess.run(
            command, env=server.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
        )
        assert done.stdout == text.rstrip("\n") + "\n"


def _has_a_form_beside_a_thought(server: Process) -> None:
    """Assert that sampled JSON after a thought is JSON, ends, and is the same without the drafter."""
    properties = {"colour": {"enum": ["red", "blue"]}, "count": {"type": "integer", "minimum": 1, "maximum": 9}}
    schema = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    asked: dict[str, Any] = {"response_format": form, "temperature": 1, "seed": 2, "enable_thinking": True}
    asked |= {"thinking_budget": 30, "max_tokens": 400}
    drafted = server.ask("A colour", **asked)["choices"][0]
    value = json.loads(drafted["message"]["content"])
    assert (value["colour"] in ("red", "blue"), value["count"] in range(1, 10), drafted["finish_reason"]) == (
        True,
        True,
        "stop",
    )
    assert drafted["message"]["reasoning_content"]
    plain = server.ask("A colour", **asked, mlxmtp={"num_draft_tokens": 0})["choices"][0]
    assert plain["message"] == drafted["message"]


def test_a_continuation_and_its_beginning_have_the_form_together(server: Process) -> None:
    properties = {"name": {"enum": ["red", "blue"]}, "count": {"type": "integer", "minimum": 1, "maximum": 9}}
    schema = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
    messages = [{"role": "user", "content": "A colour"}, {"role": "assistant", "content": '{"name": "'}]
    asked: dict[str, Any] = {"messages": messages, "max_tokens": 100, "temperature": 0}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    chat = server.ask("", **asked, continue_final_message=True, response_format=form)
    output = {"format": {"type": "json_schema", "schema": schema}}
    message = server.ask("", "/v1/messages", **asked, output_config=output)
    for said in (chat["choices"][0]["message"]["content"], message["content"][0]["text"]):
        value = json.loads('{"name": "' + said)
        assert (value.keys(), value["name"] in ("red", "blue"), value["count"] in range(1, 10)) == (
            {"name", "count"},
            True,
            True,
        )


def test_two_conversations_do_not_throw_each_other_out(server: Process) -> None:
    system = {"role": "system", "content": "You answer questions about mlxmtp. " * 90}
    talks: list[list[dict[str, str]]] = [[system, {"role": "user", "content": one}] for one in QUESTIONS[:2]]
    cached = []
    for _ in range(3):
        for talk in talks:
            said = server.ask("", messages=talk, seed=3, max_tokens=30)
            cached.append(said["usage"]["prompt_tokens"] - said["usage"]["prompt_tokens_details"]["cached_tokens"])
            content = said["choices"][0]["message"]["content"]
            talk += [{"role": "assistant", "content": content}, {"role": "user", "content": "And?"}]
    first, second, *others = cached
    assert first > 400
    assert second < 40  # all but its question is the other's beginning
    assert max(others) < 150  # and ends of fewer than 256 tokens are not kept for their own sake


def test_a_prompt_that_was_only_read_is_not_read_again(server: Process) -> None:
    question = "Which of these do you know? " * 60
    usages = [server.ask(question, "/v1/messages", max_tokens=most)["usage"] for most in (0, 8)]
    assert usages[0]["input_tokens"] > 300
    assert usages[0]["output_tokens"] == 0
    assert usages[1]["input_tokens"] < 20
    assert usages[1]["output_tokens"] > 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_quietly_and_keeps_what_drafting_has_learned(tmp_path: Path, number: int) -> None:
    with process(tmp_path) as running:
        for seed in range(2):
            running.ask("What is a drafter?", seed=seed, max_tokens=120)
        assert running.end(number) == (0, "", "")
    assert list((tmp_path / "tuning").glob("*.json"))


def test_what_cannot_be_served_says_why(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mlxmtp", "serve", "-m", "e2b", "--port", "0"]
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 3
    assert "not on this machine" in done.stderr
    other = subprocess.run(
        [*command[:-4], "--host", "0.0.0.0"],
        env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (other.returncode, "--api-key-file" in other.stderr) == (2, True)
