"""`mlxmtp bench` as people run it: the real program on the built-in model. Few tests: each is a start."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.bench.json_schema import problems

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "mlxmtp" / "bench" / "schema.json").read_text(encoding="utf-8"))

pytestmark = pytest.mark.slow


@pytest.fixture
def command(tmp_path: Path) -> dict[str, Any]:
    own = {"HOME": str(tmp_path), "MLXMTP_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    env = {"PATH": os.environ["PATH"], "OPENBLAS_NUM_THREADS": "1", **own}
    return {"env": env, "cwd": tmp_path, "stdin": subprocess.DEVNULL, "text": True}


def run(command: dict[str, Any], *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments(*args), capture_output=True, check=False, timeout=300, **command)


def arguments(*args: str) -> list[str]:
    return [sys.executable, "-m", "mlxmtp", "bench", "--quiet", *args]  # else a busy machine would be noted


def test_a_whole_run_its_files_and_its_comparison(command, tmp_path):
    (tmp_path / "own.jsonl").write_text('{"prompt": "What is a drafter?"}\n{"prompt": "Say hello."}\n')
    args = "-m pocket --suite own.jsonl -n 12 -r 2 --num-draft-tokens 2,auto --seed 3".split()
    done = run(command, *args, "-o", "a.json", "--plot", "a.svg")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = json.loads((tmp_path / "a.json").read_text())
    assert not list(problems(found, SCHEMA, SCHEMA))
    assert all(sample["same_text"] for sample in found["samples"] if sample["num_draft_tokens"] != 0)
    assert found["models"][0]["sampling"]["seed"] == 3
    assert found["models"][0]["sampling"]["temp"] > 0  # as the model recommends
    by_arm = {row["num_draft_tokens"]: row for row in found["summary"]}
    assert by_arm[0]["tokens_per_pass"] == 1
    assert by_arm[2]["tokens_per_pass"] > 1
    assert len(by_arm[2]["acceptance_by_position"]) == 2
    assert "Every text is the same as plain (8 of 8)." in done.stdout
    assert (tmp_path / "a.svg").read_text().startswith("<svg")
    compared = run(command, "--compare", "a.json", "a.json")
    assert compared.returncode == 0, compared.stderr
    assert "3 of 3 are the same within their spread." in compared.stdout


def test_ctrl_c_in_the_middle_ends_with_a_report_of_what_there_is(command):
    args = ("-m", "pocket", "--suite", "chat", "-n", "4", "-r", "500", "-w", "0", "--temp", "0", "--format", "jsonl")
    process = subprocess.Popen(arguments(*args), stdout=subprocess.PIPE, stderr=subprocess.PIPE, **command)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        head = [json.loads(process.stdout.readline()) for _ in range(6)]
        process.send_signal(signal.SIGINT)
        with process.stdout, process.stderr:  # `communicate` would leave out what `readline` has read ahead
            out, err = process.stdout.read(), process.stderr.read()
        process.wait(timeout=120)
    finally:
        process.kill()
    rest = [json.loads(line) for line in out.splitlines()]
    assert (process.returncode, err) == (130, "")
    assert [line["type"] for line in head] == ["start", *["sample"] * 5]
    assert rest[-1]["type"] == "end"
    assert rest[-1]["complete"] is False
    assert {row["num_draft_tokens"] for row in rest[-1]["summary"]} == {0, "auto"}


def test_a_reader_that_leaves_ends_the_run(command):
    args = ("-m", "pocket", "--suite", "chat", "-n", "4", "-r", "500", "-w", "0", "--format", "jsonl")
    process = subprocess.Popen(arguments(*args), stdout=subprocess.PIPE, stderr=subprocess.PIPE, **command)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        assert json.loads(process.stdout.readline())["type"] == "start"
        process.stdout.close()
        assert process.wait(timeout=120) == 141
    finally:
        process.kill()
    assert process.stderr.read() == ""
    process.stderr.close()
