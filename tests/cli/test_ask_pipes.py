"""`mlxmtp ask` between pipes: bytes, exit codes, signals."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from threading import Timer

import pytest

from tests.cli.conftest import LEAVES, UNTIL_LEFT, Program
from tests.cli.forks import Process


def wait_for_output(process: Process) -> bytes:
    assert process.stdout is not None
    return os.read(process.stdout.fileno(), 100)


def test_the_answer_is_the_only_thing_on_stdout(program: Program) -> None:
    program.answers = ["<|channel>thought\nhm<channel|>**Hello** 🦀\n\n<turn|>"]
    done = program.run("ask", "Hi", "there")
    assert (done.returncode, done.stdout, done.stderr) == (0, "**Hello** 🦀\n".encode(), b"")


def test_files_and_pipe_and_prompt_reach_the_model(program: Program) -> None:
    (program.home / "a.txt").write_text("material\n")
    done = program.run("ask", "-f", "a.txt", "Why?", "-s", "Be brief.", "--dry-run", stdin=b"piped\n")
    assert done.stdout.decode() == (
        "<bos><|turn>system\nBe brief.<turn|>\n<|turn>user\n--- a.txt ---\nmaterial\n\npiped\n\nWhy?<turn|>\n"
        "<|turn>model\n70 tokens, context 400\n"
    )


def test_a_redirected_file_that_is_named_as_a_device_is_read_once(program: Program) -> None:
    file = program.home / "a.txt"
    file.write_text("material\n")
    with file.open("rb") as redirected:
        done = program.run("ask", "-f", "/dev/stdin", "Why?", "--dry-run", stdin=redirected.fileno())
    assert b"<|turn>user\n--- stdin ---\nmaterial\n\nWhy?<turn|>" in done.stdout


def test_dry_run_needs_no_weights_and_no_mlx(program: Program) -> None:
    code = "import sys; from mlxmtp.cli.app import main; main(sys.argv[1:]); print('mlx.core' in sys.modules)"
    args = ["ask", "-m", str(program.model), "Hi", "--dry-run", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", code, *args],
        env=program.environment(), cwd=program.home, stdin=subprocess.DEVNULL, capture_output=True, check=True,
    )  # fmt: skip
    shown, imported = done.stdout.decode().splitlines()
    assert json.loads(shown)["tokens"] == 18
    assert imported == "False"


def test_json_is_one_object(program: Program) -> None:
    program.answers = ["<|channel>thought\nhm<channel|>Héllo<turn|>"]
    done = program.run("ask", "--json", "Hi", "--seed", "7", "--think")
    answer = json.loads(done.stdout)
    assert set(answer) == {"model", "drafter", "response", "thinking", "finish_reason", "stats"}
    assert (answer["response"], answer["thinking"], answer["finish_reason"]) == ("Héllo", "hm", "stop")
    assert (answer["model"], answer["drafter"], answer["stats"]["seed"]) == (str(program.model), None, 7)
    assert done.stdout.count(b"\n") == 1


def test_jsonl_is_one_event_per_line(program: Program) -> None:
    program.answers = ["<|channel>thought\nhm<channel|>ab\ncd<turn|>"]
    events = [json.loads(line) for line in program.run("ask", "--jsonl", "Hi").stdout.splitlines()]
    assert events[0]["type"] == "start"
    assert events[-1]["type"] == "end"
    assert events[-1]["finish_reason"] == "stop"
    assert "".join(event["text"] for event in events if event["type"] == "text") == "ab\ncd"
    assert "".join(event["text"] for event in events if event["type"] == "thinking") == "hm"
    assert all(event["text"] for event in events[1:-1])


def test_extract_gives_the_first_block_and_lets_the_rest_be(program: Program) -> None:
    program.answers = ["Sure:\n```sh\necho hi\n\n  ls\n```\nDone.{never}"]
    done = program.run("ask", "-x", "Hi")
    assert (done.returncode, done.stdout) == (0, b"echo hi\n\n  ls\n")


def test_extract_without_a_block_writes_nothing_and_fails(program: Program) -> None:
    program.answers = ["rm -rf is dangerous.<turn|>"]
    done = program.run("ask", "--extract", "Hi")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"no fenced code block" in done.stderr


def test_the_length_limit_is_a_note_and_no_failure(program: Program) -> None:
    program.answers = ["abcdefgh"]
    done = program.run("ask", "Hi", "--max-tokens", "4")
    assert (done.returncode, done.stdout) == (0, b"abcd\n")
    assert done.stderr == b"Note: The answer was cut after 4 tokens (--max-tokens).\n"
    assert program.run("ask", "Hi", "--max-tokens", "4", "-q").stderr == b""


def test_stats_are_one_line_on_stderr(program: Program) -> None:
    program.answers = ["abcd<turn|>"]
    done = program.run("ask", "Hi", "--stats", "--seed", "3")
    assert done.stdout == b"abcd\n"
    line = done.stderr.decode()
    assert line.count("\n") == 1
    assert line.startswith("5 tok · ")
    assert " · prompt 18 tok " in line
    assert " · context 23/400 · " in line
    assert "seed 3" in line


def test_thinking_reaches_a_pipe_only_when_asked_for(program: Program) -> None:
    program.answers = ["<|channel>thought\nhm<channel|>a<turn|>"]
    assert program.run("ask", "Hi", "--think").stderr == b""
    done = program.run("ask", "Hi", "--think", "--show-thinking")
    assert (done.stdout, done.stderr) == (b"a\n", b"hm\n\n")


def test_the_config_file_and_its_warnings(program: Program) -> None:
    (program.home / "config.toml").write_text("max_tokens = 2\nseeed = 1\n")
    program.answers = ["abcdef"]
    done = program.run("ask", "Hi")
    assert done.stdout == b"ab\n"
    assert b"'seeed'" in done.stderr
    assert b"did you mean 'seed'?" in done.stderr


@pytest.mark.parametrize(
    ("args", "code", "sentence"),
    [
        (["ask", "--temp", "-1", "Hi"], 2, "--temp must be a number from 0 up, not -1."),
        (["ask", "--num-draft-tokens", "9", "Hi"], 2, "--num-draft-tokens must be a whole number from 0 to 8, or auto"),
        (["ask", "--kv-bits", "6", "Hi"], 2, "--kv-bits must be 4 or 8, not 6."),
        (["ask", "--max-tokens", "1e3", "Hi"], 2, "--max-tokens must be a whole number from 1 up, not 1000.0."),
        (["ask", "--seed", "12345678.5", "Hi"], 2, "not 12345678.5."),
        (["ask", "--json", "--jsonl", "Hi"], 2, "exclude each other"),
        (["ask", "-f", "none.txt"], 2, "There is no file none.txt."),
        (["ask", "--draft", "Hi"], 3, "There is no drafter"),
        (["ask", "-m", "12b", "Hi"], 3, "Model '12b' is not on this machine. Run: mlxmtp pull 12b (6.7 GB, "),
        (["ask", "x" * 500], 2, "holds 400: give less material."),
        (["ask"], 2, "There is nothing to ask"),
        (["ask", "--frob", "Hi"], 2, "No such option: --frob"),
        (["aks"], 2, "Did you mean 'ask'?"),
        ([], 2, "Usage: mlxmtp"),
    ],
)
def test_refusals_are_one_sentence_and_an_exit_code(
    program: Program, args: list[str], code: int, sentence: str
) -> None:
    done = program.run(*args)
    assert (done.returncode, done.stdout) == (code, b"")
    assert sentence in done.stderr.decode()
    assert b"Traceback" not in done.stderr


def test_lines_of_map_may_come_from_a_pipe_and_need_no_dash_to_go_to_one(program: Program) -> None:
    done = program.run("map", "--input", "-", "Say {n}", stdin=b'{"n": 1}\n{"m": 2}\n')
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"Line 2 of stdin has no field 'n'" in done.stderr
    refused = program.run("map", "-o", "-", "--input", "-", "Say {n}", stdin=b"")
    assert (refused.returncode, refused.stdout) == (2, b"")
    assert b"leave out -o" in refused.stderr


@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
def test_lines_of_map_may_come_from_a_socket(program: Program, name: str) -> None:
    """As Node's child_process has them, which nobody can open by a path."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(b'{"m": 1}\n')
        ours.shutdown(socket.SHUT_WR)
        done = program.run("map", "--input", name, "Say {n}", stdin=theirs.fileno())
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"Line 1 of stdin has no field 'n'" in done.stderr


def test_lines_of_map_may_come_from_a_pipe_that_wants_no_waiting(program: Program) -> None:
    ours, theirs = os.pipe()
    os.set_blocking(ours, False)

    def write() -> None:
        os.write(theirs, b'{"m": 1}\n')
        os.close(theirs)

    later = Timer(1.0, write)
    later.start()
    done = program.run("map", "--input", "-", "Say {n}", stdin=ours)
    later.join()
    os.close(ours)
    assert b"Line 1 of stdin has no field 'n'" in done.stderr


def test_debug_shows_the_traceback(program: Program) -> None:
    for args in (["--debug", "ask", "-m", "12b", "Hi"], ["ask", "-m", "12b", "Hi", "--debug"]):
        done = program.run(*args)
        assert done.returncode == 3
        assert b"Traceback" in done.stderr
        assert b"Error: Model '12b' is not on this machine." in done.stderr


def test_a_damaged_checkpoint_is_one_sentence(program: Program) -> None:
    (program.model / "tokenizer.json").write_text("{")
    done = program.run("ask", "Hi")
    assert done.returncode == 1
    assert done.stderr.startswith(b"Error: ")
    assert done.stderr.count(b"\n") == 1


def test_a_reader_that_leaves_ends_it_quietly(program: Program) -> None:
    program.answers = ["a line that goes on\n{wait}" + "a line that goes on\n" * 14]
    reader = '{ head -c 10; exec <&-; touch "go on"; }'
    done = program.shell(f'mlxmtp ask -m "$MODEL" Hi | {reader}; echo "|${{PIPESTATUS[0]}}"')
    assert done.stdout == "a line tha|141\n"
    assert done.stderr == ""


def test_a_reader_of_the_help_that_leaves_ends_it_quietly(program: Program) -> None:
    done = program.shell(f"{{ {UNTIL_LEFT}; mlxmtp ask --help; echo $? >&2; }} | {LEAVES}")
    assert done.stderr == "141\n"


def test_a_shell_can_complete(program: Program) -> None:
    program.env = {"_MLXMTP_COMPLETE": "complete_bash", "COMP_WORDS": "mlxmtp ask --dr", "COMP_CWORD": "2"}
    done = program.run()
    assert (done.returncode, done.stderr) == (0, b"")
    assert {"--draft", "--draft-model", "--dry-run"} <= set(done.stdout.decode().split())


def test_a_full_disk_is_a_failure_with_a_sentence(program: Program) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    program.answers = ["abc<turn|>"]
    done = program.shell('mlxmtp ask -m "$MODEL" Hi >/dev/full')
    assert done.returncode == 1
    assert done.stderr == "Error: The answer cannot be written: No space left on device.\n"


@pytest.mark.parametrize("stdin", ["<&-", "</dev/null", "< <(true)"])
def test_nothing_on_stdin_hangs_nothing(program: Program, stdin: str) -> None:
    program.answers = ["fine<turn|>"]
    done = program.shell(f'mlxmtp ask -m "$MODEL" Hi {stdin}')
    assert (done.returncode, done.stdout, done.stderr) == (0, "fine\n", "")


def test_a_pipe_is_a_promise_and_a_loop_has_a_way_out(program: Program) -> None:
    """The writer thinks for longer than anybody waits; the loop keeps its own lines."""
    done = program.shell('(sleep 3; echo DATA) | mlxmtp ask -m "$MODEL" "Summarise" --dry-run')
    assert "DATA\n\nSummarise<turn|>" in done.stdout
    assert done.stderr == ""
    loop = 'printf \'one\\ntwo\\n\' > lines; while read -r l; do mlxmtp ask -m "$MODEL" --dry-run {} "$l"; done < lines'
    taken = program.shell(loop.format(""))
    assert taken.stdout.count("<bos>") == 1
    assert "in a loop, add --no-stdin" in taken.stderr
    left = program.shell(loop.format("--no-stdin"))
    assert (left.stdout.count("<bos>"), left.stderr) == (2, "")
    assert program.run("ask", "--no-stdin", "-f", "-", "Hi").returncode == 2


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-", "<&- 2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_descriptors_are_nobodys(program: Program, closed: str) -> None:
    """A file that is opened next must not take the number of one of the three."""
    program.answers = ["abc<turn|>"]
    done = program.shell(f'mlxmtp ask -m "$MODEL" --save Hi {closed}; echo "$?" > code; cat sessions/*')
    code = (program.home / "code").read_text().strip()
    assert code == ("1" if ">&-" in closed.replace("2>&-", "") else "0")
    assert done.stdout.startswith("abc\n") == (code == "0")
    assert "Hi" in done.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no disk that is always full")
def test_help_that_finds_no_room_is_no_bug(program: Program) -> None:
    done = program.shell("mlxmtp --help > /dev/full")
    assert (done.returncode, done.stderr) == (
        1,
        "Error: No space left on device: make room, or write to another place.\n",
    )


def test_half_a_code_block_is_nothing_and_a_failure(program: Program) -> None:
    program.answers = ["```sh\nrm -rf /tmp/x/y\n```<turn|>"]
    done = program.run("ask", "-x", "Hi", "--max-tokens", "12")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"cut within its code block" in done.stderr
    whole = program.run("ask", "-x", "Hi")
    assert (whole.returncode, whole.stdout) == (0, b"rm -rf /tmp/x/y\n")


def test_a_code_block_that_a_stop_string_ends_is_nothing_and_a_failure(program: Program) -> None:
    program.answers = ["```sh\nls\nrm -rf /tmp/x/y\n```<turn|>"]
    done = program.run("ask", "-x", "Hi", "--stop", "/x")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"leave out --stop" in done.stderr
    (program.home / "config.toml").write_text('stop = "/x"\n')
    done = program.run("ask", "-x", "Hi")
    assert (done.returncode, done.stdout) == (1, b"")
    (program.home / "config.toml").write_text('stop = "never said"\n')
    assert program.run("ask", "-x", "Hi").stdout == b"ls\nrm -rf /tmp/x/y\n"


def test_closed_output_is_a_failure_with_a_sentence(program: Program) -> None:
    program.answers = ["abc<turn|>"]
    done = program.shell('mlxmtp ask -m "$MODEL" Hi >&-')
    assert done.returncode == 1
    assert "Standard output is closed" in done.stderr
    assert program.shell('mlxmtp ask -m "$MODEL" Hi 2>&-').stdout == "abc\n"


def test_nul_bytes_and_invalid_utf8(program: Program) -> None:
    assert program.run("ask", "Hi", stdin=b"a\0b").returncode == 2
    done = program.run("ask", "Hi", "--dry-run", stdin=b"caf\xe9")
    assert "caf\ufffd" in done.stdout.decode()
    assert b"Note: stdin is not valid UTF-8" in done.stderr


def test_ctrl_c_while_answering_keeps_what_was_said(program: Program) -> None:
    program.answers = ["abcd{never}efg"]
    process = program.start("ask", "Hi", "--stats")
    said = wait_for_output(process)
    while b"d" not in said:
        said += wait_for_output(process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, said + out) == (130, b"abcd\n")
    assert err.startswith(b"4 tok")
    assert err.count(b"\n") == 1


def test_ctrl_c_leaves_json_complete(program: Program) -> None:
    program.answers = ["abcd{never}efg"]
    process = program.start("ask", "Hi", "--jsonl")
    said = b""
    while b'"bcd"' not in said:
        said += wait_for_output(process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, b"")
    assert json.loads((said + out).splitlines()[-1])["finish_reason"] == "cancelled"


@pytest.mark.parametrize("moment", ["typer", "mlxmtp.settings", "tokenizers", "jinja2.sandbox", "load", "prefill"])
def test_ctrl_c_before_the_answer_is_quiet(program: Program, moment: str) -> None:
    """The process gets the signal while it imports that module, loads the model, reads the prompt."""
    program.answers = ["never said"]
    program.anew, program.env = True, {"FAKE_INTERRUPT_AT": moment}
    done = program.run("ask", "Hi")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (130, b"", b"")


def test_the_answer_is_flushed_as_it_comes(program: Program) -> None:
    program.answers = ["abcd{never}"]
    process = program.start("ask", "Hi")
    assert wait_for_output(process)[:1] == b"a"
    process.kill()
    process.communicate()


def test_no_stream_waits_for_the_end(program: Program) -> None:
    program.answers = ["abcd\nefgh<turn|>"]
    assert program.run("ask", "Hi", "--no-stream").stdout == b"abcd\nefgh\n"


def test_utf8_whatever_the_locale(program: Program) -> None:
    program.answers = ["é 中<turn|>"]
    program.anew = True
    program.env = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    assert program.run("ask", "Hi").stdout == "é 中\n".encode()
