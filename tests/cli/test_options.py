"""Options of commands from a table of settings, on a made-up table with every kind of value."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from mlxmtp.cli.app import main
from mlxmtp.cli.options import LoneResume, Resume, takes
from mlxmtp.cli.program import app as mlxmtp_app
from mlxmtp.errors import ConfigError, UsageError
from mlxmtp.limits import Range
from mlxmtp.settings import EVERY, SWITCH, TEXT, Rule, choice, number, resolve, setting


def texts(value: object) -> list[str] | None:
    return value if isinstance(value, list) and all(isinstance(one, str) for one in value) else None


def existing(value: object) -> Path | None:
    return Path(value) if isinstance(value, str) and Path(value).is_dir() else None


@dataclass(frozen=True)
class Made:
    stop: list[str] | None = setting(
        "--stop TEXT", Rule("a list of texts", list[str], texts), "End there.", "none", commands=("say",), section="end"
    )
    exact: str | None = setting(
        "--exact on|off|auto", choice("on", "off", "auto"), "Draft exactly.", "auto", commands=("say",)
    )
    folder: Path | None = setting(
        "-d --folder DIR", Rule("a folder", str, existing), "Tools.", "none", commands=("say",), environment="MADE_DIR"
    )
    limit: int | None = setting(
        "--limit N", number(Range(2, whole=True)), "At most.", "2", commands=("say",), section="end", environment="MADE"
    )
    loud: bool | None = setting("--loud/--soft", SWITCH, "Shout.", "off", commands=EVERY, environment="MADE_LOUD")
    title: str | None = setting("", TEXT, "", "none")


def program(said: list[Any]) -> typer.Typer:
    made = typer.Typer(rich_markup_mode=None)

    @made.callback()
    @takes("", "loud", Made)
    def frame(ctx: typer.Context) -> None:
        """Program."""

    @made.command()
    @takes("say", "folder ... end loud exact last", Made)
    def say(
        ctx: typer.Context,
        word: Annotated[str, typer.Argument()],
        last: Annotated[bool, typer.Option("--last")] = False,
        twice: Annotated[bool, typer.Option("--twice")] = False,
    ) -> None:
        """Say it."""
        said.append((word, last, twice, ctx.obj))

    return made


def test_a_command_gets_its_own_options_and_only_what_was_given() -> None:
    said: list[Any] = []
    for args in (["say", "hi"], "--loud say hi --last --stop a --stop b --exact on --limit 3".split()):
        assert CliRunner().invoke(program(said), args).exit_code == 0
    given = {"loud": True, "stop": ["a", "b"], "exact": "on", "limit": 3}
    assert said == [("hi", False, False, {}), ("hi", True, False, given)]
    assert CliRunner().invoke(program(said), ["--loud", "say", "hi", "--soft"]).exit_code == 0
    assert said[-1][-1] == {"loud": False}


def test_the_help_has_the_order_of_the_layout() -> None:
    text = CliRunner().invoke(program([]), ["say", "--help"]).output
    flags = [line.split("  ")[1] for line in text.partition("Options:\n")[2].splitlines() if line.startswith("  -")]
    assert flags == [
        "-d, --folder DIR",
        "--twice",
        "--stop TEXT",
        "--limit N",
        "--loud / --soft",
        "--exact on|off|auto",
        "--last",
        "--help",
    ]


def test_a_layout_that_forgets_a_setting_is_refused_at_once() -> None:
    for layout in ("...", "... end exact", "... end exact folder stop_words"):
        with pytest.raises((AssertionError, KeyError)):
            takes("say", layout, Made)(lambda ctx: None)


def test_every_kind_of_value_from_every_place(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    config = {"stop": ["a"], "exact": "auto", "limit": 5, "title": "T"}
    environ = {"MADE": "4", "MADE_DIR": str(tmp_path), "MADE_LOUD": "1"}
    values, origins = resolve(Made, {"exact": "off"}, environ, config, file)
    assert values == Made(["a"], "off", tmp_path, 4, True, "T")
    assert origins == {
        "stop": "config file",
        "exact": "flag",
        "limit": "environment",
        "title": "config file",
        "folder": "environment",
        "loud": "environment",
    }
    for bad, sentence in (
        ({"stop": "a"}, "stop in .* must be a list of texts, not 'a'"),
        ({"exact": "no"}, "exact in .* must be on, off or auto, not 'no'"),
        ({"limit": 1}, "limit in .* must be a whole number from 2 up, not 1"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            resolve(Made, {}, {}, bad, file)
    with pytest.raises(UsageError, match="--folder must be a folder, not 'nowhere'"):
        resolve(Made, {"folder": "nowhere"}, {}, {}, file)
    with pytest.raises(ConfigError, match="MADE must be a whole number from 2 up, not 'x'"):
        resolve(Made, {}, {"MADE": "x"}, {}, file)


def test_what_is_no_number_is_refused_in_the_words_of_the_table() -> None:
    said: list[Any] = []
    assert CliRunner().invoke(program(said), ["say", "hi", "--limit", "8x"]).exit_code == 0
    with pytest.raises(UsageError, match="--limit must be a whole number from 2 up, not '8x'"):
        resolve(Made, said[-1][-1], {}, {}, "config.toml")


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("bench -n x", "--max-tokens must be a whole number from 2 up, not 'x'."),
        ("bench -n 1", "--max-tokens must be a whole number from 2 up, not 1."),
        ("bench -r 1.5", "--repetitions must be a whole number from 1 up, not 1.5."),
        ("bench -w -1", "--warmup must be a whole number from 0 up, not -1."),
        ("bench --cooldown nan", "--cooldown must be a number from 0 up, not nan."),
        ("convert e2b --q-bits x", "--q-bits must be 4, 5, 6, 8 or 16, not 'x'."),
        ("convert e2b --q-group-size 1", "--q-group-size must be 32, 64 or 128, not 1."),
        ("convert e2b --draft-bits 5", "--draft-bits must be 4, 8 or 16, not 5."),
        ("sessions export a --format xml", "--format must be md or json, not 'xml'."),
        ("bench -o -", "-o - names no file: without -o the report goes to standard output."),
        ("mcp add -e A=secret -e FOO notes npx", "--env KEY=VALUE is wanted, not 'FOO'."),
    ],
)
def test_a_commands_own_options_are_refused_in_the_same_words(
    command: str,
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLXMTP_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == 2
    assert capsys.readouterr() == ("", f"Error: {sentence}\n")


@pytest.mark.parametrize(
    ("args", "resume", "other"),
    [
        ([], None, False),
        (["-r"], "", False),
        (["-r", "3f"], "3f", False),
        (["--resume", "--other"], "", True),
        (["--other", "-r"], "", True),
        (["--resume=3f"], "3f", False),
    ],
)
def test_an_id_may_be_missing_after_resume(args: list[str], resume: str | None, other: bool) -> None:
    made = typer.Typer()
    said: list[tuple[str | None, bool]] = []

    @made.command(cls=LoneResume)
    def chat(resume: Resume = None, other: bool = False) -> None:
        said.append((resume, other))

    assert CliRunner().invoke(made, args).exit_code == 0
    assert said == [(resume, other)]


def test_only_chat_may_leave_the_id_out() -> None:
    found = {command.name for command in mlxmtp_app.registered_commands if command.cls is LoneResume}
    assert found == {"chat"}


def test_no_command_is_a_function_of_many_parameters() -> None:
    for command in mlxmtp_app.registered_commands:
        assert command.callback is not None
        assert len(inspect.unwrap(command.callback).__annotations__) <= 15, command.name  # with the return value
