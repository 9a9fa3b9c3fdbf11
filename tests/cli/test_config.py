"""`mlxmtp config` in real processes."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path

import pytest

from tests.cli.conftest import LEAVES, UNTIL_LEFT, Program


def test_show_is_toml_that_says_who_set_what(program: Program) -> None:
    config = program.home / "config.toml"
    config.write_text('temp = 0.5\nmodel = "work"\n[aliases]\nwork = "12b:qat"\n[prompts]\n"a b" = "Say \\"no\\"."\n')
    program.env = {"NO_COLOR": "1", "MLXMTP_MODEL": "e2b"}
    text = program.run("config").stdout.decode()
    assert text == program.run("config", "show").stdout.decode()
    assert tomllib.loads(text) == {
        "temp": 0.5,
        "model": "e2b",
        "no_color": True,
        "aliases": {"work": "12b:qat"},
        "prompts": {"a b": 'Say "no".'},
    }
    assert "temp = 0.5  # config file\n" in text
    assert 'model = "e2b"  # environment\n' in text
    shown = json.loads(program.run("config", "show", "--json").stdout)
    assert shown == json.loads(program.run("config", "--json").stdout)
    assert shown["settings"] == {"temp": 0.5, "model": "e2b", "no_color": True}
    assert shown["from"] == {"temp": "config file", "model": "environment", "no_color": "environment"}
    assert shown["file"] == str(config)


def test_path_is_one_line_whether_or_not_the_file_exists(program: Program) -> None:
    assert program.run("config", "path").stdout.decode() == f"{program.home / 'config.toml'}\n"
    assert "not there yet" in program.run("config").stdout.decode()


def test_edit_makes_the_file_opens_the_editor_and_checks_the_result(program: Program) -> None:
    editor = program.home / "editor.py"
    editor.write_text("import sys\nopen(sys.argv[2], 'a').write(sys.argv[1])\n")

    def edit(line: str) -> tuple[int, str]:
        program.env = {"VISUAL": f"{sys.executable} {editor} '{line}'", "EDITOR": "not-this-one"}
        terminal = program.terminal("config", "edit", columns=100)
        return terminal.finish(), "\n".join(terminal.lines())

    assert edit('\ngreet = "Hi"\n') == (0, "")
    config = (program.home / "config.toml").read_text()
    assert tomllib.loads(config) == {"aliases": {}, "prompts": {"greet": "Hi"}}
    assert config.startswith("# Settings of mlxmtp")
    (program.home / "config.toml").write_text("")
    code, shown = edit("temp = -1\n")
    assert code == 2
    assert "must be a number from 0 up" in " ".join(shown.split())


@pytest.mark.parametrize(
    ("visual", "sentence"),
    [("no-such-editor", "is not installed"), ("false", "ended with code 1"), ("vi '", "lacks a quotation mark")],
)
def test_an_editor_that_fails_is_one_sentence(program: Program, visual: str, sentence: str) -> None:
    program.env = {"VISUAL": visual}
    terminal = program.terminal("config", "edit", columns=100)
    assert terminal.finish() == 1
    assert sentence in "\n".join(terminal.lines())


def test_edit_without_a_terminal_points_to_the_file(program: Program) -> None:
    done = program.run("config", "edit")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"mlxmtp config path" in done.stderr


def test_a_broken_file_is_named(program: Program) -> None:
    Path(program.home / "config.toml").write_text("temp = [")
    for command, code in (("config", 0), ("ls", 2)):
        done = program.run(command)
        assert done.returncode == code
        assert b"is not valid TOML" in done.stderr


def test_a_reader_of_the_path_that_leaves_ends_it_quietly(program: Program) -> None:
    done = program.shell(f"{{ {UNTIL_LEFT}; mlxmtp config path; echo $? >&2; }} | {LEAVES}")
    assert done.stderr == "141\n"
    closed = program.shell("mlxmtp config path >&-")
    assert (closed.returncode, "Standard output is closed" in closed.stderr) == (1, True)


def test_without_input_there_is_no_editor(program: Program) -> None:
    closed = program.shell("mlxmtp config edit <&-")
    assert (closed.returncode, "An editor needs a terminal" in closed.stderr) == (2, True)
