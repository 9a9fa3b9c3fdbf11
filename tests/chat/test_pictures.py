"""Pictures in sessions: copies of their own, whatever becomes of the files that they are from."""

from __future__ import annotations

import errno
import io
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

import mlxmtp.chat.journal as journal_module
from mlxmtp.chat.conversation import Conversation
from mlxmtp.chat.journal import media_folder
from mlxmtp.chat.message import media_part
from mlxmtp.chat.sessions import Sessions
from mlxmtp.engine.media import media_in
from mlxmtp.errors import SessionError
from mlxmtp.media.source import media_file


def picture(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20), colour).save(buffer, "PNG")
    return buffer.getvalue()


def ask(conversation: Conversation, question: str, colour: str) -> None:
    file = media_file(picture(colour), f"{colour}.png")
    assert file is not None
    conversation.ask(question, media=[media_part(file)])
    conversation.part("Seen.")
    conversation.finish("stop")


def colours(conversation: Conversation) -> list[bytes]:
    return [one.data for one in media_in(conversation.messages())]


@pytest.fixture
def sessions(tmp_path: Path) -> Sessions:
    return Sessions(tmp_path)


@pytest.fixture
def first(sessions: Sessions) -> Conversation:
    conversation = Conversation(model="m", journal=sessions.create("m"))
    ask(conversation, "What colour?", "red")
    ask(conversation, "And this?", "blue")
    ask(conversation, "The first again?", "red")
    return conversation


def close(conversation: Conversation) -> None:
    assert conversation.journal is not None
    conversation.journal.close()


def test_a_picture_is_kept_once_and_comes_back(sessions: Sessions, first: Conversation) -> None:
    wanted = [picture("red"), picture("blue"), picture("red")]
    assert colours(first) == wanted
    close(first)
    summary = sessions.latest()
    assert len(list(media_folder(summary.path).iterdir())) == 2
    assert colours(sessions.read(summary).conversation) == wanted, "without a journal of its own, too"
    again = sessions.open(summary).conversation
    assert colours(again) == wanted
    ask(again, "One more?", "green")
    close(again)
    assert colours(sessions.open(sessions.latest()).conversation)[-1] == picture("green")


def test_a_fork_keeps_its_pictures_when_the_first_session_is_removed(sessions: Sessions, first: Conversation) -> None:
    summary = sessions.latest()
    forked = sessions.open(summary)  # the first one still has it open
    assert "goes on in a copy" in forked.remarks[0]
    ask(forked.conversation, "Mine?", "green")
    close(forked.conversation)
    close(first)
    assert sessions.remove(summary) > len(picture("red")) + len(picture("blue"))
    assert not media_folder(summary.path).exists()
    assert colours(forked.conversation)[0] == picture("red")
    again = sessions.open(sessions.latest()).conversation
    assert colours(again) == [picture(one) for one in ("red", "blue", "red", "green")]


def test_a_copy_that_is_gone_or_another_file_is_said(sessions: Sessions, first: Conversation) -> None:
    close(first)
    summary = sessions.latest()
    for file in media_folder(summary.path).iterdir():
        file.write_bytes(picture("black"))
    with pytest.raises(SessionError, match=r"red\.png is no longer with this conversation: /undo takes"):
        colours(sessions.read(summary).conversation)
    shutil.rmtree(media_folder(summary.path))
    with pytest.raises(SessionError, match=r"red\.png is no longer"):
        colours(sessions.read(summary).conversation)


def test_a_picture_that_finds_no_room_is_trouble_and_kept_once_there_is_some(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The question fits where its picture does not."""
    conversation = Conversation(journal=sessions.create())

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(journal_module, "write_atomically", refuse)
        ask(conversation, "What colour?", "red")
    said = "red.png cannot be kept beside this conversation: No space left on device"
    assert str(conversation.trouble).startswith(said)
    assert conversation.session is None
    ask(conversation, "And this?", "blue")
    assert conversation.trouble is None
    close(conversation)
    assert colours(sessions.open(sessions.latest()).conversation) == [picture("red"), picture("blue")]


def test_a_fork_in_which_nothing_is_said_leaves_nothing(sessions: Sessions, first: Conversation) -> None:
    before = sorted(sessions.folder.iterdir())
    forked = sessions.open(sessions.latest()).conversation
    assert len(colours(forked)) == 3
    forked.close()
    assert sorted(sessions.folder.iterdir()) == before


def test_a_first_question_with_a_picture_makes_folders_for_the_owner_only(tmp_path: Path) -> None:
    folder = tmp_path / "sessions"
    conversation = Conversation(journal=Sessions(folder).create())
    ask(conversation, "What colour?", "red")
    assert conversation.journal is not None
    made = folder, media_folder(conversation.journal.path)
    assert [one.stat().st_mode & 0o777 for one in made] == [0o700, 0o700]
