from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlxmtp.chat import attach, material
from mlxmtp.chat.attach import Attached, join_message, read_reference
from mlxmtp.errors import ContextOverflow, UsageError
from mlxmtp.media import source
from mlxmtp.media.pdf import Page


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    yield read, write
    for end in (read, write):
        try:
            os.close(end)
        except OSError:
            continue


def piped(pipe: tuple[int, int], data: bytes) -> int:
    os.write(pipe[1], data)
    os.close(pipe[1])
    return pipe[0]


def test_material_comes_first_and_the_prompt_last(tmp_path: Path, pipe: tuple[int, int]) -> None:
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_text("first\n")
    two.write_text("\nsecond\n\n")
    message = join_message([str(one), str(two)], ["Compare", "them."], piped(pipe, b"from the pipe\n")).message
    assert message == f"--- {one} ---\nfirst\n\n--- {two} ---\nsecond\n\nfrom the pipe\n\nCompare them."


def test_a_dash_puts_stdin_among_the_files(tmp_path: Path, pipe: tuple[int, int]) -> None:
    one = tmp_path / "one.txt"
    one.write_text("first")
    message = join_message(["-", str(one)], ["Why?"], piped(pipe, b"piped")).message
    assert message == f"--- stdin ---\npiped\n\n--- {one} ---\nfirst\n\nWhy?"


@pytest.mark.parametrize("data", [b"", b"\n\n", b"  \n"])
def test_empty_stdin_is_ignored(pipe: tuple[int, int], data: bytes) -> None:
    assert join_message([], ["Why?"], piped(pipe, data)) == Attached("Why?")
    assert join_message([], ["Why?"], None) == Attached("Why?")


def test_invalid_utf8_is_replaced_with_a_note(tmp_path: Path, pipe: tuple[int, int]) -> None:
    latin = tmp_path / "latin.txt"
    latin.write_bytes(b"caf\xe9")
    attached = join_message([str(latin)], ["caf\udce9"], piped(pipe, b"\xff"))
    assert attached.message == f"--- {latin} ---\ncaf\ufffd\n\n\ufffd\n\ncaf\ufffd"
    assert {note.split(" is not valid UTF-8")[0] for note in attached.notes} == {str(latin), "stdin", "the prompt"}


def test_a_file_without_a_word_in_it_is_given_with_a_note(tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    attached = join_message([str(empty)], ["Why?"], None)
    assert attached.message == f"--- {empty} ---\n\n\nWhy?"
    assert attached.notes == (f"{empty} is empty.",)


def test_nul_bytes_are_refused(tmp_path: Path, pipe: tuple[int, int]) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(b"ab\0cd")
    with pytest.raises(UsageError, match="binary holds NUL bytes"):
        join_message([str(binary)], [], None)
    with pytest.raises(UsageError, match="stdin holds NUL bytes"):
        join_message([], [], piped(pipe, b"\0"))


def test_byte_order_marks_and_windows_line_ends_are_no_text(tmp_path: Path) -> None:
    file = tmp_path / "windows.txt"
    file.write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert join_message([str(file)], [], None).message == f"--- {file} ---\none\ntwo"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for name, why in [(str(tmp_path / "none"), "There is no file"), (str(tmp_path), "holds no text files")]:
        with pytest.raises(UsageError, match=why):
            join_message([name], [], None)


def test_stdin_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="twice"):
        join_message(["-", "-"], [], 0)


@pytest.mark.parametrize("name", ["/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"])
def test_standard_input_has_more_than_one_name(pipe: tuple[int, int], name: str) -> None:
    attached = join_message([name], ["Why?"], piped(pipe, b"once\n"))
    assert attached.message == "--- stdin ---\nonce\n\nWhy?"
    with pytest.raises(UsageError, match="twice"):
        join_message(["-", name], [], None)


def test_more_than_any_context_holds_is_refused(monkeypatch: pytest.MonkeyPatch, pipe: tuple[int, int]) -> None:
    monkeypatch.setattr(material, "LIMIT", 10)
    with pytest.raises(ContextOverflow, match="stdin is longer than 10 bytes"):
        join_message([], [], piped(pipe, b"x" * 11))


@pytest.mark.parametrize("head", [b"fLaC", b"RIFF\0\0\0\0WAVE", b"%PDF-1.7\n"])
def test_media_and_pdfs_may_be_as_large_as_in_a_file(
    monkeypatch: pytest.MonkeyPatch, pipe: tuple[int, int], head: bytes
) -> None:
    monkeypatch.setattr(material, "LIMIT", 10)
    monkeypatch.setattr(material, "read_pages", lambda data, name: [Page(1, data.decode())])
    data = head + b"x" * 180
    attached = join_message([], ["What?"], piped(pipe, data))
    assert data.decode() in attached.material or [one.data for one in attached.media] == [data]


def test_a_pdf_that_is_too_large_is_not_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(material, "MEDIA_LIMIT", 2**20)
    (tmp_path / "large.pdf").write_bytes(b"%PDF-1.7" + bytes(2**20))
    with pytest.raises(UsageError, match=r"large\.pdf has more than 1 MB: give a smaller file"):
        material.gather(str(tmp_path / "large.pdf"))


def test_a_medium_that_is_too_large_is_not_read_to_its_end(
    monkeypatch: pytest.MonkeyPatch, pipe: tuple[int, int]
) -> None:
    monkeypatch.setattr(attach, "MEDIA_LIMIT", 1 << 20)
    monkeypatch.setattr(source, "LIMIT", 1 << 20)
    with Path("/dev/zero").open("rb") as endless:
        read = os.read

        def begun(fd: int, size: int) -> bytes:
            return b"fLaC" + read(endless.fileno(), size)

        monkeypatch.setattr(os, "read", begun)
        with pytest.raises(UsageError, match="stdin has more than 1 MB"):
            join_message([], ["What?"], pipe[0])


@pytest.mark.parametrize(("files", "prompt"), [([], []), (["-"], ["Why?"]), ([], ["Why?"])])
def test_a_pipe_is_waited_for_and_a_person_hears_of_it(
    monkeypatch: pytest.MonkeyPatch, pipe: tuple[int, int], files: list[str], prompt: list[str]
) -> None:
    monkeypatch.setattr(attach, "PATIENCE", 0.01)
    waiting = threading.Event()
    later = threading.Thread(target=lambda: waiting.wait(20) and piped(pipe, b"late"))
    later.start()
    attached = join_message(files, prompt, pipe[0], on_wait=waiting.set)
    later.join()
    assert "late" in attached.message
    assert attached.notes == ()


def test_the_lines_of_a_loop_are_named_as_what_they_are(tmp_path: Path, pipe: tuple[int, int]) -> None:
    lines = tmp_path / "lines"
    lines.write_text("one\ntwo\n")
    with lines.open("rb") as file:
        assert join_message([], ["Why?"], file.fileno()).notes == ()
        file.seek(4)
        attached = join_message([], ["one"], file.fileno())
        assert attached.message == "two\n\none"
        assert "--no-stdin" in attached.notes[0]
        file.seek(0, os.SEEK_END)
        assert join_message([], ["two"], file.fileno()).notes == ()
    assert join_message([], ["Why?"], piped(pipe, b"x"), attended=True).notes == ()


def test_a_pipe_that_has_begun_is_read_to_its_end(monkeypatch: pytest.MonkeyPatch, pipe: tuple[int, int]) -> None:
    monkeypatch.setattr(attach, "PATIENCE", 0.01)
    os.write(pipe[1], b"early ")
    timer = threading.Timer(0.2, lambda: piped(pipe, b"late"))
    timer.start()
    assert join_message([], ["Why?"], pipe[0]).message == "early late\n\nWhy?"
    timer.join()


def test_a_descriptor_that_cannot_be_read_is_no_input(pipe: tuple[int, int]) -> None:
    assert join_message([], [], pipe[1]).message == ""


def test_a_system_prompt_can_be_a_file(tmp_path: Path) -> None:
    file = tmp_path / "system.txt"
    file.write_text("Be brief.\n")
    assert read_reference(f"@{file}", {}) == "Be brief."
    assert read_reference("Be @ease.", {}) == "Be @ease."
    with pytest.raises(UsageError, match="There is no file"):
        read_reference(f"@{file}.old", {})


def test_a_system_prompt_may_be_a_file_or_a_named_prompt(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rules.txt").write_text("Be brief.")
    prompts = {"review": "Name bugs first.", "rules.txt": "never this one"}
    assert read_reference("plain", prompts) == "plain"
    assert read_reference("@rules.txt", prompts) == "Be brief."
    assert read_reference("@review", prompts) == "Name bugs first."
    with pytest.raises(UsageError):
        read_reference("@nothing", prompts)


def test_a_pipe_that_does_not_block_is_read_to_its_end(pipe: tuple[int, int]) -> None:
    os.set_blocking(pipe[0], False)
    os.write(pipe[1], b"first ")

    def go_on() -> None:
        os.write(pipe[1], b"second")
        os.close(pipe[1])

    later = threading.Timer(0.2, go_on)
    later.start()
    assert join_message([], ["Go"], pipe[0]).message == "first second\n\nGo"
    later.join()


def test_input_that_breaks_off_with_an_error_is_refused(monkeypatch: pytest.MonkeyPatch, pipe: tuple[int, int]) -> None:
    def broken(_file: int, _size: int) -> bytes:
        raise OSError(5, "Input/output error")

    os.write(pipe[1], b"some")
    monkeypatch.setattr("mlxmtp.chat.attach.os.read", broken)
    with pytest.raises(UsageError, match="Standard input cannot be read: Input/output error"):
        join_message([], ["Go"], pipe[0])
