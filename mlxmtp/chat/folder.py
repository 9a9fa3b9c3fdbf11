"""Which files of a folder a person means: those that git does not ignore; elsewhere, all but hidden ones and builds."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from mlxmtp.errors import ContextOverflow, UsageError
from mlxmtp.settings import git_environ

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
    or without git, hidden files, folders that builds fill, and with git what a .gitignore names, are left out, with a
    remark.
    Folders that a person may miss are a remark: repositories within one, and what cannot be read.
    Raises ContextOverflow for more than MOST_FILES, UsageError for a folder that cannot be read.
    """
    names = _listed_by_git(root)
    if names is not None:
        inner = [one.rstrip("/") for one in names if _is_repository(root / one)]
        remarks = _left_out(inner, name, "is a repository of its own and", "are repositories of their own and")
        files = _regular((root / one for one in names), name)
        return Tree(root, files, remarks, because=" that git does not ignore")
    unread: list[str] = []
    found = _regular(_walk(root, name, unread), name)
    says_so = any((folder / ".gitignore").exists() for folder in {root, *(one.parent for one in found)})
    ignored = _ignored(root) if says_so else frozenset()
    files = tuple(one for one in found if one.relative_to(root).as_posix() not in ignored)
    note = f"git lists no files of {name}, so hidden files and {', '.join(sorted(_BUILDS))} are left out."
    remarks = (note, *_left_out(unread, name, "cannot be read and is", "cannot be read and are"))
    return Tree(root, files, remarks, because=" besides hidden ones and builds")


def _listed_by_git(root: Path) -> list[str] | None:
    """Paths below `root`; None where there is no repository or no git."""
    return _git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard")


def _ignored(root: Path) -> frozenset[str]:
    """Paths below a folder outside of every repository that a .gitignore in it names; none are known without git."""
    with TemporaryDirectory() as empty:
        repository = (f"--git-dir={empty}", f"--work-tree={root.absolute()}")
        _git(root, *repository, "init", "--quiet")
        return frozenset(_git(root, *repository, "ls-files", "-z", "--others", "--ignored", "--exclude-standard") or ())


def _git(root: Path, *arguments: str) -> list[str] | None:
    """The paths that git prints; None if it fails or is not there."""
    try:
        done = subprocess.run(
            # A repository may name a program of its own for fsmonitor; listing files must not run it.
            ["git", "-C", str(root), "-c", "core.fsmonitor=false", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=git_environ(),
            check=False,
        )
    except OSError:
        return None
    if done.returncode != 0:
        return None
    return [os.fsdecode(one) for one in set(done.stdout.split(b"\0")) if one]  # a conflict is listed thrice


def _is_repository(folder: Path) -> bool:
    """Whether git lists this one as a whole: a repository within the repository, or a submodule that is here."""
    try:
        return (folder / ".git").exists() and not folder.is_symlink()
    except OSError:  # no way in
        return False


def _left_out(folders: Sequence[str], name: str, one: str, several: str) -> tuple[str, ...]:
    if not folders:
        return ()
    first = ", ".join(sorted(folders)[:3]) + (f" and {len(folders) - 3} more" if len(folders) > 3 else "")
    what = f"1 folder of {name} {one}" if len(folders) == 1 else f"{len(folders)} folders of {name} {several}"
    return (f"{what} left out: {first}.",)


def _walk(root: Path, name: str, unread: list[str]) -> Iterator[Path]:
    """Every file worth reading; folders that cannot be read are put into `unread`."""

    def refuse(error: OSError) -> None:
        if error.filename == str(root):
            raise UsageError(f"{name} cannot be read: {error.strerror or error}.") from error
        unread.append(Path(error.filename).relative_to(root).as_posix())

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
