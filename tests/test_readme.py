"""README.md and the pages it leads to keep to the truth where a machine can check it: files, commands, the example."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README, USAGE, ARCHITECTURE = (
    (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/usage.md", "docs/architecture.md")
)


def block(page: str, after: str) -> str:
    """The first fenced block below a heading."""
    return page.split(f"\n{after}\n", 1)[1].split("```", 2)[1].partition("\n")[2]


def listed() -> set[str]:
    """The files of the tree: a line is a folder (ends in a slash) or a file inside the folder above it."""
    found, folder = set(), ""
    for line in block(ARCHITECTURE, "## Files").splitlines():
        name = line.split()[0]
        if name.endswith("/"):
            folder = name
        else:
            found.add(f"{folder}{name}" if line.startswith("  ") else name)
    return found


FOLDERS = {line.split()[0] for line in block(ARCHITECTURE, "## Files").splitlines() if line.split()[0].endswith("/")}


def test_the_tree_lists_every_folder_and_nothing_that_is_not_there() -> None:
    packages = {path.parent.relative_to(ROOT).as_posix() + "/" for path in (ROOT / "mlxmtp").rglob("__init__.py")}
    there = (packages - {"mlxmtp/"}) | {
        f"scripts/{path.name}/" for path in (ROOT / "scripts").iterdir() if (path / "__init__.py").is_file()
    }
    folders = {name for name in FOLDERS if name.startswith(("mlxmtp/", "scripts/"))}
    assert folders - {"scripts/", "mlxmtp/bench/suites/"} == there
    assert all((ROOT / name).exists() for name in {*listed(), *FOLDERS})


@cache
def help_of(command: str) -> str:
    asked = [sys.executable, "-m", "mlxmtp", command, "--help"]
    return subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def commands() -> list[list[str]]:
    """The words of every `mlxmtp COMMAND …` in the fenced blocks, up to a pipe, without comments."""
    fenced = [part for page in (README, USAGE) for part in page.split("```")[1::2]]
    found = [re.search(r"(?:^|\| |\$ )(mlxmtp [a-z]+(?= |$).*)", line) for part in fenced for line in part.splitlines()]
    split = [shlex.split(line[1], comments=True) for line in found if line]
    return [words[: words.index("|")] if "|" in words else words for words in split]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_flag_in_the_examples_exists(words: list[str]) -> None:
    flags = [word for word in words[2:] if re.fullmatch(r"--?[a-z][a-z-]*", word)]
    assert all(re.search(rf"(?<![\w-]){flag}(?![\w-])", help_of(words[1])) for flag in flags), flags


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for name, place in re.findall(r"\]\(([^)#:]*)(#[^)]*)?\)", path.read_text(encoding="utf-8")):
        target = (path.parent / name) if name else path
        assert target.exists(), name
        headings = re.findall(r"^#+ (.*)", target.read_text(encoding="utf-8"), re.MULTILINE) if place else []
        known = {"#" + re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
        assert not place or place in known, place


@pytest.mark.slow
def test_the_python_example_runs_as_it_stands() -> None:
    done = subprocess.run(
        [sys.executable, "-c", block(USAGE, "## In Python")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "tokens per pass" in done.stdout
    assert any(f"accepted {kept}" in done.stdout for kept in (1, 2, 3, 4))
