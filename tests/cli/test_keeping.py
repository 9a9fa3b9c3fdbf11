"""--keep-cache: the file beside a session is only ever replaced by keys and values of that session, whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from mlxmtp.app.open import Opener
from mlxmtp.app.prompt_cache import SessionCache
from mlxmtp.chat.conversation import Conversation
from mlxmtp.cli.repl.chat import ChosenModel
from mlxmtp.decode.snapshots import CacheState
from mlxmtp.engine import kv_file
from mlxmtp.engine.model import Model
from tests.cli.talking import Conversing


@pytest.fixture
def talk(tmp_path: Path) -> Conversing:
    """A conversation that has been opened again; nothing has been asked yet."""
    made = Conversing(tmp_path)
    made.talk.conversation.ask("Hi")
    made.talk.conversation.part("Hello.")
    made.talk.conversation.finish("stop")
    made.talk.model.cache = SessionCache(made.worker, made.sessions.folder)
    return made


def beside(talk: Conversing) -> Path:
    return talk.sessions.folder / f"{talk.talk.conversation.session}.kv.safetensors"


def test_a_conversation_that_was_only_looked_at_leaves_its_file_alone(
    talk: Conversing, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside(talk).write_bytes(b"a long text")
    monkeypatch.setattr(Model, "save_cache", lambda _, path: path.write_bytes(b""))
    talk.talk.leave()
    assert beside(talk).read_bytes() == b"a long text"


def test_another_session_does_not_get_what_this_one_left(talk: Conversing, monkeypatch: pytest.MonkeyPatch) -> None:
    first = talk.talk.conversation.session
    monkeypatch.setattr(Model, "save_cache", lambda _, path: path.write_bytes(b"new"))
    talk.say("And?", "/clear", "Who?", f"/load {first}", answers=["So.<turn|>", "You.<turn|>"])
    beside(talk).write_bytes(b"before")  # what the first one left
    talk.talk.leave()
    assert beside(talk).read_bytes() == b"before"
    talk.say("And?", answers=["So.<turn|>"])
    talk.talk.leave()
    assert beside(talk).read_bytes() == b"new"


def test_a_conversation_that_is_left_for_another_is_kept(talk: Conversing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Model, "save_cache", lambda _, path: path.write_bytes(path.stem.encode()))
    first = beside(talk)
    talk.say("And?", "/clear", "Who?", answers=["So.<turn|>", "You.<turn|>"])
    assert first.read_bytes() == first.stem.encode()
    second = beside(talk)
    assert not second.exists()
    talk.say(f"/load {first.name.partition('.')[0]}")
    assert second.read_bytes() == second.stem.encode()


def test_a_disk_that_is_full_is_a_sentence(talk: Conversing, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Model, path: Path) -> int:
        raise RuntimeError("[write] Unable to write 4096 bytes to file.")

    talk.say("And?", answers=["So.<turn|>"])
    monkeypatch.setattr(Model, "save_cache", full)
    talk.talk.leave()
    assert "Error: Keys and values were not kept: [write] Unable to write 4096 bytes" in talk.paper.getvalue()


def test_nothing_is_kept_of_a_servers_model(talk: Conversing, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise AttributeError("'ServedModel' object has no attribute '_decoder'")

    beside(talk).write_bytes(b"a long text")
    monkeypatch.setattr(Model, "save_cache", broken)
    monkeypatch.setattr(Model, "load_cache", broken)
    monkeypatch.setattr(Opener, "here", False)
    monkeypatch.setattr(ChosenModel, "load", lambda *_, **__: None)  # it is there
    assert talk.talk.model.target is not None
    talk.talk.load(talk.talk.model.target)
    assert "Note: --keep-cache keeps nothing while fake answers" in talk.paper.getvalue()
    first = beside(talk)
    shown = talk.say("And?", "/clear", answers=["So.<turn|>"])
    assert "\nSo.\n" in shown
    assert shown.endswith("A new conversation.\n")
    talk.talk.leave()
    assert first.read_bytes() == b"a long text"


def test_ctrl_c_while_a_conversation_is_kept_opens_no_other(talk: Conversing, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    other = talk.sessions.create()
    conversation = Conversation(journal=other)
    conversation.ask("Old?")
    conversation.close()
    with monkeypatch.context() as patch:
        patch.setattr(SessionCache, "save", interrupted)
        assert "Stopped." in talk.say("And?", f"/load {other.id}", answers=["So.<turn|>"])
    shown = talk.say(f"/load {other.id}")
    assert "Going on with: Old?" in shown
    assert talk.talk.conversation.session == other.id, "and not in a copy"


def test_ctrl_c_leaves_nothing_half_written(talk: Conversing, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: Any) -> int:
        kv_file.unfinished(beside(talk)).write_bytes(b"half")
        raise KeyboardInterrupt

    talk.say("And?", answers=["So.<turn|>"])
    monkeypatch.setattr(talk.worker, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        talk.talk.leave()
    assert [path.suffix for path in talk.sessions.folder.iterdir()] == [".jsonl"]


def test_what_a_killed_process_left_goes_after_an_hour(talk: Conversing, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = (talk.sessions.folder / f".{name}.kv.safetensors.1.safetensors" for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    talk.say("And?", answers=["So.<turn|>"])
    monkeypatch.setattr(Model, "save_cache", lambda _, path: path.write_bytes(b"new"))
    talk.talk.leave()
    assert (old.exists(), new.exists()) == (False, True)


def test_where_nothing_was_read_nothing_is_kept(talk: Conversing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(talk.decoder, "export_state", lambda _length: CacheState([], -1, []))
    talk.say("/context")  # the model has met the conversation, and read none of it
    before = talk.paper.getvalue()
    talk.talk.leave()
    assert talk.paper.getvalue().removeprefix(before).strip() == ""
    assert not beside(talk).exists()
