"""One message from files, standard input and a prompt: material first, the instruction last."""

from __future__ import annotations

import os
import select
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mlxmtp.errors import ContextOverflow, UsageError

PATIENCE = 5.0
"""Seconds to wait for the first byte of a pipe that nobody asked for by name."""

LIMIT = 64 * 1024 * 1024
"""Bytes of material: several times what the longest context of any supported model can hold."""

_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class Attached:
    """The joined message and remarks for the user, one sentence each."""

    message: str
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class _Gathered:
    parts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def join_message(files: Sequence[str], prompt: Sequence[str], stdin: int | None) -> Attached:
    """`"\\n\\n".join([files..., stdin, prompt])`, each file under a line `--- path ---`.

    `stdin` is a file descriptor, None where there is no input (a closed one, or a terminal that nobody named).
    `-` among the files is standard input, read to its end however long that takes. Otherwise, with a prompt or a file
    beside it, a pipe on which nothing arrives for PATIENCE seconds is left alone, with a note: schedulers and
    editors hand down pipes that never close. Empty input is ignored.
    Raises UsageError for what cannot be read as text, ContextOverflow beyond LIMIT bytes.
    """
    if list(files).count("-") > 1:
        raise UsageError("'-f -' is given twice, and standard input can be read only once.")
    gathered = _Gathered()
    for name in files:
        source = "stdin" if name == "-" else name
        data = _read_all(stdin, source) if name == "-" else _read_file(name)
        text = _decoded(data, source, gathered)
        if text or name != "-":
            gathered.parts.append(f"--- {source} ---\n{text}")
    words = " ".join(prompt).encode("utf-8", "surrogateescape")  # bytes of the command line that were no text
    question = _decoded(words, "the prompt", gathered)
    if "-" not in files and stdin is not None:
        _add_stdin(stdin, gathered, may_wait=not (question or files))
    if question:
        gathered.parts.append(question)
    return Attached("\n\n".join(gathered.parts), tuple(gathered.notes))


def read_reference(text: str) -> str:
    """`@file` stands for the file's text; anything else for itself. Raises UsageError."""
    if not text.startswith("@"):
        return text
    gathered = _Gathered()
    return _decoded(_read_file(text[1:]), text[1:], gathered)


def _add_stdin(stdin: int, gathered: _Gathered, *, may_wait: bool) -> None:
    if not may_wait and not _something_arrives(stdin):
        gathered.notes.append(
            f"Nothing arrived on standard input within {PATIENCE:.0f} s, so the answer does without it "
            "(-f - waits for it, </dev/null skips the wait)."
        )
        return
    text = _decoded(_read_all(stdin, "stdin"), "stdin", gathered)
    if text:
        gathered.parts.append(text)


def _something_arrives(stdin: int) -> bool:
    """Whether input or its end comes within PATIENCE; only pipes and sockets can keep one waiting."""
    try:
        mode = os.fstat(stdin).st_mode
    except OSError:  # closed: reading it will say so
        return True
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        return True
    ready, _, _ = select.select([stdin], [], [], PATIENCE)
    return bool(ready)


def _read_all(stdin: int | None, name: str) -> bytes:
    if stdin is None:
        return b""
    data = bytearray()
    while True:
        try:
            chunk = os.read(stdin, _CHUNK)
        except IsADirectoryError as error:
            raise UsageError("Standard input is a folder: give a file or a pipe.") from error
        except OSError:  # closed, or open for writing only: there is no input
            return bytes(data)
        if not chunk:
            return bytes(data)
        data += chunk
        _check_size(len(data), name)


def _read_file(name: str) -> bytes:
    path = Path(name).expanduser()
    try:
        with path.open("rb") as file:
            data = file.read(LIMIT + 1)
    except FileNotFoundError as error:
        raise UsageError(f"There is no file {name}.") from error
    except IsADirectoryError as error:
        raise UsageError(f"{name} is a folder: -f takes a text file, and can be given several times.") from error
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {error.strerror or error}.") from error
    _check_size(len(data), name)
    return data


def _check_size(size: int, name: str) -> None:
    if size > LIMIT:
        raise ContextOverflow(
            f"{name} is longer than {LIMIT:,} bytes, which no model's context holds: give a part of it."
        )


def _decoded(data: bytes, name: str, gathered: _Gathered) -> str:
    """Text without blank ends at its lines' borders; notes invalid UTF-8, refuses NUL bytes."""
    if b"\0" in data:
        raise UsageError(f"{name} holds NUL bytes, so it is not text: convert it first.")
    data = data.removeprefix(b"\xef\xbb\xbf")  # a byte order mark is no part of the text
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        text = data.decode("utf-8", "replace")
        gathered.notes.append(
            f"{name} is not valid UTF-8 (first at byte {error.start}): the invalid bytes are replaced."
        )
    text = text.replace("\r\n", "\n").strip("\n")
    return text if text.strip() else ""
