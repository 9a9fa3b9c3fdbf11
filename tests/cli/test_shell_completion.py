"""Tab in real shells: models, aliases and sessions are offered, also with a config file that is wrong."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

from mlxmtp.cli.app import main
from mlxmtp.cli.commands.connect import client_names
from mlxmtp.cli.options import model_names, removable_names, session_ids
from tests.cli.conftest import ROOT, Program
from tests.test_scripts import NEWER_THAN_BASH_3_2

SHELLS = {
    "bash": ("--norc", 'eval "$(_MLXMTP_COMPLETE=source_bash mlxmtp)"'),
    "zsh": ("-f", 'autoload -Uz compinit; compinit -u; eval "$(_MLXMTP_COMPLETE=source_zsh mlxmtp)"'),
    "fish": ("--no-config", "_MLXMTP_COMPLETE=source_fish mlxmtp | source"),
}  # the flag for a shell without its owner's settings, and the line that people put into those
READY, CTRL_U = "re''ady", "\x15"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    program = tmp_path / "bin" / "mlxmtp"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m mlxmtp "$@"\n')
    program.chmod(0o755)
    (tmp_path / "config.toml").write_text('[aliases]\npondering = "12b:qat"\n')
    (tmp_path / "a folder").mkdir()
    return tmp_path


@pytest.fixture
def shell(request: pytest.FixtureRequest, home: Path) -> Iterator[pexpect.spawn[str]]:
    """A shell at a terminal, at its prompt, that completes for mlxmtp."""
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    flag, line = SHELLS[request.param]
    own = {"HOME": str(home), "MLXMTP_HOME": str(home), "PYTHONPATH": str(ROOT), "TERM": "xterm", "LANG": "C.UTF-8"}
    child = pexpect.spawn(
        request.param, [flag, "-i"], env={"PATH": f"{home / 'bin'}:{os.environ['PATH']}", **own},
        cwd=str(home), dimensions=(24, 100), encoding="utf-8", timeout=240,
    )  # fmt: skip
    child.send(f"{line}; echo {READY}\r")
    child.expect_exact(READY.replace("'", "") + "\r")
    yield child
    child.close(force=True)


@pytest.mark.parametrize("shell", SHELLS, indirect=True)
def test_tab_knows_models_aliases_and_folders(shell: pexpect.spawn[str], home: Path) -> None:
    shell.send("mlxmtp show po\t\t")
    shell.expect(r"pocket +pondering")
    shell.send(f"{CTRL_U}mlxmtp ask -m pon\t")
    shell.expect_exact("pondering")
    shell.send(f"{CTRL_U}mlxmtp show e2b:q\t")
    shell.expect_exact("e2b:qat")
    shell.send(f"{CTRL_U}mlxmtp convert ./b\t")
    shell.expect_exact("./bin/")
    (home / "config.toml").write_text("temp =\n")
    shell.send(f"{CTRL_U}mlxmtp show poc\t")
    shell.expect_exact("pocket")
    assert "Traceback" not in str(shell.before)


@pytest.mark.parametrize(
    ("platform", "words", "replacement"),
    [
        ("linux", ["e2b", ":", "q"], "qat"),
        ("linux", ["e2b:q"], "e2b:qat"),  # somebody has taken the colon out of COMP_WORDBREAKS
        ("darwin", ["e2b:q"], "qat"),
        ("darwin", ["e2b", ":", "q"], "qat"),
        ("darwin", ["/models:old/x"], ""),
    ],
)
def test_what_bash_replaces_of_a_word_with_a_colon(
    platform: str,
    words: list[str],
    replacement: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setenv("_MLXMTP_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "\n".join(["mlxmtp", "show", *words]))
    monkeypatch.setenv("COMP_CWORD", str(1 + len(words)))
    main([])
    assert capsys.readouterr().out.strip() == replacement


def test_the_script_for_bash_needs_no_newer_one_than_macos_has(program: Program) -> None:
    program.env = {"_MLXMTP_COMPLETE": "source_bash"}
    script = program.run().stdout.decode()
    assert "complete -o default -F" in script
    assert "compopt" not in script
    assert not NEWER_THAN_BASH_3_2.search(script)


def test_names_are_offered_where_they_mean_something(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLXMTP_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert "e2b:qat" in model_names("")
    assert model_names(f"{tmp_path}/nowhere/") == []
    assert removable_names("") == []
    assert client_names("co") == ["codex", "continue"]


def test_what_is_offered_to_zsh_holds_nothing_that_it_runs(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """zsh reads what is offered once more: titles come from questions, and folders from anywhere."""
    titles = {"aaaa1111": ("why \\$(touch x) fails", "$(touch x)"), "bbbb2222": ("`touch x` \\`\"'", None)}
    for number, (title, name) in titles.items():
        lines: list[dict[str, Any]] = [
            {"type": "session", "format": 2, "id": number, "created": "2026-01-01T00:00:00Z", "mlxmtp": "1"},
            {"type": "message", "role": "user", "parts": [{"type": "text", "text": title}]},
        ]
        lines += [{"type": "name", "name": name}] if name else []
        file = home / "sessions" / f"{number}.jsonl"
        file.parent.mkdir(exist_ok=True)
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setenv("MLXMTP_HOME", str(home))
    monkeypatch.setenv("_MLXMTP_COMPLETE", "complete_zsh")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", "mlxmtp chat -r ")
    main([])
    offered = capsys.readouterr().out
    assert "touch x" in offered
    assert not {*offered} & {"$", "`", "\\"}
    assert [word for word, _ in session_ids("")] in (["aaaa1111", "bbbb2222"], ["bbbb2222", "aaaa1111"])
    assert [word for word, _ in session_ids("aaaa")] == ["aaaa1111"]


@pytest.mark.parametrize("name", ["$(touch x)", "`touch x`", "a\\b", 'a"b', "a'b"])
def test_a_folder_whose_name_a_shell_runs_is_not_offered(
    home: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / name).mkdir()
    monkeypatch.setenv("MLXMTP_HOME", str(home))
    monkeypatch.setenv("HF_HOME", str(home))
    for model in (name, "mine"):
        shutil.copytree(ROOT / "assets" / "pocket" / "target", home / "models" / model)
    assert removable_names("") == ["mine"]
    monkeypatch.chdir(home)
    assert sorted(model_names("./")) == ["./a folder/", "./bin/", "./models/"]


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["what is MTP?"], 'To ask something: mlxmtp ask "what is MTP?"'),
        (["ask", "- one item"], "mlxmtp ask -- "),
        (["ask", "--find me"], "mlxmtp ask -- "),
        (["config", "set"], "mlxmtp config edit"),
        (["help"], "mlxmtp -h"),
    ],
)
def test_what_was_meant_is_named(program: Program, arguments: list[str], hint: str) -> None:
    program.names_model = False
    done = program.run(*arguments)
    assert done.returncode == 2
    assert hint in done.stderr.decode().splitlines()[-1]


@pytest.mark.parametrize("broken", ["temp =\n", "temp = -1\n", 'aliases = "x"\n', None])
def test_commands_that_help_work_with_a_broken_config(program: Program, broken: str | None) -> None:
    program.env = {"HF_HUB_OFFLINE": "1"}
    file = program.home / "config.toml"
    if broken is None:
        file.symlink_to(program.home / "nowhere.toml")
    else:
        file.write_text(broken)
    for command, code in (("config", 0), ("sessions", 0), ("doctor", 1), ("ls", 2)):
        done = program.run(command)
        assert done.returncode == code, (command, done.stderr)
        assert str(file) in done.stderr.decode()


def test_a_byte_order_mark_is_no_mistake(program: Program) -> None:
    (program.home / "config.toml").write_bytes(b"\xef\xbb\xbftemp = 0.5\n")
    assert b"temp = 0.5" in program.run("config").stdout
