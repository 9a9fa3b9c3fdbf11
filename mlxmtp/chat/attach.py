"""One message from files, standard input and a prompt: material first, the instruction last."""

from __future__ import annotations

import errno
import os
import select
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlxmtp.chat.material import begins_media, check_size, decoded, gather, of_bytes, read_text, titled
from mlxmtp.chat.message import join
from mlxmtp.errors import UsageError
from mlxmtp.media.source import HEAD, MediaFile
from mlxmtp.media.source import LIMIT as MEDIA_LIMIT

PATIENCE = 2.0
"""Seconds without a byte from a pipe after which a person hears what is waited for."""

STDIN = frozenset({"-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"})  # opened by path, a file would be read twice


@dataclass(frozen=True, slots=True)
class Attached:
    """The question, the material that stands before it, and remarks for the user, one sentence each.

    `media` are pictures and sounds, which stand before all text.
    """

    question: str
    material: str = ""
    notes: tuple[str, ...] = ()
    media: tuple[MediaFile, ...] = ()

    @property
    def message(self) -> str:
        return join([self.material, self.question])


def join_message(
    files: Sequence[str],
    prompt: Sequence[str],
    stdin: int | None,
    *,
    on_wait: Callable[[], None] | None = None,
    attended: bool = False,
) -> Attached:
    """Return files, then stdin, then the prompt, with blank lines between; each file under a line `--- path ---`.

    `stdin` is a file descriptor, None where there is no input (a closed one, or a terminal that nobody named). It is
    read to its end however long that takes: a pipe is a promise. `on_wait` is called where it takes longer than
    PATIENCE; with `attended` a person reads the notes. Empty input is ignored.
    Raises UsageError for what cannot be read as text, ContextOverflow for more than any model reads.
    """
    named = [name for name in files if name in STDIN]
    if len(named) > 1:
        given = " ".join(f"-f {name}" for name in named)
        raise UsageError(f"Standard input is given twice ({given}), and it can be read only once: name it once.")
    parts: list[str] = []
    notes: list[str] = []
    media: list[MediaFile] = []

    def piped() -> str:
        data = _read_all(stdin, on_wait)
        if (found := of_bytes(data, "stdin")) is not None:
            media.extend(found.media)
            notes.extend(found.notes)
            return found.text
        return decode(data, "stdin")

    def decode(data: bytes, name: str) -> str:
        text, remarks = decoded(data, name)
        notes.extend(remarks)
        return text

    for name in files:
        if name not in STDIN:
            material = gather(name)
            parts.append(material.text)
            notes += material.notes
            media += material.media
        elif text := piped():
            parts.append(titled("stdin", text))
    # Surrogates are bytes of the command line that were no text.
    question = decode(" ".join(prompt).encode("utf-8", "surrogateescape"), "the prompt")
    if not named and stdin is not None:
        shared = _is_shared(stdin, attended=attended)
        if text := piped():
            parts.append(text)
            if shared and (question or files):
                notes.append(
                    "What calls this command reads the same standard input, of which all that was left has become part "
                    "of this question: in a loop, add --no-stdin."
                )
    return Attached(question, join(parts), tuple(notes), tuple(media))


def read_reference(text: str, prompts: Mapping[str, str]) -> str:
    """Return the text of the file that `@name` names, else that one of `prompts`; other text as it is (UsageError)."""
    if not text.startswith("@"):
        return text
    name = text[1:]
    return prompts[name] if name in prompts and not Path(name).exists() else read_text(name)


def _is_shared(stdin: int, *, attended: bool) -> bool:
    """Return whether `while read` or the like takes its lines from this input, as far as that can be told.

    A file that is not at its beginning surely; a pipe that is also the calling shell's perhaps, or a script passes its
    input on: that is worth a note only where a person reads it.
    """
    try:
        mine = os.fstat(stdin)
        if stat.S_ISREG(mine.st_mode):
            return os.lseek(stdin, 0, os.SEEK_CUR) > 0
        return attended and os.path.samestat(mine, Path(f"/proc/{os.getppid()}/fd/0").stat())
    except OSError:  # closed, or a system without /proc
        return False


def _read_all(stdin: int | None, on_wait: Callable[[], None] | None) -> bytes:
    if stdin is None:
        return b""
    data = bytearray()
    while True:
        try:
            if on_wait is not None and not select.select([stdin], [], [], PATIENCE)[0]:
                on_wait()
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
        if not begins_media(bytes(data[:HEAD])):
            check_size(len(data), "stdin")
        elif len(data) > MEDIA_LIMIT:
            return bytes(data)  # refused by those who tell what it is
