"""`mlxmtp ask` as people run it: the real program, the built-in model, nothing replaced. Few tests: each is a start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pexpect
import pytest

ROOT = Path(__file__).parents[2]
POCKET = ROOT / "assets" / "pocket"
QUESTION = "What is a drafter?"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (POCKET / "drafter" / "model.safetensors").is_file(), reason="the built-in model has not been trained"
    ),
]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    own = {"HOME": str(tmp_path), "MLXMTP_HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "TERM": "xterm-256color"}
    return {"PATH": os.environ["PATH"], "OPENBLAS_NUM_THREADS": "1", **own}


def ask(environment: dict[str, str], *args: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "mlxmtp", "ask", *args]
    return subprocess.run(command, env=environment, input=stdin, capture_output=True, timeout=120, check=False)


def answer(environment: dict[str, str], *args: str) -> dict[str, Any]:
    done = ask(environment, "--json", "-m", "pocket", *args)
    assert done.returncode == 0, done.stderr
    value: dict[str, Any] = json.loads(done.stdout)
    return value


def test_without_a_model_pocket_answers_and_says_so(environment: dict[str, str]) -> None:
    done = ask(environment, QUESTION, "--max-tokens", "8")
    assert done.returncode == 0
    note, cut = done.stderr.decode().splitlines()
    assert note.startswith("Note: No model is installed, so the built-in pocket answers")
    assert cut.startswith("Note: The answer was cut after 8 tokens")
    assert done.stdout.endswith(b"\n")
    assert not done.stdout.endswith(b"\n\n")


def test_a_seed_repeats_the_answer_with_and_without_the_drafter(environment: dict[str, str]) -> None:
    first = answer(environment, QUESTION, "--max-tokens", "40")
    again = ("--max-tokens", "40", "--seed", str(first["stats"]["seed"]))
    plain = answer(environment, QUESTION, *again, "--no-draft")
    drafted = answer(environment, QUESTION, *again, "--num-draft-tokens", "3")
    assert drafted["response"] == plain["response"] == first["response"]
    assert (first["model"], first["drafter"], plain["drafter"]) == ("pocket", "pocket", None)
    assert plain["stats"]["drafted"] == 0
    assert len(drafted["stats"]["acceptance_by_position"]) == 3
    assert 0 < drafted["stats"]["accepted"] <= drafted["stats"]["drafted"]


def test_thinking_is_apart_from_the_answer(environment: dict[str, str]) -> None:
    thought = answer(environment, QUESTION, "--temp", "0", "--think")
    assert thought["thinking"].strip()
    assert thought["response"].strip()
    assert "<|channel>" not in thought["response"] + thought["thinking"]


def test_with_a_cache_the_second_question_on_a_file_reads_only_itself(
    environment: dict[str, str], tmp_path: Path
) -> None:
    book = tmp_path / "book.txt"
    book.write_text("".join(f"Rule {i}: a drafter proposes {i % 7} tokens.\n" for i in range(20)))
    options = ["--temp", "0", "--max-tokens", "8", "-f", str(book)]
    first = answer(environment, *options, "--cache", QUESTION)
    (kept,) = (tmp_path / "cache" / "prompts").iterdir()
    assert first["stats"]["reused_tokens"] == 0
    second = answer(environment, *options, "--cache", "And what is a target?")
    held = second["stats"]["reused_tokens"]
    assert held == int(kept.name.split("-")[1])
    assert second["stats"]["prompt_tokens"] - held < 30
    assert second["response"] == answer(environment, *options, "And what is a target?")["response"]
    kept.write_bytes(b"damaged")
    done = ask(environment, "-m", "pocket", *options, "--cache", QUESTION)
    assert done.stdout.decode().strip() == first["response"].strip()
    assert b"the text is read again" in done.stderr
    assert kept.stat().st_size > 1000


def test_more_than_the_context_is_refused_with_both_counts(environment: dict[str, str]) -> None:
    context = json.loads((POCKET / "target" / "config.json").read_text())["text_config"]["max_position_embeddings"]
    done = ask(environment, "-m", "pocket", QUESTION, stdin=b"drafter " * context)
    assert (done.returncode, done.stdout) == (2, b"")
    assert f"holds {context:,}" in done.stderr.decode()
    assert b"tokens" in done.stderr


def test_ctrl_c_in_the_middle_of_a_real_answer(environment: dict[str, str], tmp_path: Path) -> None:
    """With an empty kernel cache, so that kernels are being built when it comes."""
    command = ["-m", "mlxmtp", "ask", "-m", "pocket", "--plain", QUESTION, "--temp", "0", "--max-tokens", "400"]
    (tmp_path / "kernels").mkdir()
    env = {**environment, "TMPDIR": str(tmp_path / "kernels")}
    child = pexpect.spawn(sys.executable, command, env=env, timeout=600, encoding="utf-8")
    child.expect(r"\w+ \w+")
    child.sendintr()
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus in (130, 0)  # 0: a short answer was over before the signal came
    assert "Traceback" not in child.before


def test_an_answer_in_a_form_parses_or_fails(environment: dict[str, str]) -> None:
    form = ("--schema", "age int, yes bool", "--seed", "6")  # 52 tokens; a string could be long
    plain, drafted = (ask(environment, "-m", "pocket", *form, *more, "Who are you?") for more in (("--no-draft",), ()))
    assert (plain.returncode, drafted.returncode) == (0, 0), drafted.stderr
    assert plain.stdout == drafted.stdout
    found = json.loads(drafted.stdout)
    assert [type(found[name]) for name in ("age", "yes")] == [int, bool]
    cut = ask(environment, "-m", "pocket", *form, "--max-tokens", "3", "Who are you?")
    assert cut.returncode == 1
    assert b"--max-tokens allows more" in cut.stderr
    stopped = ask(environment, "-m", "pocket", *form, "--stop", "yes", "Who are you?")
    assert (stopped.returncode, b"yes" in stopped.stdout, b"--stop" in stopped.stderr) == (1, False, True)
    bad = ask(environment, "-m", "pocket", "--schema", '{"not": {}}', "Who are you?")
    assert (bad.returncode, bad.stdout) == (2, b"")
    assert b'"not"' in bad.stderr
    assert b"loading" not in bad.stderr
