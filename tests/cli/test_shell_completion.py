"""Tab in real shells: models, aliases and sessions are offered, also with a config file that is wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from tests.cli.conftest import ROOT

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
        cwd=str(home), dimensions=(24, 100), encoding="utf-8", timeout=60,
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
    shell.send(f"{CTRL_U}mlxmtp rm poc\t")
    shell.expect_exact("pocket")
    assert "Traceback" not in str(shell.before)


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
