"""Copying, with a stand-in for the Mac's program."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from mlxmtp.cli.terminal import clipboard
from mlxmtp.cli.terminal.output import Look, Output, copy_to_clipboard
from mlxmtp.errors import UsageError


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """At this machine and outside tmux, whose buffer is somebody's."""
    for name in ("TMUX", "STY", "SSH_CONNECTION"):
        monkeypatch.delenv(name, raising=False)


def test_the_macs_own_program_is_first(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[list[str], Any]] = []
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr(subprocess, "run", lambda command, **options: calls.append((command, options["input"])))
    sent = StringIO()
    assert copy_to_clipboard("中\n", Output(sent, None)) == "Copied 2 characters."
    # That program reads bytes as the locale says, and without one (cron, some editors) as Mac Roman.
    assert calls == [(["/usr/bin/env", "LC_CTYPE=UTF-8", "/usr/bin/pbcopy"], "中\n")]
    assert sent.getvalue() == ""


def test_over_ssh_the_clipboard_is_that_of_the_person(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_CONNECTION", "10.0.0.1 50000 10.0.0.2 22")
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr(subprocess, "run", pytest.fail)
    sent = StringIO()
    assert copy_to_clipboard("a", Output(sent, None)) == "Copied 1 character, if this terminal allows it."
    assert sent.getvalue() == f"\x1b]52;c;{base64.b64encode(b'a').decode()}\x07"


def test_the_terminal_is_asked_where_that_program_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError

    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr(subprocess, "run", fails)
    sent = StringIO()
    assert copy_to_clipboard("a", Output(sent, None)) == "Copied 1 character, if this terminal allows it."
    assert sent.getvalue() == f"\x1b]52;c;{base64.b64encode(b'a').decode()}\x07"


def test_too_much_for_a_terminal_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    sent = StringIO()
    assert "too many for the terminal's clipboard" in copy_to_clipboard("x" * 80_000, Output(sent, None))
    assert sent.getvalue() == ""


def test_a_terminal_without_escape_codes_has_no_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    sent = StringIO()
    assert "no way to the clipboard" in copy_to_clipboard("a", Output(sent, None, Look(dumb=True)))
    assert sent.getvalue() == ""


def test_tmux_is_given_the_text_and_nothing_more_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[list[str], Any]] = []
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("TMUX", "/tmp/tmux-0/default,1,0")
    monkeypatch.setattr(subprocess, "run", lambda command, **options: calls.append((command, options["input"])))
    sent = StringIO()
    assert copy_to_clipboard("a", Output(sent, None)).startswith("Copied 1 character to tmux: paste with prefix ],")
    assert calls == [(["tmux", "load-buffer", "-w", "-"], "a")]
    assert sent.getvalue() == ""


PNG = b"\x89PNG\r\n\x1a\n" + bytes(60)


def test_a_copied_picture_comes_from_whatever_the_desktop_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(clipboard, "which", lambda _: None)
    with pytest.raises(UsageError, match=r"install wl-clipboard \(Wayland\) or xclip \(X11\)"):
        clipboard.copied_picture()
    monkeypatch.setattr(clipboard, "which", lambda name: name == "xclip" or None)
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, b""))
    with pytest.raises(UsageError, match="There is no image in the clipboard"):
        clipboard.copied_picture()
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(
        command, 0, PNG if command[-1] == "image/png" and command[0] == "xclip" else b"some words"))  # fmt: skip
    assert clipboard.copied_picture() == PNG
    monkeypatch.setattr(clipboard, "which", lambda name: name == "wl-paste" or None)
    address = b"file:///home/me/a%20b.png\r\nfile:///home/me/c.png\r\n"
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(
        command, 0, address if command[-1] == "text/uri-list" else PNG))  # fmt: skip
    assert clipboard.copied_picture() == "/home/me/a b.png", "the file, not the icon beside it"
    monkeypatch.setenv("SSH_CONNECTION", "x")
    monkeypatch.setattr(clipboard, "which", lambda _: None)
    with pytest.raises(UsageError, match="on the machine where you sit"):
        clipboard.copied_picture()


def test_a_mac_hands_pictures_over_as_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr(clipboard, "which", lambda _: None)
    said = {"furl": b"", "PNGf": "«data PNGf".encode() + PNG.hex().upper().encode() + "»\n".encode()}

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        out = next(out for kind, out in said.items() if kind in command[-1])
        return subprocess.CompletedProcess(command, 0 if out else 1, out)

    monkeypatch.setattr(subprocess, "run", run)
    assert clipboard.copied_picture() == PNG
    said["furl"] = b"/Users/me/Desktop/a b.png\n"
    assert clipboard.copied_picture() == "/Users/me/Desktop/a b.png"
    said |= {"furl": b"", "PNGf": b""}
    with pytest.raises(UsageError, match="There is no image in the clipboard"):
        clipboard.copied_picture()


STAND_INS = {
    "wl-paste": """
types = OFFERED
asked = args[args.index("--type") + 1]
if not types:
    fail("Nothing is copied")
if asked not in types:
    fail("Clipboard content is not available as requested type \\"" + asked + "\\"")
sys.stdout.buffer.write(types[asked])
""",
    "xclip": """
types = OFFERED
assert args[:3] == ["-selection", "clipboard", "-o"], args
asked = args[args.index("-t") + 1]
if asked not in types:
    fail("Error: target " + asked + " not available")
sys.stdout.buffer.write(types[asked])
""",
}
"""As the programs behave: an exit code and a sentence on stderr for a type that the owner does not offer."""


def put_program(folder: Path, name: str, offered: dict[str, bytes]) -> None:
    fail = "def fail(said):\n    print(said, file=sys.stderr)\n    sys.exit(1)\n"
    body = f"import sys\nargs = sys.argv[1:]\n{fail}{STAND_INS[name].replace('OFFERED', repr(offered))}"
    program = folder / name
    program.write_text(f"#!{sys.executable}\n{body}")
    program.chmod(0o755)


@pytest.mark.parametrize("name", STAND_INS)
def test_programs_that_refuse_what_nobody_offers_are_asked_on(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("PATH", str(tmp_path))
    put_program(tmp_path, name, {"TARGETS": b"image/png", "image/png": PNG})
    assert clipboard.copied_picture() == PNG
    put_program(tmp_path, name, {"text/plain": b"words"})
    with pytest.raises(UsageError, match="There is no image in the clipboard"):
        clipboard.copied_picture()
    put_program(tmp_path, name, {"text/uri-list": b"# two\r\nfile:///a%20b.png\r\nfile:///c.png\r\n", "image/png": PNG})
    assert clipboard.copied_picture() == "/a b.png"
    if name == "wl-paste":  # on X11 it has no display to ask, and the other one does
        program = f"#!{sys.executable}\nimport sys\nsys.exit('Failed to connect to a Wayland server')\n"
        (tmp_path / name).write_text(program)
        put_program(tmp_path, "xclip", {"image/png": PNG})
        assert clipboard.copied_picture() == PNG


def test_a_program_that_never_answers_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(clipboard, "_SECONDS", 0.1)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin:/usr/bin")
    program = tmp_path / "xclip"
    program.write_text("#!/bin/sh\nexec sleep 30\n")
    program.chmod(0o755)
    monkeypatch.setattr(clipboard, "which", lambda one: one == "xclip" or None)
    with pytest.raises(UsageError, match="clipboard"):
        clipboard.copied_picture()
