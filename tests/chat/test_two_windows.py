"""One window takes a session away while another opens it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from mlxmtp.chat.sessions import Sessions
from tests.chat.test_sessions import history_of, saved


def test_a_session_that_is_opened_while_it_is_removed_is_gone_on_with_in_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions = Sessions(tmp_path)
    summary, unlink, opened = saved(sessions), Path.unlink, []

    def at_once(path: Path, missing_ok: bool = False) -> None:
        if path == summary.path:
            opened.append(sessions.open(summary))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", at_once)
    sessions.remove(summary)
    (resumed,) = opened
    resumed.conversation.ask("And?")
    (copy,) = sessions.folder.iterdir()
    assert [one.question for one in history_of(copy).exchanges] == ["Why?", "And?"]


def test_what_is_locked_is_open_for_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS locks nothing else."""
    modes = []

    def lock(file: int) -> bool:
        modes.append(fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE)
        return True

    monkeypatch.setattr("mlxmtp.chat.journal.try_lock", lock)
    sessions = Sessions(tmp_path)
    summary = saved(sessions)
    modes.clear()
    sessions.remove(summary)
    assert modes == [os.O_RDWR]
