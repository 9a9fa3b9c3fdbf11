"""`mlxmtp chat` as people run it: a terminal, the built-in model, nothing replaced. Few tests: each is a start."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Terminal
from tests.cli.forks import Process

ROOT = Path(__file__).parents[2]
POCKET = ROOT / "assets" / "pocket"
COLUMNS, ROWS = 120, 40

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (POCKET / "drafter" / "model.safetensors").is_file(), reason="the built-in model has not been trained"
    ),
]


def start(home: Path, *args: str, **env: str) -> Terminal:
    own = {"HOME": str(home), "MLXMTP_HOME": str(home), "PYTHONPATH": str(ROOT), "TERM": "xterm-256color"}
    environment = {"PATH": os.environ["PATH"], "OPENBLAS_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **own, **env}
    environment["PYTHONFAULTHANDLER"] = "1"
    command = ["-m", "mlxmtp", "chat", "-m", "pocket", "--temp", "0", *args]
    terminal = Terminal(
        COLUMNS, ROWS, lambda end: Process([sys.executable, *command], environment, home, terminal=end, anew=True)
    )
    terminal.wait_until("the prompt", lambda lines: "pocket with its drafter" in lines and lines[-1] == ">")
    return terminal


def answered(terminal: Terminal, count: int) -> list[str]:
    """Wait for so many answers in all; returns the lines of figures."""

    def figures(lines: list[str]) -> list[str]:
        return [line for line in lines if re.search(r"\d tok/s · ", line)]

    terminal.wait_until(f"{count} answers", lambda lines: len(figures(lines)) == count and lines[-1].startswith(">"))
    return figures(terminal.lines())


def leave(terminal: Terminal) -> str:
    terminal.send("\x04")
    assert terminal.finish() == 0
    text = "\n".join(terminal.lines())
    assert "Traceback" not in text
    return text


def test_a_second_turn_reads_only_what_is_new(tmp_path: Path) -> None:
    terminal = start(tmp_path)
    terminal.send("What is a drafter?\r")
    answered(terminal, 1)
    terminal.send("And what is MTP?\r")
    second = answered(terminal, 2)[1]
    counts = re.search(r"prompt (\d+) tok \((\d+) reused\)", second)
    assert counts is not None
    new = int(counts[1]) - int(counts[2])
    assert 0 < new < 25
    text = leave(terminal)
    assert text.index("> What is a drafter?") < text.index("> And what is MTP?")
    assert len(list((tmp_path / "sessions").glob("*.jsonl"))) == 1


@pytest.mark.parametrize("flags", [(), ("--kv-bits", "8")], ids=["", "packed"])
def test_the_drafter_changes_no_text(tmp_path: Path, flags: tuple[str, ...]) -> None:
    """Also after an answer that was stopped, in a thread of its own, with the drafter switched off and on."""
    terminal = start(tmp_path, "--plain", *flags)
    terminal.send("Which commands does mlxmtp have?\r")
    terminal.wait_until("a first word", lambda lines: len(lines) > 4 and bool(lines[-1]) and lines[-1][0] != ">")
    terminal.send("\x03")
    answered(terminal, 1)
    texts: list[list[str]] = []
    for command in ("/draft off", "/draft 3", "/draft auto"):
        terminal.send("/clear\r")
        terminal.send(f"{command}\r")
        terminal.send("What is a drafter?\r")
        answered(terminal, len(texts) + 2)
        lines = terminal.lines()
        start_at = len(lines) - lines[::-1].index("> What is a drafter?")
        texts.append(lines[start_at + 1 : next(at for at in range(start_at, len(lines)) if "tok/s" in lines[at])])
    assert texts[0]
    assert texts[0] == texts[1] == texts[2]
    leave(terminal)


def test_thoughts_are_folded_and_saved(tmp_path: Path) -> None:
    terminal = start(tmp_path, "--think")
    terminal.send("What is a drafter?\r")
    answered(terminal, 1)
    assert any(re.fullmatch(r"thought for \d+(\.\d)? s", line) for line in terminal.lines())
    terminal.send("And what is MTP?\r")
    answered(terminal, 2)
    text = leave(terminal)
    assert "<|channel>" not in text
    (session,) = (tmp_path / "sessions").glob("*.jsonl")
    assert '"thinking": "' in session.read_text(encoding="utf-8")


def test_ctrl_c_in_a_long_prompt_then_a_right_turn(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("A drafter drafts and a target checks. " * 2500, encoding="utf-8")
    terminal = start(tmp_path)
    terminal.send("Sum up @long.txt\r")
    terminal.wait_for("reading the prompt")
    terminal.send("\x03")
    before = "Stopped before the answer began.\n\n> Sum up @long.txt"

    def over(lines: list[str]) -> bool:
        return before in "\n".join(lines) or (lines[-1] == ">" and any("tok/s · " in line for line in lines))

    terminal.wait_until("its end", over)
    begun = before not in "\n".join(terminal.lines())  # a fast machine may have begun to answer
    terminal.send("What is a drafter?\r" if begun else "\x03What is a drafter?\r")
    answered(terminal, 1 + begun)
    terminal.send("/context\r")
    terminal.wait_for("2 exchanges " if begun else "1 exchange ")
    assert "A drafter is a small network" in leave(terminal)


def test_another_model_takes_over(tmp_path: Path) -> None:
    """The conversation goes on, and the question waits for the model."""
    terminal = start(tmp_path)
    terminal.send("What is a drafter?\r")
    answered(terminal, 1)
    terminal.send("/model pocket\r")
    terminal.wait_for("pocket answers from here on.")
    terminal.send("And what is MTP?\r")
    second = answered(terminal, 2)[1]
    assert "reused" not in second  # the keys and values went with the model before
    terminal.send("/model e2b\r")
    terminal.wait_until("a refusal", lambda lines: any(line.startswith("Error: HF_HUB_OFFLINE") for line in lines))
    terminal.send("What is MTP?\r")
    assert "reused" in answered(terminal, 3)[2]
    leave(terminal)


def test_reopening_with_kept_keys_and_values_reads_nothing_again(tmp_path: Path) -> None:
    terminal = start(tmp_path, "--keep-cache")
    terminal.send("What is a drafter?\r")
    answered(terminal, 1)
    assert "Kept keys and values" in leave(terminal)
    terminal = start(tmp_path, "--keep-cache", "-c")
    terminal.send("And what is MTP?\r")
    line = answered(terminal, 1)[0]
    counts = re.search(r"prompt (\d+) tok \((\d+) reused\)", line)
    assert counts is not None
    assert int(counts[1]) - int(counts[2]) < 25
    (kept,) = (tmp_path / "sessions").glob("*.kv.safetensors")
    assert "in memory again" in leave(terminal)
    kept.write_bytes(b"damaged")
    terminal = start(tmp_path, "--keep-cache", "-c")
    terminal.send("What is bench?\r")
    answered(terminal, 1)
    assert "the text is read again" in " ".join(leave(terminal).split())


def test_a_window_that_is_closed_keeps_them_and_after_a_thought_only_the_answer_is_read_again(tmp_path: Path) -> None:
    terminal = start(tmp_path, "--keep-cache", "--think", "--temp", "0")
    terminal.send("List all commands\r")
    first = re.search(r"prompt (\d+) tok", answered(terminal, 1)[0])
    assert first is not None
    terminal.process.send_signal(signal.SIGTERM)
    assert terminal.finish() == 128 + signal.SIGTERM
    terminal = start(tmp_path, "--keep-cache", "--think", "--temp", "0", "-c")
    terminal.send("And what is MTP?\r")
    counts = re.search(r"prompt (\d+) tok \((\d+) reused\)", answered(terminal, 1)[0])
    assert counts is not None
    assert int(counts[2]) >= int(first[1]) - 3  # the prompt as it was before the thought
    leave(terminal)
