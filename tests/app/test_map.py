"""`map`: prompts from files and lines, answers in order, a file that one run has left and the next goes on with."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mlxmtp
from mlxmtp.app.map import Job, Result, grouped, keys_of
from mlxmtp.app.map_inputs import Answers, Item, items_of_files, items_of_lines
from mlxmtp.app.open import LearnedDrafting, Opener, OpenModel
from mlxmtp.cli import app
from mlxmtp.engine.events import End, Text
from mlxmtp.engine.params import Params
from mlxmtp.engine.stats import Stats
from mlxmtp.errors import ContextOverflow, MlxmtpError, UsageError
from mlxmtp.files import try_lock
from tests.app.faulty import ANSWER, peer
from tests.media_golden import pictures
from tests.seeing import write_seeing_pocket
from tests.text_checkpoint import write_text_checkpoint

ROOT = Path(__file__).parents[2]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_stands_where_the_prompt_has_braces(tmp_path: Path) -> None:
    one, two = write(tmp_path / "a.txt", "Äpfel {x}"), write(tmp_path / "b.txt", "")
    items = items_of_files("Say {} and {}; {name}.", [one, two], print)
    assert [item.prompt for item in items] == ["Say Äpfel {x} and Äpfel {x}; {name}.", "Say  and ; {name}."]
    assert items[0].input == str(one)


def test_fields_of_a_line_stand_where_they_are_named(tmp_path: Path) -> None:
    lines = write(tmp_path / "in.jsonl", '{"a": "{b}", "b": [1, "é"]}\n\n{"a": "x\u2028", "b": null}\n')
    items = items_of_lines('{a} is {b}, {"json": {}}', lines, print)
    assert [item.prompt for item in items] == ['{b} is [1, "é"], {"json": {}}', 'x\u2028 is null, {"json": {}}']
    assert [item.name for item in items] == ["line 1", "line 3"]


def test_blank_lines_at_the_beginning_are_counted(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Line 4 .* is not JSON"):
        items_of_lines("{a}", write(tmp_path / "in.jsonl", '\n\n{"a": 1}\n{'), print)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "Line 1 .* is not JSON"),
        ("[1]", "must be an object"),
        ('{"b": 1}', "no field 'a'"),
        ("\0", "not text"),
        ("x" * 70_000, "is not JSON"),
        ('{"a": ' + "[" * 100_000, "is not JSON"),
    ],
)
def test_lines_that_will_not_do(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        items_of_lines("{a}", write(tmp_path / "in.jsonl", text), print)


def test_prompts_and_files_that_will_not_do(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"needs \{\}"):
        items_of_files("Summarise", [tmp_path / "a"], print)
    with pytest.raises(UsageError, match=r"needs \{name\}"):
        items_of_lines("Summarise {}", tmp_path / "a", print)
    with pytest.raises(UsageError, match="There is no file"):
        items_of_files("{}", [tmp_path / "missing"], print)


def test_a_pipe_is_read_once() -> None:
    def items_of(data: bytes) -> list[Item]:
        end, start = os.pipe()
        os.write(start, data)
        os.close(start)
        try:
            return items_of_files("{}", [Path(f"/dev/fd/{end}")], print)
        finally:
            os.close(end)

    text = "The beginning of a longer text. " * 100
    assert items_of(text.encode())[0].prompt == text
    with pytest.raises(UsageError, match="is a pipe: image files are read more than once"):
        items_of(b"\x89PNG\r\n\x1a\n" + bytes(20))


def test_bytes_that_are_no_text_are_told(tmp_path: Path) -> None:
    told: list[str] = []
    text, lines = tmp_path / "a.txt", tmp_path / "in.jsonl"
    text.write_bytes(b"caf\xe9")
    lines.write_bytes(b'{"a": "caf\xe9"}\n')
    assert items_of_files("{}", [text], told.append)[0].prompt == "caf\ufffd"
    assert items_of_lines("{a}", lines, told.append)[0].prompt == "caf\ufffd"
    assert told == [
        f"{text} is not valid UTF-8 (first at byte 3): the invalid bytes are replaced.",
        f"{lines} is not valid UTF-8 (first at byte 10): the invalid bytes are replaced.",
    ]


def items(*prompts: str) -> list[Item]:
    return [Item(prompt, prompt, prompt) for prompt in prompts]


def test_a_file_of_answers_goes_on_behind_its_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    keys = keys_of(items("a", "b", "c"), "pocket", Params(), "")
    with Answers(path, keys) as answers:
        assert answers.done == 0
    with Answers(path, keys) as answers:
        answers.put(0, json.dumps({"key": keys[0], "error": "too long"}) + "\n")
    with path.open("a") as file:
        file.write('{"input": "b", "key": "' + keys[1])  # killed here
    with Answers(path, keys) as again:
        assert (again.done, again.failed) == (1, [0])
    assert path.read_text().endswith("}\n")


@pytest.mark.parametrize(
    "text",
    ["One note, no newline", "Line one\nline two", "{}", '{"a": 1}', '{"input": "x"}', '{"input": "x"}\n{"in', "\n"],
)
def test_a_file_that_holds_something_else_stays_as_it_is(text: str, tmp_path: Path) -> None:
    path = write(tmp_path / "note.txt", text)
    with pytest.raises(UsageError, match=r"note\.txt holds something else than answers .*: give another -o"):
        Answers(path, ["a", "b"])
    assert path.read_text() == text


def test_half_a_line_stays_where_the_answers_are_to_something_else(tmp_path: Path) -> None:
    text = '{"input": "a", "key": "a"}\n{"input": "b", "ke'
    path = write(tmp_path / "out.jsonl", text)
    with pytest.raises(UsageError, match="no answer to input 1"):
        Answers(path, ["other", "b"])
    assert path.read_text() == text
    with Answers(path, ["a", "b"]) as answers:
        assert answers.done == 1
    assert path.read_text() == text[: text.index("\n") + 1]


@pytest.mark.parametrize("goes_on", [False, True])
def test_an_error_is_renewed_in_its_place(goes_on: bool, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    lines = [json.dumps({"input": key, "key": key, "error": "no"}) + "\n" for key in "abc"]
    path.write_text("".join(lines))
    path.chmod(0o600)
    good = lines[1].replace("error", "response")
    with Answers(path, [*"abcd"]) as answers:
        assert (answers.done, answers.failed) == (3, [0, 1, 2])
        answers.put(1, good)
        if goes_on:
            answers.put(3, '{"key": "d"}\n')
            assert path.read_text() == "".join([lines[0], good, lines[2], '{"key": "d"}\n'])
            with pytest.raises(UsageError, match="Another run writes"):
                Answers(path, [*"abcd"])
    with Answers(path, [*"abcd"]) as again:
        assert (again.done, again.failed) == (3 + goes_on, [0, 2])
    assert path.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in tmp_path.iterdir()] == ["out.jsonl"]


def test_an_answer_that_renews_an_error_is_in_the_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    lines = [json.dumps({"input": key, "key": key, "error": "no"}) + "\n" for key in "ab"]
    path.write_text("".join(lines))
    with Answers(path, [*"ab"]) as answers:
        answers.put(1, good := lines[1].replace("error", "response"))
        assert path.read_text() == lines[0] + good


def test_answers_are_renewed_where_no_file_can_be_made_beside_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise PermissionError(errno.EACCES, "Permission denied")

    path = tmp_path / "out.jsonl"
    path.write_text(json.dumps({"input": "a", "key": "a", "error": "no"}) + "\n")
    monkeypatch.setattr("mlxmtp.app.map_inputs.write_atomically", refuse)
    with Answers(path, ["a"]) as answers:
        answers.put(0, '{"key": "a", "response": "yes"}\n')
    assert path.read_text() == '{"key": "a", "response": "yes"}\n'


def test_a_pdf_is_refused_with_the_command_that_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(b"%PDF-1.7\n")
    with pytest.raises(UsageError, match=r"a\.pdf is a PDF, .*mlxmtp ask -f"):
        items_of_files("{}", [path], print)


def test_a_path_that_is_no_text_does_not_end_the_run(tmp_path: Path) -> None:
    path, name = tmp_path / "out.jsonl", os.fsdecode(b"caf\xe9.txt")
    with Answers(path, ["k"]) as answers:
        answers.put(0, Result(Item(name, name, "Hi"), "k", error="no").to_json())
    with Answers(path, ["k"]) as again:
        assert (again.done, again.failed) == (1, [0])


def test_a_second_run_does_not_write_into_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with Answers(path, ["a", "b"]) as answers:
        with pytest.raises(UsageError, match=r"Another run writes .*out\.jsonl: wait until it has ended"):
            Answers(path, ["a", "b"])
        answers.put(0, json.dumps({"key": "a"}) + "\n")
    with pytest.raises(UsageError, match="no answer to input"):
        Answers(path, ["x"])  # which gives the lock back
    with Answers(path, ["a", "b"]) as again:
        assert again.done == 1


def test_a_file_that_is_renewed_while_another_run_takes_it_has_one_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text(json.dumps({"input": "a", "key": "a", "error": "no"}) + "\n")
    good = '{"key": "a", "response": "yes"}\n'
    with Answers(path, ["a"]) as answers:

        def late(descriptor: int) -> bool:
            monkeypatch.undo()
            answers.put(0, good)  # between the opening and the lock
            return try_lock(descriptor)

        monkeypatch.setattr("mlxmtp.app.map_inputs.try_lock", late)
        with pytest.raises(UsageError, match="Another run writes"):
            Answers(path, ["a"])
    assert path.read_text() == good


def test_a_file_that_cannot_be_written_is_refused_before_the_first_answer(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        Answers(tmp_path / "none" / "out.jsonl", [])
    with pytest.raises(UsageError, match="cannot be written"):
        Answers(tmp_path, [])


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_on_the_way_is_no_wrong_usage_and_keeps_the_lines_before(
    error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.jsonl"

    def fails(self: Path, *args: Any, **more: Any) -> NoReturn:
        raise OSError(error, os.strerror(error), str(self))

    with Answers(path, ["a", "b"]) as answers, monkeypatch.context() as patched:
        answers.put(0, json.dumps({"key": "a"}) + "\n")
        patched.setattr(Path, "open", fails)
        with pytest.raises(MlxmtpError, match=r"answers before stay in it: .* goes on behind them") as raised:
            answers.put(1, json.dumps({"key": "b"}) + "\n")
    assert raised.value.exit_code == 1
    assert ("make room" in str(raised.value)) == (error == errno.ENOSPC)
    with Answers(path, ["a", "b"]) as again:
        assert again.done == 1


def test_a_device_holds_no_answers_of_an_earlier_run() -> None:
    with Answers(Path("/dev/zero"), ["k"]) as answers:
        assert answers.done == 0


@pytest.mark.parametrize("change", ["prompt", "model", "params", "system", "more"])
def test_answers_to_something_else_are_not_gone_on_with(change: str, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    before = keys_of(items("a", "b"), "pocket", Params(temp=0.5), "")
    with Answers(path, before) as answers:
        for number, key in enumerate(before):
            answers.put(number, json.dumps({"key": key}) + "\n")
    after = {
        "prompt": keys_of(items("a", "c"), "pocket", Params(temp=0.5), ""),
        "model": keys_of(items("a", "b"), "e2b", Params(temp=0.5), ""),
        "params": keys_of(items("a", "b"), "pocket", Params(temp=0.6), ""),
        "system": keys_of(items("a", "b"), "pocket", Params(temp=0.5), "Be brief"),
        "more": keys_of(items("a"), "pocket", Params(temp=0.5), ""),
    }
    with pytest.raises(UsageError, match="no answer to input"):
        Answers(path, after[change])
    with Answers(path, before) as again:
        assert again.done == 2


@pytest.fixture
def asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs `map` on one file, with an answer in `out.jsonl`, and returns the exit code."""
    monkeypatch.setenv("MLXMTP_HOME", str(tmp_path))
    words = ["-o", str(tmp_path / "out.jsonl"), "Say {}", str(write(tmp_path / "a.txt", "a"))]
    return lambda *flags: app.main(["map", *flags, *words])


def test_answers_of_a_servers_other_model_are_not_gone_on_with(
    tmp_path: Path, asks: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    with peer(ANSWER) as server, peer() as other:
        config = write(tmp_path / "config.toml", f'[endpoint.team]\nurl = "{server.url}"\n')
        assert asks("--url", "team", "-m", "A") == 0
        assert asks("--url", "team", "-m", "B") == 2
        assert "no answer to input 1" in capsys.readouterr().err
        assert asks("--url", "team", "-m", "A") == 0
        write(config, f'[endpoint.team]\nurl = "{other.url}"\n')
        assert asks("--url", "team", "-m", "A") == 2


def test_answers_of_what_an_alias_meant_before_are_not_gone_on_with(
    tmp_path: Path, asks: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def results(job: Job) -> Iterator[Result]:
        for item in job.items:
            yield Result(item, response="Yes.", end=End("stop", Stats()))

    monkeypatch.setattr(Job, "results", results)
    monkeypatch.setattr(Opener, "open", lambda *_: None)
    one, two = (write_text_checkpoint(tmp_path / name) for name in ("one", "two"))
    config = write(tmp_path / "config.toml", f'[aliases]\nmine = "{one}"\n')
    assert [asks("-m", "mine") for _ in range(2)] == [0, 0]
    assert asks("-m", "mine", "--kv-bits", "8") == 2
    write(config, f'[aliases]\nmine = "{two}"\n')
    assert asks("-m", "mine") == 2


def test_answers_come_in_order_and_are_those_that_each_has_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check_length(prompt: int, context: int, name: str) -> None:
        if prompt > 200:
            raise ContextOverflow(f"'{name}' holds {context} tokens.")

    monkeypatch.setattr("mlxmtp.engine.model.check_length", check_length)
    model = mlxmtp.load("pocket")
    model._decoder.compiled = model._decoder._rounds._mode = "never"
    opened = OpenModel(model, None, None, LearnedDrafting(tmp_path, None))  # type: ignore[arg-type]
    questions = ["What is a drafter?" * 3, "Hello!", "word " * 300, "Who are you?", "What is MTP?"]
    params = Params(max_tokens=12, seed=3)
    results = list(Job(opened, items(*questions), params, 3).results())
    assert [result.item.prompt for result in results] == questions
    assert "holds" in results[2].error
    assert json.loads(results[2].to_json())["error"]
    for question, result in zip(questions, results, strict=True):
        if not result.error:
            events = model.stream([{"role": "user", "content": question}], params)
            assert result.response == "".join(event.text for event in events if isinstance(event, Text))
    rest = list(Job(opened, items(*questions), params, 2).results(3))
    assert [one.response for one in rest] == [one.response for one in results[3:]]
    model.close()


HELD = """
import sys, time
from mlxmtp.app.map_inputs import Answers
put = Answers.put
def put_and_wait(*args):
    put(*args)
    time.sleep(600)  # until Ctrl-C
Answers.put = put_and_wait
from mlxmtp.__main__ import main
sys.exit(main())
"""


@pytest.mark.slow
def test_ctrl_c_and_a_second_run_give_the_file_of_an_undisturbed_one(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{i}.txt", f"question {i}: what is MTP?") for i in range(6)]
    own = {"HOME": str(tmp_path), "MLXMTP_HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}

    def command(output: Path, *program: str) -> list[str]:
        flags = ["--seed", "3", "--max-tokens", "40", "--parallel", "2", "-m", "pocket", "-o", str(output)]
        return [sys.executable, *(program or ("-m", "mlxmtp")), "map", *flags, "Answer: {}", *map(str, files)]

    def answers(output: Path) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in output.read_text().splitlines()]
        return [{"input": one["input"], "response": one["response"]} for one in lines]

    environment = {"PATH": os.environ["PATH"], **own}
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    done = subprocess.run(command(whole), env=environment, capture_output=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (0, b"")
    process = subprocess.Popen(command(cut, "-c", HELD), env=environment, stderr=subprocess.DEVNULL)
    try:
        while not (cut.exists() and cut.read_bytes().count(b"\n")) and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 130
    finally:
        process.kill()
    assert len(answers(cut)) == 1
    done = subprocess.run(command(cut), env=environment, capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert b"continuing after them" in done.stderr
    assert answers(cut) == answers(whole)


LATE = """
import sys, time
from mlxmtp.app.map_inputs import Answers
from mlxmtp.errors import MlxmtpError
put = Answers.put
def put_late(answers, number, text):
    answers._renew_after = float("inf")  # of a long file
    put(answers, number, text)
    print("put", flush=True)
    time.sleep(600)  # until Ctrl-C
def renew(answers):
    raise MlxmtpError("The disk is full.")
Answers.put = put_late
if sys.argv.pop(1) == "full":
    Answers._renew = renew
from mlxmtp.__main__ import main
sys.exit(main())
"""


@pytest.mark.parametrize("disk", ["free", "full"])
def test_ctrl_c_writes_the_answers_that_wait_for_their_places(tmp_path: Path, disk: str) -> None:
    file, output = write(tmp_path / "a.txt", "a"), tmp_path / "out.jsonl"
    environment = {"PATH": os.environ["PATH"], "MLXMTP_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    with peer(ANSWER, ANSWER) as server:
        words = ["map", "--url", server.url, "-m", "A", "-o", str(output), "Say {}", str(file)]
        subprocess.run([sys.executable, "-m", "mlxmtp", *words], env=environment, timeout=120, check=True)
        answer = json.loads(output.read_text())
        write(output, json.dumps({"input": str(file), "key": answer["key"], "error": "no"}) + "\n")
        late = [sys.executable, "-c", LATE, disk, *words]
        with subprocess.Popen(late, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == b"put\n"
                process.send_signal(signal.SIGINT)
                assert process.wait(120) == 130
            finally:
                process.kill()
            assert process.stderr is not None
            assert (b"Error: The disk is full." in process.stderr.read()) == (disk == "full")
    assert json.loads(output.read_text()).get("response") == (answer["response"] if disk == "free" else None)


def test_a_picture_is_seen_where_the_prompt_has_braces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_seeing_pocket(tmp_path / "seeing")
    files = [tmp_path / name for name in ("tall.png", "cut.png", "wide.jpg", "notes.txt")]
    for file, picture in zip(files[::2], pictures(), strict=True):
        picture.save(file)
    files[1].write_bytes(files[0].read_bytes()[:500])
    files[3].write_text("Some words.")
    asked = items_of_files("Look: {} What is it?", files, print)
    assert [one.content for one in asked[2:]] == [
        [
            {"type": "text", "text": "Look: "},
            {"type": "image", "image": files[2]},
            {"type": "text", "text": " What is it?"},
        ],
        "Look: Some words. What is it?",
    ]
    params = Params(max_tokens=6, seed=3, temp=1.0, image_tokens=70)
    keys = keys_of(asked, "m", params, "")
    pictures()[1].save(files[0])
    assert [a == b for a, b in zip(keys, keys_of(asked, "m", params, ""), strict=True)] == [False, True, True, True]
    model = mlxmtp.load(folder, False)
    model._decoder.compiled = model._decoder._rounds._mode = "never"
    opened = OpenModel(model, None, None, LearnedDrafting(tmp_path, None))  # type: ignore[arg-type]
    results = list(Job(opened, asked, params, 3).results())
    assert "cut.png is damaged" in results[1].error
    for result in results[:1] + results[2:]:
        events = model.stream([{"role": "user", "content": result.item.content}], params)
        assert result.response == "".join(event.text for event in events if isinstance(event, Text))
    model.close()


@given(st.lists(st.integers(1, 60), min_size=1, max_size=30), st.integers(1, 100))
def test_groups_of_answers(tokens: list[int], room: int) -> None:
    texts = [str(number) for number in range(len(tokens))]
    groups = grouped(texts, tokens, room)
    assert [text for group in groups for text in group] == texts
    sizes = [sum(tokens[int(text)] for text in group) for group in groups]
    assert all(size <= room or len(group) == 1 for size, group in zip(sizes, groups, strict=True))
    assert all(size + tokens[int(after[0])] > room for size, after in zip(sizes, groups[1:], strict=False))
