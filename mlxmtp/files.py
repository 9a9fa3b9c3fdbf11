"""Files that are whole or absent, locked, and on the disk."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from pathlib import Path

_NO_LOCKS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS)
"""Errors of file systems without locks (SMB, NFS, exFAT); macOS has two numbers where Linux has one."""


def write_atomically(path: Path, text: str, *, parents: bool = False, private: bool = False) -> None:
    """Write a small file whole or not at all: a full disk leaves what was there.

    What is no file (a pipe, a terminal) is written to. `parents`: make the folders above it. `private`: for its owner
    only. Raises OSError.
    """
    if parents:
        path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8", errors="replace")
        return
    path = path.resolve()  # a link stays one
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.touch(0o600 if private else 0o666)
        beside.write_text(text, encoding="utf-8", errors="replace")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def free_bytes(folder: Path) -> int:
    """Return the bytes that can still be written where `folder` is or will be."""
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    return shutil.disk_usage(there).free


def try_lock(file: int) -> bool:
    """Lock an open file for this process until it is closed; return False if another process has it.

    A file system without locks counts as locked: working without a lock is better than not at all. Raises OSError.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        if error.errno not in _NO_LOCKS:
            raise
    return True


def sync(path: Path) -> None:
    """Put a file, or the names in a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # folders on network volumes cannot be flushed
        if error.errno not in (errno.EINVAL, *_NO_LOCKS):
            raise
    finally:
        os.close(descriptor)
