"""`mlxmtp bench` in this process, with the built-in model's text side and a harness that makes its times up."""

from __future__ import annotations

import csv
import io
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlxmtp.bench import harness as harness_module
from mlxmtp.cli.app import main
from mlxmtp.cli.terminal.output import ReaderGone
from mlxmtp.errors import LoadError
from mlxmtp.machine.chip import Machine
from mlxmtp.machine.pace import Measured, Pace, Products
from mlxmtp.settings import find_places
from tests.bench.fake_harness import BASE, STEP, FakeHarness
from tests.bench.json_schema import problems

SCHEMA = json.loads((Path(__file__).parents[2] / "mlxmtp" / "bench" / "schema.json").read_text(encoding="utf-8"))
SHORT = ("--suite", "chat", "-n", "10", "-r", "2", "--num-draft-tokens", "1,3,auto")

Bench = Callable[..., tuple[int, str, str]]


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> FakeHarness:
    made = FakeHarness()
    monkeypatch.setattr(harness_module, "Harness", made)
    return made


@pytest.fixture
def bench(
    harness: FakeHarness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Bench:
    monkeypatch.setenv("MLXMTP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("MLXMTP_MODEL", raising=False)
    monkeypatch.setattr("mlxmtp.bench.environment._load", lambda: 0.0)
    monkeypatch.chdir(tmp_path)

    def run(*args: str, model: str | None = "pocket") -> tuple[int, str, str]:
        code = main(["bench", *(["-m", model] if model else []), *args])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


def report(bench: Bench, *args: str) -> dict[str, Any]:
    code, out, err = bench(*args, "--format", "json")
    assert (code, err) == (0, "")
    value: dict[str, Any] = json.loads(out)
    assert not list(problems(value, SCHEMA, SCHEMA))
    return value


def test_the_json_is_what_the_schema_says_and_holds_every_sample(bench):
    found = report(bench, *SHORT)
    assert len(found["samples"]) == 5 * 2 * 4
    assert found["complete"] is True
    assert [row["num_draft_tokens"] for row in found["summary"]] == [0, 1, 3, "auto"]
    assert {len(sample["tokens"]) for sample in found["samples"]} == {10}
    (cost,) = found["cost"]
    assert (cost["base_seconds"], cost["step_seconds"]) == pytest.approx((BASE, STEP))
    assert cost["drafter_seconds"] == pytest.approx(STEP * 3 / 4)
    assert found["settings"]["max_tokens"] == 10
    assert found["models"][0]["quantization"] == "bf16"


def test_a_drafter_is_named_as_it_ran(bench):
    for options, held in [((), "bf16"), (("--draft-bits", "4"), "4bit"), (("--draft-bits", "16"), "bf16")]:
        assert report(bench, *SHORT, *options)["models"][0]["drafter_quantization"] == held
    assert "(8bit)" in bench(*SHORT, "--draft-bits", "8")[1]


def test_packed_keys_and_values_are_measured_and_named(bench, harness):
    found = report(bench, *SHORT, "--kv-bits", "4")
    assert {name: harness.bits[name] for name in ("draft_bits", "kv_bits")} == {"draft_bits": None, "kv_bits": 4}
    assert found["models"][0]["kv_bits"] == 4
    code, out, _ = bench(*SHORT, "--kv-bits", "8")
    assert code == 0
    assert "keys and values in 8 bits" in out
    assert "keys and values" not in bench(*SHORT)[1]


def test_exact_text_is_measured_where_doctor_found_it_as_ask_has_it(bench: Bench, harness: FakeHarness) -> None:
    bench(*SHORT)
    assert harness.wanted == "off"
    products = Products(1e11, {1: 1.0})
    Measured(Pace(products, products), exact=True).save(find_places().data)
    bench(*SHORT)
    assert harness.wanted == "auto"


def test_a_changed_report_breaks_the_schema(bench):
    found = report(bench, *SHORT)
    changes: list[dict[str, Any]] = [{"created": 1}, {"samples": [{}]}, {"more": 1}, {"schema": "mlxmtp-bench/2"}]
    for change in changes:
        assert list(problems({**found, **change}, SCHEMA, SCHEMA))


def test_arms_take_turns_on_each_text_and_plain_always_comes_first(bench, harness):
    report(bench, *SHORT, "-w", "2")
    arms = [arm for _, arm in harness.runs]
    assert arms == [0, 1, 3, "auto"] * (2 + 5 * 2)  # the first two rounds of them are the warm-up
    prompts = [prompt for prompt, _ in harness.runs[8:]]
    assert all(len(set(prompts[i : i + 4])) == 1 for i in range(0, len(prompts), 4))
    longest = max(len(prompt) for prompt in prompts)
    assert {len(prompt) for prompt, _ in harness.runs[:8]} == {longest}
    assert harness.prepared == [(longest, 10, (0, 1, 3, "auto"))]
    harness.capacities = 2
    report(bench, *SHORT)
    assert len(harness.prepared) == 3
    assert harness.prepared[1][0] < harness.prepared[2][0] == longest


def test_lengths_go_from_short_to_long_whatever_their_order(bench, harness):
    found = report(bench, *SHORT, "-p", "200,50", "-r", "1")
    assert [row["length"] for row in found["summary"]] == [50] * 4 + [200] * 4
    assert {(s["length"], s["prompt_tokens"]) for s in found["samples"]} == {(50, 50), (200, 200)}
    assert [tokens for tokens, _, _ in harness.prepared] == [50, 200]


def test_markdown_has_the_verdict_first_and_all_tables(bench):
    code, out, err = bench(*SHORT, "--suite", "code")
    assert (code, err) == (0, "")
    assert out.startswith("# mlxmtp bench\n\n- The drafter is worth it here: ")
    for heading in ("Speed", "Times", "Kinds of text", "Acceptance by position", "Cost of a round", "Environment"):
        assert f"\n## {heading}\n" in out
    assert "yes (20 of 20)" in out
    tables = [line for line in out.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in tables)


def test_a_text_that_differs_is_told_with_its_first_token_and_margin(bench, harness):
    harness.wrong = 4
    code, out, _ = bench(*SHORT)
    assert code == 0
    assert "differ from plain, the first at token 5" in out
    assert "0 of 10; token 5, margin 1e-06, near-tie" in out
    found = report(bench, *SHORT)
    partings = [sample["parting"] for sample in found["samples"] if sample["num_draft_tokens"] == "auto"]
    assert {parting["at"] for parting in partings} == {5}
    assert all(sample["same_text"] for sample in found["samples"] if sample["num_draft_tokens"] == 3)


def test_json_lines_come_as_they_are_measured(bench):
    code, out, _ = bench(*SHORT, "--format", "jsonl")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [line["type"] for line in lines] == ["start", *["sample"] * 40, "checking", "end"]
    whole = {**lines[0], **lines[-1], "samples": [line for line in lines if line["type"] == "sample"]}
    for part in (whole, *whole["samples"]):
        del part["type"]
    assert not list(problems(whole, SCHEMA, SCHEMA))


def test_csv_has_a_row_for_each_sample(bench):
    code, out, _ = bench(*SHORT, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0
    assert len(rows) == 40
    assert {row["num_draft_tokens"] for row in rows} == {"0", "1", "3", "auto"}
    assert float(rows[0]["generation_tps"]) == pytest.approx(1 / BASE)


def test_a_file_gets_the_report_and_stdout_the_tables(bench, tmp_path):
    code, out, _ = bench(*SHORT, "-o", "run.json", "--plot", "run.svg")
    assert code == 0
    assert out.startswith("# mlxmtp bench\n")
    assert json.loads((tmp_path / "run.json").read_text())["schema"] == "mlxmtp-bench/1"
    assert ET.parse(tmp_path / "run.svg").getroot().tag.endswith("svg")
    assert bench(*SHORT, "-o", "run.jsonl")[0] == 0
    assert len((tmp_path / "run.jsonl").read_text().splitlines()) == 43


@pytest.mark.parametrize("form", ["md", "json", "jsonl", "csv"])
def test_two_reports_are_compared_in_every_form(bench, harness, form):
    bench(*SHORT, "-o", "a.json")
    bench(*SHORT, "-o", "b.json")
    code, out, err = bench("--compare", "a.json", "b.json", "--format", form, model=None)
    assert (code, err) == (0, "")
    assert "same within" in out
    if form == "json":
        assert json.loads(out)["schema"] == "mlxmtp-bench-comparison/1"
    elif form == "csv":
        assert len(list(csv.DictReader(io.StringIO(out)))) == 4 * 4
    elif form == "jsonl":
        assert json.loads(out.splitlines()[-1])["verdict"] == ["4 of 4 are the same within their spread."]


def test_without_a_drafter_and_with_no_draft_there_is_plain_only(bench, harness):
    found = report(bench, *SHORT, "--no-draft")
    assert [row["num_draft_tokens"] for row in found["summary"]] == [0]
    assert found["models"][0]["drafter"] is None
    assert found["checking"] == found["cost"] == []
    assert "nothing to say about drafting" in found["verdict"][0]["sentences"][0]


@pytest.mark.parametrize("at", [5, 23])
def test_ctrl_c_keeps_what_was_measured(bench, harness, at):
    harness.interrupt_at = at
    code, out, err = bench(*SHORT, "-o", "run.json", "-w", "0")
    assert (code, err) == (130, "")
    assert "Interrupted: this is what had been measured by then." in out
    found = json.loads(Path("run.json").read_text(encoding="utf-8"))
    assert found["complete"] is False
    assert len(found["samples"]) == at
    assert not list(problems(found, SCHEMA, SCHEMA))


def test_the_report_is_written_although_nobody_reads_the_tables(bench, monkeypatch):
    def gone(*_: object) -> None:
        raise ReaderGone

    monkeypatch.setattr("mlxmtp.cli.terminal.output.Output.write", gone)
    assert bench(*SHORT, "-o", "run.json", "--plot", "run.svg")[0] == 141
    assert len(json.loads(Path("run.json").read_text(encoding="utf-8"))["samples"]) == 40
    assert Path("run.svg").is_file()


def test_the_tables_are_shown_although_the_file_cannot_be_written(bench, harness, monkeypatch):
    time_drafter = harness.time_drafter

    def and_then_the_folder_goes(*args: Any) -> Any:
        Path("reports").rmdir()
        return time_drafter(*args)

    Path("reports").mkdir()
    monkeypatch.setattr(harness, "time_drafter", and_then_the_folder_goes)
    code, out, err = bench(*SHORT, "-o", "reports/run.json")
    assert (code, "reports/run.json cannot be written" in err) == (1, True)
    assert "yes (10 of 10)" in out


@pytest.mark.parametrize(("flag", "name"), [("-o", "run.json"), ("--plot", "run.svg")])
def test_a_file_that_may_not_be_written_is_refused_first(bench, harness, monkeypatch, flag, name):
    monkeypatch.setattr(
        "mlxmtp.cli.commands.bench.os.access", lambda *_: False
    )  # the tests may run as root, who may do all
    code, _, err = bench(*SHORT, flag, name)
    assert (code, f"{flag} {name} cannot be written" in err) == (2, True)
    assert not harness.runs


def test_ctrl_c_before_anything_was_measured(bench, harness):
    harness.interrupt_at = 0
    assert bench(*SHORT, "-o", "run.json") == (130, "", "Nothing had been measured yet.\n")
    assert not Path("run.json").exists()


def test_a_failure_in_the_middle_keeps_what_was_measured(bench, harness, monkeypatch):
    calls: list[Path] = []

    def load(folder, *args, **kwargs):
        calls.append(folder)
        if len(calls) > 1:
            raise LoadError("The second model is damaged.")
        return harness

    monkeypatch.setattr(harness, "load", load)
    pocket = Path(__file__).parents[2] / "assets" / "pocket" / "target"
    code, out, err = bench(*SHORT, "-m", str(pocket))
    assert (code, err) == (1, "Error: The second model is damaged.\n")
    assert "yes (10 of 10)" in out


def test_a_busy_machine_is_told(bench, monkeypatch):
    monkeypatch.setattr("mlxmtp.bench.environment._load", lambda: 1000.0)
    assert "Note: Other programs are busy (load 1000 on" in bench(*SHORT)[2]
    assert bench(*SHORT, "-q")[2] == ""


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("-p", "512,x"), 2, "-p must be lengths in tokens"),
        (("-p", "4"), 2, "the chat template alone takes"),
        (("-p", "40000"), 2, "do not fit the 32,768 of 'pocket'"),
        (("-n", "32700"), 2, "tokens: it and 32,700 new ones do not fit"),
        (("--num-draft-tokens", "9"), 2, "--num-draft-tokens must be of 0 to 8 and auto, not '9'"),
        (("--num-draft-tokens", "-1"), 2, "not '-1'"),
        (("--suite", "poems"), 2, "There is no suite 'poems'"),
        (("--format", "xml"), 2, "--format must be md, json, jsonl or csv"),
        (("-o", "run.txt"), 2, "give --format"),
        (("-o", "missing/run.json"), 2, "give a file in a folder that exists"),
        (("--plot", "run.pdf"), 2, "must end in .svg or .png"),
        (("--plot", "missing/run.svg"), 2, "give a file in a folder that exists"),
        (("--temp", "-1"), 2, "--temp must be a number from 0 up"),
        (("-m", "nothing"), 3, "Model 'nothing' is not known"),
        (("--draft-model", "e2b"), 3, "Run: mlxmtp pull e2b"),
        (("--compare", "a.json", "b.json"), 2, "leave out -m, --suite, --streams and --plot"),
        (("-n", "1"), 2, "--max-tokens must be a whole number from 2 up"),
        (("-r", "0"), 2, "--repetitions must be a whole number from 1 up"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_loaded(bench, harness, args, code, says):
    done, out, err = bench(*args)
    assert (done, out) == (code, "")
    assert says in err
    assert "Traceback" not in err
    assert not harness.runs


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read"),
        ("# markdown", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "is no report of this program"),
        ('{"schema": "mlxmtp-bench/1"}', "is a damaged report"),
        ('{"schema": "mlxmtp-bench-streams/1"}', "b.json has the form mlxmtp-bench-streams/1: --compare takes"),
    ],
)
def test_a_file_that_is_no_report_is_refused(bench, tmp_path, content, says):
    if content is not None:
        (tmp_path / "b.json").write_text(content)
    bench(*SHORT, "-o", "a.json")
    code, out, err = bench("--compare", "a.json", "b.json", model=None)
    assert (code, out) == (2, "")
    assert says in err


@pytest.mark.parametrize("args", [("--compare", "/dev/zero", "/dev/zero"), ("--suite", "/dev/zero", "-m", "pocket")])
def test_a_file_that_never_ends_is_given_up(bench, args):
    code, out, err = bench(*args, model=None)
    assert (code, out) == (2, "")
    assert "/dev/zero cannot be read: File too large" in err


def test_a_model_too_large_is_refused_unless_forced(bench, harness, monkeypatch):
    small = Machine("x", "x", None, "", 10**6, 10**6, None)
    monkeypatch.setattr("mlxmtp.app.open.this_machine", lambda: small)
    code, _, err = bench(*SHORT)
    assert code == 1
    assert "--force" in err
    assert bench(*SHORT, "--force")[0] == 0


def test_a_terminal_shows_tables_and_their_source_only_if_it_is_asked_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    drawn, source = bench(*SHORT, "--no-color"), bench(*SHORT, "--format", "md")
    assert source[1].startswith("# mlxmtp bench\n")
    assert "\n| prompt" in source[1]
    rows = re.sub(r"\x1b\[[0-9;]*[mK]", "", drawn[1]).splitlines()
    assert rows[0] == "mlxmtp bench"
    assert not any("|" in row for row in rows)
    assert max(map(len, rows)) <= 80


def test_several_answers_at_a_time_on_the_built_in_model(bench, monkeypatch, tmp_path):
    monkeypatch.setattr("mlxmtp.decode.compile.Rounds.build", lambda *_: None)  # uncompiled, nothing is built
    (tmp_path / "own.jsonl").write_text('{"prompt": "Hi"}\n{"prompt": "What is a drafter?"}\n{"prompt": "Who?"}\n')
    arms = "--streams", "1,2", "--suite", "own.jsonl", "-n", "6", "-r", "1", "-w", "0", "--temp", "0"
    code, out, _ = bench(*arms, "-o", "here.json")
    assert code == 0
    assert "All 16 answers are the same" in out
    found = json.loads((tmp_path / "here.json").read_text())
    assert [(row["streams"], row["num_draft_tokens"]) for row in found["summary"]] == [
        (1, 0), (1, "auto"), (2, 0), (2, "auto")
    ]  # fmt: skip
    assert all(job["tokens"] == 4 * 6 for job in found["jobs"])
    assert [job["most"] for job in found["jobs"]] == [row["most"] for row in found["summary"]] == [1, 1, 2, 2]
    assert "(ran: " not in out
    monkeypatch.setattr("mlxmtp.engine.streams.Streams._fits", lambda *_, **__: False)  # no memory for a second one
    code, out, _ = bench(*arms, "--num-draft-tokens", "0")
    assert (code, "| 2 (ran: 1) |" in out) == (0, True), out
    assert found["summary"][0]["gain"] == found["summary"][0]["draft_gain"] == 1
    assert found["complete"]
    assert found["different"] == 0


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--streams", "0"], "--streams must be a whole number from 1 to 64"),
        (["--streams", "two"], "--streams must be numbers of answers"),
        (["--streams", ""], "--streams must be numbers of answers"),
        (["--streams", "2", "--format", "csv"], "give --format md or json"),
        (["--streams", "2", "--plot", "a.svg"], "leave out --plot"),
    ],
)
def test_streams_that_will_not_do(bench, flags, told):
    code, out, err = bench(*flags)
    assert (code, out) == (2, "")
    assert told in err


def test_streams_are_measured_whole_and_refuse_more_drafts_than_exact_text_has(bench, monkeypatch, tmp_path):
    monkeypatch.setattr("mlxmtp.decode.compile.Rounds.build", lambda *_: None)  # uncompiled, nothing is built
    (tmp_path / "own.jsonl").write_text('{"prompt": "Hi"}\n')
    arms = "--streams", "1", "--suite", "own.jsonl", "-n", "6", "-r", "1", "-w", "0", "--temp", "0"
    code, out, err = bench(*arms, "--exact", "on", "--num-draft-tokens", "0,8")
    assert (code, out) == (2, "")
    assert "at most 4 drafts a round, not 8" in err
    config = tmp_path / "home" / "config.toml"
    config.parent.mkdir(exist_ok=True)
    config.write_text('stop = [" ", "e", "a"]\nthink_tokens = 1\ndraft_from = "copy"\nnum_draft_tokens = 8\n')
    code, out, err = bench(*arms, "--format", "json", "--num-draft-tokens", "0")
    assert code == 0, err
    assert [job["tokens"] for job in json.loads(out)["jobs"]] == [2 * 6]
