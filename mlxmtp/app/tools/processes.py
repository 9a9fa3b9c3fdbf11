"""Processes of tool servers: the end of what they wrote for people, and their end."""

import os
import signal
import time
from collections.abc import Collection

from mlxmtp.app.tools.toolbox import cleaned

_TAIL = 8_000  # bytes


class Tail:
    """The end of what a server wrote for people."""

    def __init__(self) -> None:
        self._bytes = b""

    def add(self, data: bytes) -> None:
        self._bytes = (self._bytes + data)[-_TAIL:]

    @property
    def text(self) -> str:
        return cleaned(self._bytes.decode("utf-8", "replace")).strip()


class Groups:
    """Process groups of servers. They can be ended from any thread, also by a signal's handler."""

    def __init__(self) -> None:
        self._there: set[int] = set()

    def add(self, group: int) -> None:
        self._there.add(group)

    def end(self, patience: float, groups: Collection[int] | None = None) -> None:
        """Ask all processes of the groups, or of all, to end; kill those that are there `patience` seconds later."""
        left = {*(self._there if groups is None else groups)}
        self._there -= left
        left = {one for one in left if _signalled(one, signal.SIGTERM)}
        deadline = time.monotonic() + patience
        while left and time.monotonic() < deadline:
            time.sleep(0.01)
            left = {one for one in left if _signalled(one, 0)}
        for one in left:
            _signalled(one, signal.SIGKILL)


def _signalled(group: int, number: int) -> bool:
    """Send a signal to a group; return whether there is one."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # the latter on a Mac, for a group of the dead
        return False
    return True
