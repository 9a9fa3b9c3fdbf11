"""What Tab offers, without a line editor."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlxmtp.cli.repl.completion import Sources, complete

SOURCES = Sources(lambda: ["pocket", "e2b"], lambda: ["plans", "3f9a0c11"], ("temp", "top-p", "top-k"))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").touch()
    (tmp_path / ".hidden").touch()
    (tmp_path / "my dir").mkdir()
    (tmp_path / "my dir" / "in side.md").touch()
    (tmp_path / "q'uote.txt").touch()
    (tmp_path / 'dq"x.txt').touch()
    (tmp_path / "b\\ck.txt").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("text", "length", "words"),
    [
        ("/re", 3, ["/redo", "/regen", "/retry"]),
        ("/s", 2, ["/save", "/schema", "/sessions", "/set", "/stats", "/system"]),
        ("/model ", 0, ["pocket", "e2b"]),
        ("/model p", 1, ["pocket"]),
        ("/load 3", 1, ["3f9a0c11"]),
        ("/set to", 2, ["top-p", "top-k"]),
        ("/think s", 1, ["show"]),
        ("/draft a", 1, ["auto"]),
        ("/help exp", 3, ["export"]),
        ("/file n", 1, ["notes.txt"]),
        ("/file .h", 2, [".hidden"]),
        ("/file notes.txt m", 1, ['"my dir/']),
        ('/file "my dir/', 8, ['"my dir/in side.md"']),
        ("/file q", 1, ['"q\'uote.txt"']),
        ("/file d", 1, ['"dq\\"x.txt"']),
        ("/file b", 1, ['"b\\\\ck.txt"']),
        ("what is @q", 1, ["q'uote.txt"]),
        ("/export no", 2, ["notes.txt"]),
        ("/system @no", 2, ["notes.txt"]),
        ("what is @no", 2, ["notes.txt"]),
        ('what is @"my dir/in', 10, ['"my dir/in side.md"']),
        ('see "@no', 2, ["notes.txt"]),
        ("[@no", 2, ["notes.txt"]),
        ("me@no", 0, []),
        ('"me"@no', 0, []),
        ("/undo ", 0, []),
        ("/set temp 0", 0, []),
        ("text", 0, []),
    ],
)
def test_offers(text: str, length: int, words: list[str]) -> None:
    found = complete(text, SOURCES)
    assert found[1] == words
    assert not words or found[0] == length


def test_a_path_at_the_start(folder: Path) -> None:
    assert complete(f"{folder}/no", SOURCES) == (len(f"{folder}/no"), [f"{folder}/notes.txt"])


def test_a_folder_that_cannot_be_read() -> None:
    assert complete("@nothing/here/", SOURCES) == (len("nothing/here/"), [])
