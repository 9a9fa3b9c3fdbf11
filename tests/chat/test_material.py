from __future__ import annotations

import errno
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mlxmtp.chat import material
from mlxmtp.chat.attach import join_message
from mlxmtp.chat.material import dropped_paths, gather, mentions, missed, read_text
from mlxmtp.errors import ContextOverflow, UsageError

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `project` in the current one, with text, binaries, hidden and built files; no repository."""
    files = {
        "a.txt": b"alpha\n",
        "src/b.py": b"beta = 1\n",
        "src/deep/c.md": b"\ngamma\n",
        "src/empty.py": b"",
        "picture.png": b"\x89PNG\r\n\x1a\n\0\0",
        ".hidden": b"secret",
        ".venv/lib.py": b"lib",
        "build/out.js": b"built",
        "node_modules/x/index.js": b"module",
    }
    for name, data in files.items():
        path = tmp_path / "project" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "project"


def git(where: Path, *arguments: str) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": str(where), "GIT_CONFIG_NOSYSTEM": "1"}
    subprocess.run(["git", *arguments], cwd=where, env=environment, check=True, capture_output=True)


IDENTITY = ("-c", "user.name=A", "-c", "user.email=a@example.org")


def titles(text: str) -> list[str]:
    return [line[4:-4] for line in text.splitlines() if line.startswith("--- ")]


def test_a_folder_without_git_leaves_out_hidden_files_and_builds_and_says_so(tree: Path) -> None:
    found = gather("project")
    assert found.text == (
        "--- project/a.txt ---\nalpha\n\n--- project/src/b.py ---\nbeta = 1\n\n--- project/src/deep/c.md ---\ngamma"
    )
    assert found.files == 3
    assert found.notes == (
        "git lists no files of project, so hidden files and __pycache__, build, dist, node_modules, target, venv "
        "are left out.",
        "1 file of project without text left out.",
    )


@pytest.mark.parametrize("tools", [False, True])
def test_on_a_mac_without_developer_tools_git_is_not_asked(tree: Path, tools: bool, monkeypatch: Any) -> None:
    """/usr/bin/git is a stub there, which opens a window that asks to install them."""
    programs, calls = tree.parent / "programs", tree.parent / "calls"
    programs.mkdir()
    for name, lines in {"xcode-select": f"exit {0 if tools else 2}", "git": f"echo >>{calls}; exit 1"}.items():
        (programs / name).write_text(f"#!/bin/sh\n{lines}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert tree / "a.txt" in material.list_folder(tree, "project").files
    assert calls.exists() == tools


def test_an_ignored_name_counts_in_both_forms_of_unicode(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Mac may store a name decomposed, and git prints it composed."""
    (tree / ".gitignore").write_text("x\n")
    (tree / "u\u0308ber.txt").write_text("private")
    printed = lambda _, *said: ["\u00fcber.txt"] if "--ignored" in said else None  # noqa: E731
    monkeypatch.setattr(material, "_git", printed)
    assert not [one for one in material.list_folder(tree, "t").files if "ber" in one.name]


@needs_git
def test_without_a_repository_what_a_gitignore_names_is_left_out_all_the_same(tree: Path) -> None:
    (tree / ".gitignore").write_text("*.md\n/a.txt\n")
    (tree / "src" / ".gitignore").write_text("b.py\n")
    (tree / "src" / "a.txt").write_text("another")
    git_inside = tree / "other"
    git_inside.mkdir()
    git(git_inside, "init", "-q")
    (git_inside / ".gitignore").write_text("x.txt\n")
    (git_inside / "y.txt").write_text("y")
    assert titles(gather("project").text) == ["project/other/y.txt", "project/src/a.txt"]
    assert not (tree / ".git").exists()


@needs_git
def test_in_a_repository_git_chooses(tree: Path) -> None:
    git(tree, "init", "-q")
    (tree / ".gitignore").write_text("build/\nnode_modules/\n.venv/\n*.md\n")
    git(tree, "add", ".hidden", "a.txt")
    (tree / "a.txt").unlink()  # tracked, but gone
    found = gather("project/")
    assert titles(found.text) == ["project/.gitignore", "project/.hidden", "project/src/b.py"]
    assert found.notes == ("1 file of project/ without text left out.",)
    assert titles(gather("project/src").text) == ["project/src/b.py"]


@needs_git
def test_a_folder_that_git_ignores_is_refused_with_the_way_out(tree: Path) -> None:
    git(tree, "init", "-q")
    (tree / ".gitignore").write_text("build/\n")
    with pytest.raises(UsageError, match="project/build holds no text files that git does not ignore: name the files"):
        gather("project/build")
    assert gather("project/build/out.js").text == "--- project/build/out.js ---\nbuilt"


@needs_git
@pytest.mark.parametrize("way", ["ssh", "ext", "upload"])
def test_a_file_that_a_repository_says_is_missing_is_not_fetched(tree: Path, way: str) -> None:
    """In a "partial clone" the settings name the program that fetches, and git wants .gitignore to list files."""
    (tree / ".gitignore").write_text("*.md\n")
    git(tree, "init", "-q")
    git(tree, "add", ".gitignore", "a.txt")
    git(tree, *IDENTITY, "commit", "-qm", "one")
    git(tree, "update-index", "--skip-worktree", ".gitignore")
    (tree / ".gitignore").unlink()  # git reads the committed one then
    for file in (tree / ".git" / "objects").glob("??/*"):
        shown = ["git", "cat-file", "-p", file.parent.name + file.name]
        if subprocess.run(shown, cwd=tree, capture_output=True, check=True).stdout == b"*.md\n":
            file.unlink()
    program = tree.parent / "program"
    program.write_text(f"#!/bin/sh\ntouch {tree.parent}/ran\nexit 1\n")
    program.chmod(0o700)
    url = {"ssh": "ssh://x/y", "ext": f"ext::{program}", "upload": str(tree)}[way]
    for key, value in {
        "core.repositoryFormatVersion": "1", "extensions.partialClone": "origin", "core.sshCommand": str(program),
        "protocol.ext.allow": "always", "remote.origin.url": url, "remote.origin.promisor": "true",
        "remote.origin.partialCloneFilter": "blob:none", "remote.origin.uploadPack": str(program),
    }.items():  # fmt: skip
        git(tree, "config", key, value)
    assert "project/src/b.py" in titles(gather("project").text)
    assert not (tree.parent / "ran").exists()


@needs_git
def test_listing_a_repository_runs_no_program_it_names(tree: Path) -> None:
    git(tree, "init", "-q")
    program = tree / "program"
    program.write_text(f"#!/bin/sh\ntouch {tree}/ran\n")
    program.chmod(0o700)
    git(tree, "config", "core.fsmonitor", str(program))
    gather("project")
    assert not (tree / "ran").exists()


@needs_git
def test_repositories_within_a_repository_are_left_out_with_a_remark(tree: Path) -> None:
    git(tree, "init", "-q")
    (tree / ".gitignore").write_text("build/\nnode_modules/\n.venv/\nignored/\n")
    for name in ("nested", "src/module", "ignored"):
        (tree / name).mkdir()
        (tree / name / "inner.txt").write_text("inner")
        git(tree / name, "init", "-q")
    git(tree / "src/module", "add", ".")
    git(tree / "src/module", *IDENTITY, "commit", "-qm", "one")
    (tree / "link").symlink_to(tree / "nested")  # one link among others, which nobody is told of
    git(tree, "add", "link", "src/module")  # as a submodule stands in the index
    found = gather("project")
    assert "inner" not in found.text
    assert "2 folders of project are repositories of their own and left out: nested, src/module." in found.notes
    assert gather("project/src").notes == ("1 folder of project/src is a repository of its own and left out: module.",)
    assert titles(gather("project/nested").text) == ["project/nested/inner.txt"]


@needs_git
@pytest.mark.parametrize("variable", ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"])
def test_a_hook_of_another_repository_changes_nothing(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for one in (tree, other):
        git(one, "init", "-q")
    (tree / ".gitignore").write_text("*\n!a.txt\n")
    git(tree, "add", "-f", "src/b.py")
    (other / "other.txt").write_text("other")
    git(other, "add", "other.txt")
    values = {"GIT_DIR": ".git", "GIT_WORK_TREE": "", "GIT_INDEX_FILE": ".git/index"}
    monkeypatch.setenv(variable, str(other / values[variable]))
    assert titles(gather("project").text) == ["project/a.txt", "project/src/b.py"]


def test_folders_that_cannot_be_read_are_left_out_with_a_remark(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refuse(path: Path | str) -> Any:
        if str(path).endswith(("src", "one", "two", "three")):  # modes do not keep the superuser out
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = gather("project")
    assert titles(found.text) == ["project/a.txt"]
    assert found.notes[1] == "1 folder of project cannot be read and is left out: src."
    for name in ("one", "two", "three"):
        (tree / name).mkdir()
    assert (
        "4 folders of project cannot be read and are left out: one, src, three and 1 more." in gather("project").notes
    )
    with pytest.raises(UsageError, match="project/src cannot be read: Permission denied"):
        gather("project/src")


@pytest.mark.parametrize("data", [b"The beginning of a longer text. " * 100, b"short", b""])
def test_a_pipe_is_read_once(data: bytes) -> None:
    end, start = os.pipe()
    os.write(start, data)
    os.close(start)
    assert gather(f"/dev/fd/{end}").text == f"--- /dev/fd/{end} ---\n{data.decode()}"
    os.close(end)


def test_links_in_a_folder_lead_nowhere(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "outside.txt").write_text("private")
    (tree / "link.txt").symlink_to(tmp_path / "outside.txt")
    (tree / "loop").symlink_to(tree)
    os.mkfifo(tree / "pipe")
    assert "private" not in gather("project").text
    assert gather("project/link.txt").text == "--- project/link.txt ---\nprivate"


@needs_git
def test_a_link_in_place_of_a_folder_that_git_tracks_leads_nowhere(tree: Path, tmp_path: Path) -> None:
    for folder in (tmp_path / "outside" / "deep", tree / "d" / "deep"):
        folder.mkdir(parents=True)
        (folder / "secret.txt").write_text("private")
    git(tree, "init", "-q")
    git(tree, "add", "a.txt", "d")
    shutil.rmtree(tree / "d")
    (tree / "d").symlink_to("../outside")
    (tmp_path / "here").symlink_to(tree)  # the folder that is named may be one
    for name in ("project", "here"):
        text = gather(name).text
        assert "alpha" in text
        assert "private" not in text


def test_too_much_is_refused_with_the_largest(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(material, "FOLDER_LIMIT", 14)
    with pytest.raises(ContextOverflow, match=r"project are more than 14 bytes together \(the largest: .*src/b\.py"):
        gather("project")
    monkeypatch.setattr(material, "MOST_FILES", 2)
    with pytest.raises(ContextOverflow, match="project holds more than 2 files: name"):
        gather("project")


def test_a_folder_without_text_is_refused(tree: Path) -> None:
    (tree / "bare").mkdir()
    with pytest.raises(UsageError, match="project/bare holds no text files besides hidden ones and builds"):
        gather("project/bare")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"\x7fELF\2\1\1\0\0", "x holds NUL bytes, so it is not text: convert it first."),
        (bytes(range(1, 32)) * 9, "x is not text, but something binary: convert it first."),
    ],
)
def test_binaries_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x").write_bytes(data)
    with pytest.raises(UsageError) as refused:
        gather("x")
    assert str(refused.value) == sentence


def test_odd_but_real_text_is_read(tmp_path: Path) -> None:
    file = tmp_path / "x"
    for data in (b"\x1b[31mred\x1b[0m\tand\x0cmore", "é漢🦀".encode(), b"caf\xe9" * 50):
        file.write_bytes(data)
        assert gather(str(file)).files == 1


def test_names_that_are_no_text(tree: Path) -> None:
    try:
        Path(os.fsdecode(b"project/caf\xe9.txt")).write_text("x")
    except OSError:
        pytest.skip("this file system takes only UTF-8")
    gather("project").text.encode()
    assert "project/caf\ufffd.txt" in titles(gather("project").text)


def test_an_empty_name_is_not_the_current_folder(tree: Path) -> None:
    for read in (gather, read_text):
        with pytest.raises(UsageError, match=r"The name of a file is empty: give a file or folder, \. for the current"):
            read("")
    with pytest.raises(UsageError, match="is empty"):
        join_message([""], ["Why?"], None)


def test_a_home_that_nobody_has(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no home folder"):
        gather("~no-such-user/x")
    assert mentions("mail @~no-such-user/x") == []


def test_a_file_whose_name_begins_like_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("~x.txt").write_text("x")
    assert gather("~x.txt").text == "--- ~x.txt ---\nx"
    assert mentions("Read @~x.txt") == ["~x.txt"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert gather("~/~x.txt").text == "--- ~/~x.txt ---\nx"


def test_names_that_the_system_refuses(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"x{300} cannot be read: File name too long\."):
        gather("x" * 300)
    stat, open_file = Path.stat, Path.open

    def refuse(path: Path, what: Any) -> Any:
        if "src" in path.parts:  # modes do not keep the superuser out
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return what

    monkeypatch.setattr(Path, "stat", lambda path, **more: refuse(path, None) or stat(path, **more))
    monkeypatch.setattr(Path, "open", lambda path, *more: refuse(path, None) or open_file(path, *more))
    with pytest.raises(UsageError, match=r"project/src/b\.py cannot be read: Permission denied\."):
        gather("project/src/b.py")


QUOTED = """ "@a.txt" '@a.txt' `@a.txt` “@a.txt” „@a.txt“ ‘@a.txt’ ‚@a.txt‘ »@a.txt« «@a.txt» ”@a.txt” (@a.txt) [@a.txt]
{@a.txt} <@a.txt> 「@a.txt」 ("@a.txt"). @a.txt… “@a.txt…” """.split()


@pytest.mark.parametrize(
    ("message", "named"),
    [
        ("Sum up @a.txt, please", ["a.txt"]),
        ("Compare @a.txt and @src/b.py.", ["a.txt", "src/b.py"]),
        ("(see @a.txt) @a.txt @'a.txt'?", ["a.txt"]),
        ('Read @"with blank.txt" and @src/', ["with blank.txt", "src/"]),
        ("@a.txt", ["a.txt"]),
        ("line\n@src/b.py\nline", ["src/b.py"]),
        ("me@a.txt and @nothing and @ and @decorator and @" + "x" * 5000, []),
        ("@odd. or @odd.?", ["odd."]),
        *[(f"See {one} and", ["a.txt"]) for one in QUOTED],
        *[(one, ["a.txt"]) for one in QUOTED],
        (
            "f(@a.txt), f[@src/b.py] and (\"@src/...\", “@'with blank.txt'”)",
            ["a.txt", "src/b.py", "src/", "with blank.txt"],
        ),
        ("""me@a.txt "me"@a.txt 'me'@a.txt "john doe"@a.txt “me”@a.txt <me@a.txt> [me@a.txt] it's@a.txt""", []),
        (r'.@a.txt "@." (@..) \@a.txt', []),
        ("The aliases `@/`, `@~`, @~/ @. @../.. and '@/' of @~/ are no files, ./ @./a.txt is", ["./a.txt"]),
    ],
)
def test_mentions_are_words_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: str, named: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "src/b.py", "with blank.txt", "odd."):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("x")
    assert mentions(message) == named


def test_folders_and_files_join_in_order(tree: Path) -> None:
    attached = join_message(["project/src", "project/a.txt"], ["Why?"], None)
    assert titles(attached.material) == ["project/src/b.py", "project/src/deep/c.md", "project/a.txt"]
    assert attached.question == "Why?"
    assert attached.message.endswith("--- project/a.txt ---\nalpha\n\nWhy?")


def test_a_mention_may_be_escaped_as_a_shell_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("my notes (1).txt", "a'b.md", "back\\slash.txt"):
        Path(name).write_text("x")
    assert mentions(r"@my\ notes\ \(1\).txt what is it, and @a\'b.md?") == ["my notes (1).txt", "a'b.md"]
    assert mentions(r"@back\slash.txt") == ["back\\slash.txt"]
    assert mentions(r"@my\ notes") == []


def test_a_name_that_looks_like_a_file_and_is_none_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("x")
    assert missed("@nots.txt, @notes.txt and @docs/a.md.") == ["nots.txt", "docs/a.md"]
    assert missed("ask @maria, mail a@b.txt, use @pytest.fixture and @scope/name") == []


FORMS = ["{}", "'{}'", '"{}"', "{escaped}", "file://{url}", " {escaped} \n", "file://localhost{url}", "'file://{url}'"]


@pytest.mark.parametrize("form", FORMS[:-1])
def test_a_file_dropped_on_the_window_is_a_path(tmp_path: Path, form: str) -> None:
    path = tmp_path / "my notes (1).txt"
    path.write_text("x")
    escaped = str(path).replace(" ", "\\ ").replace("(", "\\(").replace(")", "\\)")
    text = form.format(path, escaped=escaped, url=str(path).replace(" ", "%20"))
    assert dropped_paths(text) == [str(path)]
    assert dropped_paths(f"{text} and more") == []
    assert dropped_paths("/no/such/file.txt") == []
    assert dropped_paths("plain words") == dropped_paths("/") == []


def test_several_files_dropped_at_once_are_all_there(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a b.png", "it's.jpg", 'say "hi" (2).webp', "ünï.png")]
    for path in paths:
        path.write_text("x")
    wanted = list(map(str, paths))
    escaped = " ".join(re.sub(r"([^\w/.-])", r"\\\1", str(path)) for path in paths)
    addresses = [path.as_uri() for path in paths]
    for text in (escaped, " ".join(map(shlex.quote, wanted)), "\n".join(addresses), "\r\n".join(addresses)):
        assert dropped_paths(text) == wanted, text
    assert dropped_paths(f"{escaped} and some words") == []
    assert dropped_paths("\n".join(wanted[:1] * 2)) == [], "a list of paths is text"
    assert dropped_paths(f"'{wanted[0]}") == []


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-8-sig"])
def test_a_byte_order_mark_says_what_the_text_is(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "from windows.txt"
    mark = "" if encoding in ("utf-16", "utf-8-sig") else "\ufeff"
    file.write_bytes(f"{mark}Grüße, 中文\r\nzwei".encode(encoding))
    assert read_text(str(file)) == "Grüße, 中文\nzwei"
    assert gather(str(tmp_path)).text.endswith("Grüße, 中文\nzwei")


def test_the_largest_of_too_many_texts_are_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(material, "FOLDER_LIMIT", 50)
    (tmp_path / "z.bin").write_bytes(bytes(500))
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(name * 40)
    with pytest.raises(ContextOverflow, match=r"the largest: [abc]\.txt, [abc]\.txt, [abc]\.txt\)"):
        gather(str(tmp_path))
