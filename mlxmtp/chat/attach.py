"""One message from files, standard input and a prompt: material first, the instruction last."""

from __future__ import annotations

import errno
import os
import select
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mlxmtp.chat.material import check_size, decoded, gather, read_text, titled
from mlxmtp.chat.message import join
from mlxmtp.errors import UsageError

PATIENCE = 5.0
"""Seconds to wait for the first byte of a pipe that nobody asked for by name."""

STDIN = frozenset({"-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"})  # opened by path, a file would be read twice


@dataclass(frozen=True, slots=True)
class Attached:
    """The question, the material that stands before it, and remarks for the user, one sentence each."""

    question: str
    material: str = ""
    notes: tuple[str, ...] = ()

    @property
    def message(self) -> str:
        return join([self.material, self.question])


def join_message(files: Sequence[str], prompt: Sequence[str], stdin: int | None) -> Attached:
    """Return files, then stdin, then the prompt, with blank lines between; each file under a line `--- path ---`.

    `stdin` is a file descriptor, None for no input. A name of STDIN among the files reads it to its end. Else,
    with a prompt or a file beside it, a pipe on which nothing arrives for PATIENCE seconds is left alone with a note:
    schedulers and editors hand down pipes that never close. Empty input is ignored.
    Raises UsageError for what cannot be read as text, ContextOverflow for more than any model reads.
    """
    named = [name for name in files if name in STDIN]
    if len(named) > 1:
        given = " ".join(f"-f {name}" for name in named)
        raise UsageError(f"Standard input is given twice ({given}), and it can be read only once: name it once.")
    parts: list[str] = []
    notes: list[str] = []

    def decode(data: bytes, name: str) -> str:
        text, remarks = decoded(data, name)
        notes.extend(remarks)
        return text

    for name in files:
        if name not in STDIN:
            material = gather(name)
            parts.append(material.text)
            notes += material.notes
        elif text := decode(_read_all(stdin), "stdin"):
            parts.append(titled("stdin", text))
    # Surrogates are bytes of the command line that were no text.
    question = decode(" ".join(prompt).encode("utf-8", "surrogateescape"), "the prompt")
    if not named and stdin is not None:
        if (question or files) and not _something_arrives(stdin):
            notes.append(
                f"Nothing arrived on standard input within {PATIENCE:.0f} s, so the answer does without it "
                "(-f - waits for it, </dev/null skips the wait)."
            )
        elif text := decode(_read_all(stdin), "stdin"):
            parts.append(text)
    return Attached(question, join(parts), tuple(notes))


def read_reference(text: str, prompts: Mapping[str, str]) -> str:
    """Return the text of the file that `@name` names, else that one of `prompts`; other text as it is (UsageError)."""
    if not text.startswith("@"):
        return text
    name = text[1:]
    return prompts[name] if name in prompts and not Path(name).exists() else read_text(name)


def _something_arrives(stdin: int) -> bool:
    """Wait for input or its end, at most PATIENCE; only pipes and sockets can keep one waiting."""
    with suppress(OSError):  # closed: reading it will say so
        mode = os.fstat(stdin).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
            return bool(select.select([stdin], [], [], PATIENCE)[0])
    return True


def _read_all(stdin: int | None) -> bytes:
    if stdin is None:
        return b""
    data = bytearray()
    while True:
        try:
            chunk = os.read(stdin, 1 << 16)
        except BlockingIOError:  # whoever made the pipe wants no waiting; the rest still comes
            select.select([stdin], [], [])
            continue
        except IsADirectoryError as error:
            raise UsageError("Standard input is a folder: give a file or a pipe.") from error
        except OSError as error:
            if error.errno == errno.EBADF:  # closed, or open for writing only: there is no input
                return b""
            raise UsageError(
                f"Standard input cannot be read: {error.strerror or error}. Put it into a file and give that with -f."
            ) from error
        if not chunk:
            return bytes(data)
        data += chunk
        check_size(len(data), "stdin")
