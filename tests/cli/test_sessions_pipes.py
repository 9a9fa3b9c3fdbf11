"""`mlxmtp sessions`, and `ask` with -c, -r and --save, between pipes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from tests.cli.conftest import Program
from tests.cli.forks import Process
from tests.text_checkpoint import write_text_checkpoint


@pytest.fixture
def talk(program: Program) -> Program:
    """A program whose model is set by the environment, as for somebody who never names it."""
    program.env = {"MLXMTP_MODEL": str(program.model)}
    program.names_model = False
    return program


def run(talk: Program, *args: str, answers: list[str] | None = None) -> subprocess.CompletedProcess[str]:
    talk.answers = answers or []
    done = talk.run(*args)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


@contextmanager
def answering(talk: Program, *args: str) -> Iterator[tuple[Process, IO[bytes]]]:
    """A process that has said `a` and then stays in the middle of its answer, and its output."""
    talk.answers = ["abcd{never}efgh"]
    process = talk.start("ask", *args)
    try:
        assert process.stdout is not None
        assert os.read(process.stdout.fileno(), 1) == b"a"
        yield process, process.stdout
    finally:
        process.kill()
        process.communicate()


def save(talk: Program, question: str = "Hi", answer: str = "Hello") -> str:
    """A saved session's id."""
    done = run(talk, "ask", "--save", "--json", question, answers=[f"{answer}<turn|>"])
    assert (done.returncode, done.stderr) == (0, "")
    session: str = json.loads(done.stdout)["session"]
    return session


def listed(talk: Program) -> list[dict[str, Any]]:
    sessions: list[dict[str, Any]] = json.loads(run(talk, "sessions", "--json").stdout)["sessions"]
    return sessions


def files(talk: Program) -> list[Path]:
    return list((talk.home / "sessions").glob("*"))


# --- ask ---


def test_without_save_nothing_is_kept(talk: Program) -> None:
    done = run(talk, "ask", "--json", "Hi", answers=["Hello<turn|>"])
    assert "session" not in json.loads(done.stdout)
    assert files(talk) == []


def test_continuing_sends_the_whole_conversation(talk: Program) -> None:
    first = save(talk, "One?", "<|channel>thought\nhm<channel|>1")
    done = run(talk, "ask", "-c", "Two?", "--jsonl", answers=["2<turn|>"])
    start, *_, end = map(json.loads, done.stdout.splitlines())
    assert (start["session"], end["finish_reason"], done.stderr) == (first, "stop", "")
    shown = run(talk, "ask", "-c", "Three?", "--dry-run").stdout
    assert shown.startswith(
        "<bos><|turn>user\nOne?<turn|>\n<|turn>model\n1<turn|>\n<|turn>user\nTwo?<turn|>\n<|turn>model\n2<turn|>\n"
        "<|turn>user\nThree?<turn|>\n<|turn>model\n"
    )
    (only,) = listed(talk)
    assert (only["id"], only["turns"], only["title"], only["model"]) == (first, 2, "One?", str(talk.model))


def test_another_one_can_be_resumed(talk: Program) -> None:
    first, second = save(talk, "One?", "1"), save(talk, "Two?", "2")
    assert run(talk, "ask", "-r", first[:6], "More?", answers=["m<turn|>"]).stdout == "m\n"
    assert [one["id"] for one in listed(talk)] == [first, second]
    refused = run(talk, "ask", "-r", "none", "Hi")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "There is no session 'none'" in refused.stderr
    both = run(talk, "ask", "-c", "-r", first, "Hi")
    assert (both.returncode, "take one" in both.stderr) == (2, True)


def test_nothing_to_continue_is_a_usage_error(talk: Program) -> None:
    done = run(talk, "ask", "-c", "Hi")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: There is no session to continue")


def test_the_answer_of_the_command_before_in_a_pipe_is_there(talk: Program) -> None:
    talk.answers = ["1<turn|>"]
    done = talk.shell("mlxmtp ask --save One? | mlxmtp ask -c Two? --dry-run")
    assert "One?<turn|>\n<|turn>model\n1<turn|>\n<|turn>user\n1\n\nTwo?<turn|>" in done.stdout
    assert done.stderr == ""


def test_the_sessions_model_goes_on_unless_another_is_named(talk: Program, tmp_path: Path) -> None:
    save(talk)
    other = write_text_checkpoint(tmp_path / "other", context=400)
    first, talk.env = talk.env, {"MLXMTP_MODEL": str(other)}
    stays = run(talk, "ask", "-c", "--json", "And?", answers=["a<turn|>"])
    assert (json.loads(stays.stdout)["model"], stays.stderr) == (first["MLXMTP_MODEL"], "")
    named = run(talk, "ask", "-c", "-m", str(other), "--json", "And?", answers=["b<turn|>"])
    assert json.loads(named.stdout)["model"] == str(other)
    assert named.stderr == f"Note: This conversation was with {talk.model}; {other} goes on with it.\n"
    assert listed(talk)[0]["model"] == str(other)
    other.rename(tmp_path / "gone")
    talk.env = first
    gone = run(talk, "ask", "-c", "--json", "And?", answers=["c<turn|>"])
    assert json.loads(gone.stdout)["model"] == str(talk.model)
    assert gone.stderr.startswith(
        f"Note: Model '{other}', which this conversation was with, is not here: -m names another"
    )


def test_the_system_prompt_stays_unless_another_is_given(talk: Program) -> None:
    run(talk, "ask", "--save", "-s", "Be brief.", "One?", answers=["1<turn|>"])
    before = files(talk)[0].read_bytes()
    assert "<|turn>system\nBe brief.<turn|>" in run(talk, "ask", "-c", "Two?", "--dry-run").stdout
    assert "<|turn>system\nBe long.<turn|>" in run(talk, "ask", "-c", "-s", "Be long.", "Two?", "--dry-run").stdout
    assert files(talk)[0].read_bytes() == before, "a dry run changes nothing"
    run(talk, "ask", "-c", "-s", "Be long.", "Two?", answers=["2<turn|>"])
    assert "<|turn>system\nBe long.<turn|>" in run(talk, "ask", "-c", "Three?", "--dry-run").stdout


def test_a_full_context_is_refused_with_the_way_out_and_warned_of_before(talk: Program) -> None:
    session = save(talk, "x" * 270, "y" * 20)
    warned = run(talk, "ask", "-c", "z", answers=["a<turn|>"])
    assert (warned.returncode, warned.stdout) == (0, "a\n")
    assert warned.stderr.startswith("Note: The conversation fills 8")
    before = files(talk)[0].read_bytes()
    for more in ("z" * 40, "z" * 200):
        full = run(talk, "ask", "-c", more)
        assert (full.returncode, full.stdout) == (2, "")
        assert full.stderr.endswith(f"without -c, or leave out its oldest turns in mlxmtp chat -r {session}.\n")
        assert "no room for an answer in the 400 of" in full.stderr
    assert files(talk)[0].read_bytes() == before


def test_killed_in_the_middle_of_an_answer_it_goes_on_with_what_was_said(talk: Program) -> None:
    with answering(talk, "--save", "One?"):
        pass
    shown = run(talk, "ask", "-c", "Two?", "--dry-run").stdout
    assert "One?<turn|>\n<|turn>model\na" in shown
    assert "*(stopped)*" in run(talk, "sessions", "show", listed(talk)[0]["id"]).stdout


def test_ctrl_c_keeps_what_was_said(talk: Program) -> None:
    with answering(talk, "--save", "One?") as (process, output):
        said = b"a"
        while b"d" not in said:
            said += os.read(output.fileno(), 100)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    assert "One?<turn|>\n<|turn>model\nabcd<turn|>" in run(talk, "ask", "-c", "Two?", "--dry-run").stdout


def test_a_reader_that_leaves_costs_no_session(talk: Program) -> None:
    talk.answers = ["a line that goes on\n{wait}and on<turn|>"]
    done = talk.shell('mlxmtp ask --save One? | { head -c 10; exec <&-; touch "go on"; }; echo "|${PIPESTATUS[0]}"')
    assert done.stdout == "a line tha|141\n"
    assert "a line tha" in run(talk, "sessions", "show", listed(talk)[0]["id"]).stdout


def test_what_could_not_be_saved_is_an_error_after_the_answer(talk: Program) -> None:
    (talk.home / "sessions").write_text("in the way")
    done = run(talk, "ask", "--save", "-q", "Hi", answers=["Hello<turn|>"])
    assert (done.returncode, done.stdout) == (1, "Hello\n")
    assert done.stderr.startswith("Error: This conversation is not saved")


def test_a_dry_run_only_reads_the_session(talk: Program) -> None:
    session = save(talk, "One?", "1")
    with answering(talk, "-c", "Two?"):
        shown = run(talk, "ask", "-c", "Three?", "--dry-run")
        full = run(talk, "ask", "-r", session, "x" * 400, "--dry-run")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "One?<turn|>\n<|turn>model\n1" in shown.stdout
    assert full.stderr.endswith(f"in mlxmtp chat -r {session}.\n")


def test_a_session_open_elsewhere_goes_on_in_a_copy(talk: Program) -> None:
    session = save(talk, "One?", "1")
    with answering(talk, "-c", "Two?"):
        copied = run(talk, "ask", "-c", "--json", "Three?", answers=["3<turn|>"])
        removal = run(talk, "sessions", "rm", "-y", session)
    assert json.loads(copied.stdout)["session"] != session
    assert copied.stderr.startswith(f"Note: Session {session} is open in another window, so this goes on in a copy")
    assert (removal.returncode, removal.stdout) == (1, "")
    assert f"Session {session} is open in another window" in removal.stderr
    assert run(talk, "sessions", "rm", "-y", session).returncode == 0


def test_folders_are_material(talk: Program) -> None:
    (talk.home / "notes" / "deep").mkdir(parents=True)
    (talk.home / "notes" / "a.txt").write_text("alpha")
    (talk.home / "notes" / "deep" / "b.txt").write_text("beta")
    done = run(talk, "ask", "-f", "notes", "Why?", "--dry-run")
    assert "--- notes/a.txt ---\nalpha\n\n--- notes/deep/b.txt ---\nbeta\n\nWhy?<turn|>" in done.stdout
    saved = run(talk, "ask", "--save", "-f", "notes", "Why?", answers=["So<turn|>"])
    assert saved.returncode == 0
    (session,) = listed(talk)
    assert session["title"] == "Why?"
    assert "*(Attached: notes/a.txt, notes/deep/b.txt)*" in run(talk, "sessions", "show", session["id"]).stdout


# --- sessions ---


def test_a_list_for_programs(talk: Program) -> None:
    assert run(talk, "sessions").stdout == "ID\tUPDATED\tTURNS\tMODEL\tNAME\tTITLE\n"
    first, second = save(talk, "One\nline?"), save(talk, "Two?")
    for arguments in (["sessions"], ["sessions", "ls"]):
        done = run(talk, *arguments)
        rows = [line.split("\t") for line in done.stdout.splitlines()]
        assert [row[0] for row in rows] == ["ID", second, first]
        assert rows[2][2:] == ["1", "model", "", "One line?"]
        assert done.stderr.startswith("2 sessions, ")
    before = run(talk, "sessions", "--json", "ls")
    assert (before.returncode, "mlxmtp sessions ls --json" in before.stderr) == (2, True)
    assert json.loads(run(talk, "sessions", "ls", "--json").stdout)["total_bytes"] == sum(
        path.stat().st_size for path in files(talk)
    )


def test_a_list_for_people_fits_the_terminal(talk: Program) -> None:
    save(talk, "A question with so many words that no terminal of sixty columns can hold them in a line")
    terminal = talk.terminal("sessions", columns=60)
    assert terminal.finish() == 0
    head, row, total = terminal.lines()
    assert head.split() == ["ID", "UPDATED", "TURNS", "MODEL", "NAME", "TITLE"]
    assert row.endswith("…")
    assert total.startswith("1 session, ")


def test_a_wide_name_takes_its_columns_from_the_title(talk: Program) -> None:
    save(talk, "word " * 40)
    (session,) = talk.home.rglob("*.jsonl")
    with session.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"type": "name", "name": "名前" * 10}) + "\n")
    terminal = talk.terminal("sessions", columns=130)
    assert terminal.finish() == 0
    assert len(terminal.lines()) == 3


def test_foreign_files_are_a_note(talk: Program) -> None:
    save(talk)
    (talk.home / "sessions" / "mine.jsonl").write_text("hello\n")
    done = run(talk, "sessions")
    assert (done.returncode, done.stdout.count("\n")) == (0, 2)
    assert "Note: mine.jsonl is not a session of mlxmtp." in done.stderr


def test_show_is_markdown_in_a_pipe_and_drawn_on_a_terminal(talk: Program) -> None:
    session = save(talk, "Why?", "**So**, `x`.")
    done = run(talk, "sessions", "show", session[:5])
    assert done.stdout == (
        f"# Why?\n\n{talk.model} · session {session}\n\n## Question\n\nWhy?\n\n## Answer\n\n**So**, `x`.\n"
    )
    terminal = talk.terminal("sessions", "show", session, columns=80)
    assert terminal.finish() == 0
    text = "\n".join(terminal.lines())
    assert "So, x." in text
    assert "**" not in text


def test_rm_takes_several_and_all_or_none(talk: Program) -> None:
    first, second, third = save(talk), save(talk), save(talk)
    (talk.home / "sessions" / f"{first}.kv.safetensors").write_bytes(b"x" * 5000)
    refused = run(talk, "sessions", "rm", first, second)
    assert refused.returncode == 2
    assert refused.stderr.endswith("Error: There is nobody to ask: confirm with -y.\n")
    missing = run(talk, "sessions", "rm", "-y", first, "none")
    assert (missing.returncode, len(listed(talk))) == (2, 3)
    done = run(talk, "sessions", "rm", "-y", first, second, first)
    assert done.returncode == 0
    assert re.fullmatch(r"[5-9] kB freed\.\n", done.stdout)
    assert [path.stem for path in files(talk)] == [third]


def test_rm_goes_on_past_what_it_cannot_delete(talk: Program) -> None:
    first, second, third = save(talk), save(talk), save(talk)
    with answering(talk, "-r", second, "More?"):
        done = run(talk, "sessions", "rm", "-y", first, second, third)
    assert done.returncode == 1
    assert re.fullmatch(r"\d k?B freed\.\n", done.stdout)
    assert done.stderr.endswith(f"Error: Session {second} is open in another window: close it there first.\n")
    assert [path.stem for path in files(talk)] == [second]


def test_a_session_of_a_later_version_is_named_and_can_be_deleted(talk: Program) -> None:
    save(talk, "One?", "1")
    (talk.home / "sessions" / "00newer1.jsonl").write_text('{"type": "session", "format": 3}\n')
    sentence = "00newer1.jsonl was written by another version of mlxmtp: update it to read this session.\n"
    refused = run(talk, "ask", "-r", "00newer1", "Hi")
    assert (refused.returncode, refused.stdout, refused.stderr) == (1, "", f"Error: {sentence}")
    older = run(talk, "ask", "-c", "Two?", answers=["2<turn|>"])
    assert (older.returncode, older.stdout, older.stderr) == (0, "2\n", f"Note: {sentence}")
    again = run(talk, "ask", "-c", "Three?", answers=["3<turn|>"])
    assert (again.stdout, again.stderr) == ("3\n", ""), "the newest one can be read now"
    gone = run(talk, "sessions", "rm", "-y", "00newer1")
    assert (gone.returncode, gone.stdout) == (0, "33 B freed.\n")
    assert "00newer1      33 B  (cannot be read)" in gone.stderr
    assert [one["title"] for one in listed(talk)] == ["One?"]


def test_rm_asks_on_a_terminal(talk: Program) -> None:
    session = save(talk)
    for answer, left, code in (("n", 1, 1), ("y", 0, 0)):
        terminal = talk.terminal("sessions", "rm", session)
        terminal.wait_for("Delete 1 session? [y/N]")
        terminal.send(answer + "\r")
        assert terminal.finish() == code
        assert len(files(talk)) == left


def test_an_export_gives_back_what_was_said(talk: Program) -> None:
    session = save(talk, "Why?", "<|channel>thought\nhm<channel|>So é.")
    assert run(talk, "sessions", "export", session, "talk.md").returncode == 0
    text = (talk.home / "talk.md").read_text(encoding="utf-8")
    assert text == run(talk, "sessions", "export", session).stdout == run(talk, "sessions", "show", session).stdout
    assert "hm" not in text
    assert run(talk, "sessions", "export", session, "talk.json").returncode == 0
    table = json.loads((talk.home / "talk.json").read_text(encoding="utf-8"))
    assert table == json.loads(run(talk, "sessions", "show", session, "--json").stdout)
    (exchange,) = table["exchanges"]
    assert (exchange["question"], exchange["reply"]["text"], exchange["reply"]["thinking"]) == ("Why?", "So é.", "hm")
    again = run(talk, "sessions", "export", session, "talk.md")
    assert again.returncode == 2
    assert again.stderr == "Error: talk.md exists already: take another name, or write over it with --force.\n"
    assert run(talk, "sessions", "export", session, "talk.md", "--force").returncode == 0
    assert run(talk, "sessions", "export", session, "talk.pdf").returncode == 2


def test_an_export_whose_ending_says_something_else_than_its_format_is_refused(talk: Program) -> None:
    session = save(talk, "Why?", "So.")
    for file, form in [("talk.md", "json"), ("talk.json", "md")]:
        refused = run(talk, "sessions", "export", session, file, "--format", form)
        assert (refused.returncode, refused.stdout) == (2, "")
        ending = file.rpartition(".")[2]
        assert refused.stderr == f"Error: {file} ends in .{ending}, but --format says {form}: take one of the two.\n"
        assert not (talk.home / file).exists()
        assert run(talk, "sessions", "export", session, file, "--format", ending).returncode == 0
    shown = run(talk, "sessions", "export", session, "--format", "json").stdout
    assert json.loads(shown) == json.loads((talk.home / "talk.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("words", ["mlxmtp ask -r ", "mlxmtp sessions show ", "mlxmtp sessions rm "])
def test_a_shell_completes_ids(talk: Program, words: str) -> None:
    session = save(talk)
    talk.env = {"_MLXMTP_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()))}
    done = run(talk)
    assert (done.stdout.split(), done.stderr) == ([session], "")
