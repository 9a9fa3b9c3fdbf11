"""Which files of a folder a person means: those that git does not ignore; elsewhere, all but hidden ones and builds."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mlxmtp.errors import ContextOverflow, UsageError

FOLDER_LIMIT = 4 * 1024 * 1024
"""Bytes of text in one folder: about a million tokens, more than any supported model's context."""

MOST_FILES = 5000

_BUILDS = frozenset({"__pycache__", "build", "dist", "node_modules", "target", "venv"})


@dataclass(frozen=True, slots=True)
class Tree:
    """The regular files to read, sorted by path, and remarks. `because` says what made the choice."""

    root: Path
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()
    because: str = ""


def list_folder(root: Path, name: str) -> Tree:
    """Every file of `root` worth reading, at any depth. Symbolic links are left out: they may lead anywhere.

    Inside a repository the choice is git's: what is tracked, and what is new and not ignored. Without one,
    or without git, hidden files and folders that builds fill are left out, with a remark.
    Raises ContextOverflow for more than MOST_FILES, UsageError for a folder that cannot be read.
    """
    names = _listed_by_git(root)
    if names is not None:
        return Tree(root, _regular((root / one for one in names), name), because=" that git does not ignore")
    note = f"git lists no files of {name}, so hidden files and {', '.join(sorted(_BUILDS))} are left out."
    return Tree(root, _regular(_walk(root, name), name), (note,), because=" besides hidden ones and builds")


def _listed_by_git(root: Path) -> list[str] | None:
    """Paths below `root`; None where there is no repository or no git."""
    # A repository may name a program of its own for fsmonitor; listing files must not run it.
    command = ["git", "-C", str(root), "-c", "core.fsmonitor=false", "ls-files", "-z", "--cached", "--others"]
    try:
        done = subprocess.run(
            [*command, "--exclude-standard"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=False,
        )
    except OSError:
        return None
    if done.returncode != 0:
        return None
    return [os.fsdecode(one) for one in set(done.stdout.split(b"\0")) if one]  # a conflict is listed thrice


def _walk(root: Path, name: str) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        if error.filename == str(root):
            raise UsageError(f"{name} cannot be read: {error.strerror or error}.") from error

    for folder, folders, files in os.walk(root, onerror=refuse):
        folders[:] = sorted(one for one in folders if not one.startswith(".") and one not in _BUILDS)
        yield from (Path(folder, one) for one in files if not one.startswith("."))


def _regular(paths: Iterable[Path], name: str) -> tuple[Path, ...]:
    kept: list[Path] = []
    for path in paths:
        try:
            regular = stat.S_ISREG(path.lstat().st_mode)
        except OSError:  # tracked, but deleted
            continue
        if regular:
            kept.append(path)
        if len(kept) > MOST_FILES:
            raise ContextOverflow(f"{name} holds more than {MOST_FILES} files: name the folders or files you mean.")
    return tuple(sorted(kept))
