"""Files that are whole or absent, locked, and on the disk."""

import errno
import fcntl
import os
import shutil
from pathlib import Path

_NO_LOCKS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS)
"""Errors of file systems without locks (SMB, NFS, exFAT); macOS has two numbers where Linux has one."""


def is_path(name: str) -> bool:
    """Return True for the name of a model that can only be that of a folder."""
    return name.startswith((".", "/", "~"))


def expand_home(name: str | Path) -> Path:
    """Return a path with a home folder in place of `~`; that of a user whom nobody knows stays as it is written."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def exists(name: str | Path) -> bool:
    """Return True for the name of a file or folder that is there; a text too long for any name is none."""
    return os.path.exists(name)  # noqa: PTH110  (pathlib's raises for such a text up to Python 3.13)


def is_file(name: str | Path) -> bool:
    """Return True for the name of a file that is there; a text too long for any name is none."""
    return os.path.isfile(name)  # noqa: PTH113


def is_folder(name: str | Path) -> bool:
    """Return True for the name of a folder that is there; a text too long for any name is none."""
    return os.path.isdir(name)  # noqa: PTH112


def write_atomically(path: Path, content: str | bytes, *, parents: bool = False, private: bool = False) -> None:
    """Write a small file whole or not at all, `private` for its owner only; a pipe or terminal is just written to.

    A file that is replaced passes its permissions on, unless the new one is `private`. Raises OSError.
    """
    if parents:
        path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode("utf-8", "replace") if isinstance(content, str) else content
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    path = path.resolve()  # a link stays one
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    mode = None if private or not path.exists() else path.stat().st_mode & 0o777
    try:
        beside.touch(0o600 if private or mode is not None else 0o666)
        beside.write_bytes(data)
        if mode is not None:
            beside.chmod(mode)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def read_whole(path: Path, most: int = 64 * 2**20) -> bytes:
    """Return a file's bytes. Raises OSError, also for more than `most`: a device such as /dev/zero never ends."""
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    return data


def is_full(error: OSError) -> bool:
    """Return True for the error of a write that found no room: on the disk, in a quota, for so large a file."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def free_bytes(folder: Path) -> int:
    """Return the bytes that can still be written where `folder` is or will be."""
    return shutil.disk_usage(_existing(folder)).free


def disk_of(folder: Path) -> int:
    """Return the number of the file system where `folder` is or will be."""
    return _existing(folder).stat().st_dev


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that is there."""
    folder = folder.absolute()
    return next(there for there in (folder, *folder.parents) if there.exists())


def try_lock(file: int) -> bool:
    """Lock an open file until it is closed; return False if another process has it. Raises OSError."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        if error.errno not in _NO_LOCKS:  # without locks we work as well: better than not at all
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
