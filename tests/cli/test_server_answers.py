"""Commands at a server that fails midway, or that the settings would have answer otherwise than is asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlxmtp.cli import app
from tests.app.faulty import DONE, STREAM, http, peer, said
from tests.cli.conftest import Program

BROKEN = STREAM + said("The first. ") + said("Half of") + said(reason="abort") + DONE


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLXMTP_HOME", str(tmp_path))
    return tmp_path


def test_an_answer_that_breaks_off_is_shown_to_its_last_word(program: Program) -> None:
    program.names_model = False
    with peer(BROKEN) as server:
        terminal = program.terminal("ask", "-m", server.url, "Hi", "-q", columns=100)
        assert terminal.finish() == 1
    shown = terminal.lines()
    assert shown[0] == "The first. Half of"
    assert shown[1].startswith("Error: ")


@pytest.mark.parametrize(
    ("flags", "out"),
    [((), "The first. Half of\n"), (("--no-stream",), "The first. Half of\n"), (("-x",), "")],
)
def test_a_pipe_gets_what_was_said_of_an_answer_that_breaks_off(
    home: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], out: str
) -> None:
    with peer(BROKEN) as server:
        assert app.main(["ask", "--no-stdin", "-m", server.url, *flags, "Hi"]) == 1
    shown = capsys.readouterr()
    assert shown.out == out
    assert "ended its answer early (abort)" in shown.err


def test_half_a_code_block_of_an_answer_that_breaks_off_is_nothing(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with peer(STREAM + said("```sh\nrm -rf /tmp") + said(reason="abort") + DONE) as server:
        assert app.main(["ask", "--no-stdin", "-m", server.url, "-x", "Hi"]) == 1
    shown = capsys.readouterr()
    assert (shown.out, shown.err.count("Error: ")) == ("", 1)


@pytest.mark.parametrize("form", ["--json", "--jsonl"])
def test_json_of_an_answer_that_breaks_off_is_complete(
    home: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    with peer(BROKEN) as server:
        assert app.main(["ask", "--no-stdin", "-m", server.url, form, "Hi"]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[-1]["finish_reason"] == "cancelled"
    said_in = [lines[-1]["response"]] if form == "--json" else [one["text"] for one in lines if one["type"] == "text"]
    assert "".join(said_in) == "The first. Half of"


@pytest.mark.parametrize("form", [(), ("--no-stream",), ("--json",)])
def test_a_pipe_gets_nothing_of_an_answer_that_never_began(
    home: Path, capsys: pytest.CaptureFixture[str], form: tuple[str, ...]
) -> None:
    with peer(http(b"", "500 Oh")) as server:
        assert app.main(["ask", "--no-stdin", "-m", server.url, *form, "Hi"]) == 1
    assert capsys.readouterr().out == ""


def test_bench_of_a_server_measures_whole_answers_whatever_the_settings_say(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "a.txt").write_text("Say something.", encoding="utf-8")
    (home / "config.toml").write_text('stop = "x"\nthink_tokens = 3\ndraft_from = "copy"\n', encoding="utf-8")
    usage = {"prompt_tokens": 5, "completion_tokens": 7}
    with peer(STREAM + said("a", reason="stop", usage=usage)) as server:
        words = ["bench", "-m", server.url, "--suite", str(home / "a.txt"), "-r", "1", "-w", "0", "-n", "8"]
        assert app.main(words) == 0, capsys.readouterr().err
        [body] = server.bodies
    assert body["max_tokens"] == 8
    assert not {"stop", "thinking_budget", "draft_from"} & body.keys()


def test_quiet_map_says_why_an_input_has_no_answer(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "a").write_text("a", encoding="utf-8")
    with peer(http(b"", "500 Oh")) as server:
        assert app.main(["map", "-q", "-m", server.url, "{}", str(home / "a")]) == 1
    assert "refuses: 500 Oh" in capsys.readouterr().err
