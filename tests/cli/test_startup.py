"""What starting costs, by what is imported: seconds are not asserted, modules are."""

from __future__ import annotations

import subprocess
import sys

import pytest

import mlxmtp
from tests.cli.conftest import Program

HEAVY = {
    "mlx",
    "mlx_lm",
    "transformers",
    "tokenizers",
    "jinja2",
    "huggingface_hub",
    "prompt_toolkit",
    "rich",
    "markdown_it",
    "pygments",
    "pydantic",
}
HEAVY_FOR_A_PIPE = {"mlx_lm", "transformers", "huggingface_hub", "prompt_toolkit", "markdown_it", "pygments", "torch"}


def imported_by(program: Program, *args: str) -> set[str]:
    code = "import sys; from mlxmtp.cli.app import main; main(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code, *args],
        env=program.environment(),
        cwd=program.home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout
    return {name.partition(".")[0] for name in done.stderr.split()}


def test_help_imports_nothing_heavy(program: Program) -> None:
    assert not imported_by(program, "--help") & HEAVY


def test_a_dry_run_imports_only_the_text_side(program: Program) -> None:
    modules = imported_by(program, "ask", "-m", str(program.model), "Hi", "--dry-run")
    assert {"tokenizers", "jinja2"} <= modules
    assert not modules & (HEAVY_FOR_A_PIPE | {"mlx"})


def test_the_conversation_greets_before_anything_is_imported() -> None:
    """Not even what reads the flags: that takes longer than the first line may."""
    code = """
import io, sys
class Terminal(io.StringIO):
    def isatty(self): return True
real, sys.stdin, sys.stdout = sys.stdout, Terminal(), Terminal()
from mlxmtp.cli import app
app._run = lambda arguments: real.write(sys.stdout.getvalue() + " ".join(sys.modules)) and 0
app.main(sys.argv[1:])
"""

    def told(*args: str) -> list[str]:
        command = [sys.executable, "-c", code, *args]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")

    greeting, modules = told("chat", "-m", "e2b")
    assert greeting == "mlxmtp chat: /help, Ctrl+D to leave"
    assert not {name.partition(".")[0] for name in modules.split()} & (HEAVY | {"typer"})
    assert all(len(told(*args)) == 1 for args in (["chat", "--help"], ["ask", "chat"], ["--version", "chat"], []))


def test_exports_are_sorted_and_there() -> None:
    assert mlxmtp.__all__ == sorted(mlxmtp.__all__)
    for name in mlxmtp.__all__:
        assert getattr(mlxmtp, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = mlxmtp.nothing


def test_the_version_is_shown(program: Program) -> None:
    assert program.run("--version").stdout.decode() == f"mlxmtp {mlxmtp.__version__}\n"
