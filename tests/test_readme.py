"""README.md keeps to the truth where a machine can check it: its file tree, its Python example, its commands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(after: str) -> str:
    """The first fenced block below a heading."""
    return README.split(f"\n{after}\n", 1)[1].split("```", 2)[1].partition("\n")[2]


def listed() -> set[str]:
    """The files of the tree: a line is a folder (ends in a slash) or a file inside the folder above it."""
    found, folder = set(), ""
    for line in block("## Files").splitlines():
        name = line.split()[0]
        if name.endswith("/"):
            folder = name
        else:
            found.add(f"{folder}{name}" if line.startswith("  ") else name)
    return found


FOLDERS = {line.split()[0] for line in block("## Files").splitlines() if line.split()[0].endswith("/")}


def test_the_tree_lists_every_folder_and_nothing_that_is_not_there() -> None:
    packages = {path.parent.relative_to(ROOT).as_posix() + "/" for path in (ROOT / "mlxmtp").rglob("__init__.py")}
    there = (packages - {"mlxmtp/"}) | {
        f"scripts/{path.name}/" for path in (ROOT / "scripts").iterdir() if (path / "__init__.py").is_file()
    }
    folders = {name for name in FOLDERS if name.startswith(("mlxmtp/", "scripts/"))}
    assert folders - {"scripts/", "mlxmtp/bench/suites/"} == there
    assert all((ROOT / name).exists() for name in {*listed(), *FOLDERS})


def test_every_flag_in_the_examples_exists() -> None:
    asked = subprocess.run(
        [sys.executable, "-m", "mlxmtp", "ask", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    flags = set(re.findall(r"mlxmtp ask [^\n#]*", README))
    used = {flag for line in flags for flag in re.findall(r"(?<=\s)--?[a-z][a-z-]*", line.split("|")[0])}
    assert used
    assert all(re.search(rf"(?<![\w-]){flag}(?![\w-])", asked) for flag in used), used


@pytest.mark.slow
def test_the_python_example_runs_as_it_stands() -> None:
    done = subprocess.run(
        [sys.executable, "-c", block("## In Python")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "tokens per pass" in done.stdout
    assert any(f"accepted {kept}" in done.stdout for kept in (1, 2, 3, 4))
