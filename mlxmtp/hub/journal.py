"""How far a conversion has come: one line for each step that is on disk, with a checksum of what it wrote.

A line is added after its bytes were written, nothing is flushed in between. That survives a killed process, whose
writes the system keeps, and also a power cut, after which a line may be there and its bytes are not: the next run reads
back what the lines promise and goes on from the first that does not hold.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
from itertools import takewhile
from pathlib import Path
from types import TracebackType

from mlxmtp.errors import ConversionError

_LINE = 9  # bytes: eight hexadecimal digits and a newline
_WHOLE = re.compile(rb"[0-9a-f]{8}\n")


class Journal:
    """The journal of one conversion, which no other process may open at the same time.

    ``fingerprint`` stands for everything that decides about the bytes written. A journal with another one is of another
    conversion: then ``checksums`` is empty and ``stale`` is set.
    """

    def __init__(self, path: Path, fingerprint: str) -> None:
        self._file = path.open("ab+", buffering=0)
        self._claim(path)
        self._file.seek(0)
        text = self._file.read()
        self._head = fingerprint.encode() + b"\n"
        self.stale = not self._head.startswith(text[: len(self._head)])
        if not text.startswith(self._head):
            self._file.truncate(0)
            self._file.write(self._head)
            text = self._head
        lines = (text[at : at + _LINE] for at in range(len(self._head), len(text), _LINE))
        # The last may be cut off, and after a power cut zeros may stand where nothing has been written.
        self.checksums = [int(line, 16) for line in takewhile(_WHOLE.fullmatch, lines)]
        self.keep(len(self.checksums))

    def add(self, checksum: int) -> None:
        """The next step is on disk."""
        self._file.write(b"%08x\n" % checksum)
        self.checksums.append(checksum)

    def keep(self, count: int) -> None:
        """Only the first `count` steps are."""
        del self.checksums[count:]
        self._file.truncate(len(self._head) + _LINE * count)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _claim(self, path: Path) -> None:
        """The lock goes when the process does, however it ends."""
        try:
            fcntl.flock(self._file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise ConversionError(
                f"Another process is converting into {path.parent}. Wait for it, or stop it."
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS):  # file systems without locks
                self._file.close()
                raise


def sync(path: Path) -> None:
    """Put a file, or the names in a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
