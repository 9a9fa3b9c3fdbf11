"""Tab in real shells: models, aliases and sessions are offered, also with a config file that is wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import ROOT

QUESTIONS = {
    "bash": (
        'eval "$(_MLXMTP_COMPLETE=source_bash mlxmtp)"; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); '
        '_mlxmtp_completion mlxmtp; printf "%s\\n" "${{COMPREPLY[@]}}"'
    ),
    "zsh": '_TYPER_COMPLETE_ARGS="{words}" _MLXMTP_COMPLETE=complete_zsh mlxmtp',
    "fish": "_MLXMTP_COMPLETE=source_fish mlxmtp | source; complete -C '{words}'",
}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    program = tmp_path / "bin" / "mlxmtp"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m mlxmtp "$@"\n')
    program.chmod(0o755)
    (tmp_path / "config.toml").write_text('[aliases]\npondering = "12b:qat"\n')
    (tmp_path / "a folder").mkdir()
    return tmp_path


def offered(shell: str, words: str, home: Path) -> str:
    own = {"HOME": str(home), "MLXMTP_HOME": str(home), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [shell, "-c", QUESTIONS[shell].format(words=words)],
        env={"PATH": f"{home / 'bin'}:{os.environ['PATH']}", **own},
        cwd=home, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.mark.parametrize("shell", QUESTIONS)
def test_tab_knows_models_and_aliases(shell: str, home: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    assert {"pocket", "pondering"} <= set(offered(shell, "mlxmtp show po", home).split())
    assert "e4b" in offered(shell, "mlxmtp ask -m e", home).split()
    (home / "config.toml").write_text("temp =\n")
    assert offered(shell, "mlxmtp rm poc", home).split() == ["pocket"]


def test_tab_knows_folders_where_a_path_is_begun(home: Path) -> None:
    assert offered("bash", "mlxmtp convert ./b", home).split() == ["./bin/"]


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["what is MTP?"], 'To ask something: mlxmtp ask "what is MTP?"'),
        (["ask", "- one item"], "mlxmtp ask -- "),
        (["ask", "--find me"], "mlxmtp ask -- "),
        (["config", "set"], "mlxmtp config edit"),
    ],
)
def test_what_was_meant_is_named(home: Path, arguments: list[str], hint: str) -> None:
    done = subprocess.run([home / "bin" / "mlxmtp", *arguments], env={"PYTHONPATH": str(ROOT), "HOME": str(home)},
                          capture_output=True, text=True, timeout=60, check=False)  # fmt: skip
    assert done.returncode == 2
    assert hint in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("broken", ["temp =\n", "temp = -1\n", 'aliases = "x"\n', None])
def test_commands_that_help_work_with_a_broken_config(home: Path, broken: str | None) -> None:
    file = home / "config.toml"
    file.unlink()
    if broken is None:
        file.symlink_to(home / "nowhere.toml")
    else:
        file.write_text(broken)
    environ = {"PYTHONPATH": str(ROOT), "HOME": str(home), "MLXMTP_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    for arguments, code in ((["config"], 0), (["sessions"], 0), (["doctor"], 1), (["ls"], 2)):
        done = subprocess.run([home / "bin" / "mlxmtp", *arguments], env={**environ, "PATH": os.environ["PATH"]},
                              capture_output=True, text=True, timeout=60, check=False)  # fmt: skip
        assert done.returncode == code, (arguments, done.stderr)
        assert str(file) in done.stderr


def test_a_byte_order_mark_is_no_mistake(home: Path) -> None:
    (home / "config.toml").write_bytes(b"\xef\xbb\xbftemp = 0.5\n")
    environ = {"PYTHONPATH": str(ROOT), "HOME": str(home), "MLXMTP_HOME": str(home)}
    done = subprocess.run([home / "bin" / "mlxmtp", "config"], env=environ, capture_output=True, text=True, check=True)
    assert "temp = 0.5" in done.stdout
