from __future__ import annotations

import errno
import json
import os
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlxmtp.chat import journal as journal_module
from mlxmtp.chat.conversation import Conversation
from mlxmtp.chat.history import History, Reply
from mlxmtp.chat.journal import read_events
from mlxmtp.chat.message import ImagePart, Message, TextPart, ToolCall, ToolResult
from mlxmtp.chat.sessions import Sessions, Summary
from mlxmtp.errors import MlxmtpError, SessionError, SessionInUse, UsageError
from tests.chat.test_conversation import OPERATIONS, Events, answer, apply

ROOT = Path(__file__).parents[2]


@pytest.fixture
def sessions(tmp_path: Path) -> Sessions:
    return Sessions(tmp_path / "data" / "sessions")


def saved(sessions: Sessions, *turns: tuple[str, str], updated: float | None = None) -> Summary:
    """A session on disk that nobody has open."""
    conversation = Conversation(model="m", journal=sessions.create("m"))
    for question, said in turns or (("Why?", "So."),):
        conversation.ask(question)
        answer(conversation, Reply(said))
    conversation.close()
    path = sessions.folder / f"{conversation.session or ''}.jsonl"
    if updated is not None:
        os.utime(path, (updated, updated))
    return next(one for one in sessions.listing().sessions if one.id == conversation.session)


def history_of(path: Path) -> History:
    return Conversation.restore(read_events(path.read_bytes(), path)).history


# --- the file ---


def test_nothing_is_on_the_disk_before_the_first_question(sessions: Sessions) -> None:
    conversation = Conversation(model="m", system="Be brief.", journal=sessions.create("m"))
    conversation.rename("talk")
    conversation.use_model("n")
    assert (sessions.folder.exists(), conversation.session) == (False, None)
    conversation.ask("Why?")
    (path,) = sessions.folder.iterdir()
    assert conversation.session == path.stem
    assert history_of(path) == conversation.history


def test_every_event_is_on_the_disk_at_once_and_for_the_owner_only(sessions: Sessions) -> None:
    conversation = Conversation(journal=sessions.create(), clock=lambda: 0.0)
    conversation.ask("Why?")
    (path,) = sessions.folder.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(sessions.folder.stat().st_mode) == 0o700
    for text in ("S", "o" * 300, "."):
        conversation.part(text)
    assert history_of(path).exchanges[0].reply == Reply("S" + "o" * 300, finish_reason="cancelled")
    conversation.finish("stop")
    assert history_of(path) == conversation.history


def test_the_header_says_what_wrote_it(sessions: Sessions) -> None:
    summary = saved(sessions)
    header = json.loads(summary.path.read_text().splitlines()[0])
    assert header | {"created": "", "mlxmtp": ""} == {
        "type": "session", "format": 2, "id": summary.id, "created": "", "mlxmtp": "", "model": "m",
    }  # fmt: skip
    assert abs(summary.created - time.time()) < 60


def a_whole_file(folder: Path) -> tuple[bytes, list[History]]:
    """A file with every kind of event and characters of several bytes, and the history after each of its lines."""
    store = Sessions(folder)
    conversation = Conversation(model="m", system="Sei kürz.", journal=store.create("m"), clock=lambda: 0.0)
    conversation.ask("Wäs? 漢", "--- a ---\n🦀")
    conversation.part("Sö")
    conversation.part(thinking="hm" * 120)
    conversation.finish("length", {"tokens": 3})
    conversation.part(" 🦀")
    conversation.finish("stop")
    conversation.ask("Ünd?")
    conversation.retract_reply()
    conversation.replace_question("Oder?")
    conversation.part("Jä")
    conversation.add(Message("assistant", (ToolCall("c1", "zähle", {"bis": 3}),), finish_reason="tool"))
    conversation.add(Message("tool", (ToolResult("c1", "zähle", (TextPart("drei"),), is_error=True),)))
    conversation.part("Dr")
    conversation.finish("stop", {"seed": 7}, {"temp": 0.5})
    conversation.add(Message("user", (ImagePart("sha256:1", name="Füchse.png"), TextPart("Wer?"))))
    conversation.close()
    data = (folder / f"{conversation.session}.jsonl").read_bytes()
    lines = data.splitlines(keepends=True)
    path = folder / "x.jsonl"
    return data, [
        Conversation.restore(read_events(b"".join(lines[:count]), path)).history for count in range(1, len(lines) + 1)
    ]


def test_killed_at_any_byte_it_opens_with_what_was_said_and_goes_on(tmp_path: Path) -> None:
    data, histories = a_whole_file(tmp_path / "whole")
    folder = tmp_path / "cut"
    folder.mkdir()
    path = folder / "abcd1234.jsonl"
    for cut in range(len(data) + 1):
        path.write_bytes(data[:cut])
        summary = Summary("abcd1234", path, None, "", "", 0, 0, 0, 0)
        resumed = Sessions(folder).open(summary)
        conversation = resumed.conversation
        whole = max(data[:cut].count(b"\n"), 1)
        possible = [*histories[whole - 1 : whole + 1], *([History()] if data[:cut].count(b"\n") == 0 else [])]
        assert conversation.history in possible, cut
        assert path.read_bytes() in (data[:cut], b""), "opening changes nothing"
        conversation.ask("More?")
        answer(conversation, Reply("More."))
        conversation.close()
        assert history_of(path) == conversation.history, cut
        listed = Sessions(folder).listing()
        assert ([one.id for one in listed.sessions], listed.remarks) == (["abcd1234"], ())


@given(operations=OPERATIONS, where=st.floats(0, 1))
def test_a_file_that_was_cut_lost_at_most_its_last_line(operations: list[tuple[Any, ...]], where: float) -> None:
    journal = Events({"type": "session", "format": 2, "model": "m"})
    conversation = Conversation(model="m", journal=journal, clock=lambda: 0.0)
    for operation in operations:
        apply(conversation, operation)
    data = b"".join(json.dumps(event, ensure_ascii=False).encode() + b"\n" for event in journal.written)
    cut = data.index(b"\n") + 1 + int(where * (len(data) - data.index(b"\n") - 1))
    events = read_events(data[:cut], Path("x.jsonl"))
    assert len(events) in (data[:cut].count(b"\n"), data[:cut].count(b"\n") + 1)
    assert events == journal.written[: len(events)]
    conversation.close()
    assert Conversation.restore(journal.written).history == conversation.history


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=OPERATIONS, after=OPERATIONS, where=st.floats(0, 1), garbage=st.binary(max_size=20))
def test_whatever_is_torn_or_overwritten_the_rest_goes_on(
    tmp_path: Path, operations: list[tuple[Any, ...]], after: list[tuple[Any, ...]], where: float, garbage: bytes
) -> None:
    store = Sessions(tmp_path / os.urandom(4).hex())
    conversation = Conversation(model="m", journal=store.create("m"))
    conversation.ask("First?")
    for operation in operations:
        apply(conversation, operation)
    conversation.close()
    (path,) = store.folder.iterdir()
    data = path.read_bytes()
    header = data.index(b"\n") + 1
    path.write_bytes(data[: header + int(where * (len(data) - header))] + garbage)
    summary = Summary(path.stem, path, None, "", "", 0, 0, 0, 0)
    resumed = store.open(summary).conversation
    before = resumed.history
    resumed.close()
    assert history_of(path) == before
    again = store.open(summary).conversation
    again.ask("Last?")
    for operation in after:
        apply(again, operation)
    again.close()
    history = history_of(path)
    assert history == again.history
    turns = len(history.dropped + history.exchanges)
    listed = [(one.turns, one.title, one.name, one.model) for one in store.listing().sessions]  # reads no answers
    assert listed == ([(turns, history.title, history.name, history.model)] if turns else [])


def test_a_full_disk_ends_the_saving_but_not_the_conversation(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation = Conversation(journal=sessions.create())
    conversation.ask("Why?")
    monkeypatch.setattr(journal_module, "_write_all", refuse)
    answer(conversation, Reply("So."))
    conversation.ask("And?")
    assert conversation.trouble == (
        f"This conversation is not saved any more: No space left on device ({sessions.folder}). "
        "Make room, and all of it is written with the next turn; in a chat /export FILE.md writes this one elsewhere."
    )
    assert conversation.session is None
    assert len(conversation.exchanges) == 2


def refuse(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_a_full_disk_refused_is_written_once_there_is_room(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where only half a line had found room."""
    conversation = Conversation(journal=sessions.create())
    conversation.ask("Why?")
    (path,) = sessions.folder.iterdir()

    def half(file: int, data: bytes) -> None:
        os.write(file, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(journal_module, "_write_all", half)
        answer(conversation, Reply("So."))
        conversation.ask("And?")
        assert "No space left" in str(conversation.trouble)
    answer(conversation, Reply("Thus."))
    assert conversation.session == path.stem
    assert history_of(path) == conversation.history
    with monkeypatch.context() as full:
        full.setattr(journal_module, "_write_all", half)
        conversation.ask("At last?")
    conversation.close()
    assert history_of(path).exchanges[-1].question == "At last?"


def test_a_folder_that_cannot_be_made_is_trouble_and_no_crash(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    conversation = Conversation(journal=Sessions(tmp_path / "file" / "sessions").create())
    conversation.ask("Why?")
    assert conversation.trouble == (
        f"This conversation is not saved: Not a directory ({tmp_path / 'file' / 'sessions'}). "
        "Check that folder, and all of it is written with the next turn; in a chat /export FILE.md writes this one "
        "elsewhere."
    )


def test_a_file_that_is_removed_meanwhile_is_trouble(sessions: Sessions) -> None:
    conversation = Conversation(journal=sessions.create())
    conversation.ask("Why?")
    (path,) = sessions.folder.iterdir()
    assert history_of(path) == conversation.history
    path.unlink()
    answer(conversation, Reply("So."))
    assert conversation.trouble == (
        f"This conversation is not saved any more: its file was removed ({path}). "
        "Begin a new one; in a chat /export FILE.md writes this one elsewhere."
    )
    assert conversation.session is None
    conversation.close()
    assert list(sessions.folder.iterdir()) == []


# --- the folder ---


def test_the_list_is_newest_first(sessions: Sessions) -> None:
    old, new = saved(sessions, ("Old?", "1"), updated=1000.0), saved(sessions, ("New?", "1"), ("And?", "2"))
    listed = sessions.listing().sessions
    assert [one.id for one in listed] == [new.id, old.id]
    assert sessions.latest() == new
    assert (new.title, new.model, new.turns, new.size) == ("New?", "m", 2, new.path.stat().st_size)
    assert old.updated == 1000.0


def test_an_empty_folder_and_none(sessions: Sessions) -> None:
    assert sessions.listing().sessions == ()
    with pytest.raises(UsageError, match="no session to continue"):
        sessions.latest()
    with pytest.raises(UsageError, match=r"no session 'x'\. Run: mlxmtp sessions"):
        sessions.find("x")


def test_foreign_and_damaged_files_are_passed_over_with_a_remark(sessions: Sessions) -> None:
    good = saved(sessions)
    for name, data in {
        "foreign.jsonl": b'{"role": "user"}\n',
        "text.jsonl": b"hello\nthere\n",
        "newer.jsonl": b'{"type": "session", "format": 3}\n',
        "binary.jsonl": bytes(range(256)),
        "deep.jsonl": b"[" * 100_000 + b"\n",
    }.items():
        (sessions.folder / name).write_bytes(data)
    (sessions.folder / "folder.jsonl").mkdir()
    (sessions.folder / "torn.jsonl").write_bytes(b'{"type": "session", "for')
    (sessions.folder / "empty.jsonl").write_bytes(b"")
    (sessions.folder / "notes.txt").write_text("mine")
    listed = sessions.listing()
    assert listed.sessions == (good,)
    assert sorted(remark.split()[0].rstrip(":") for remark in listed.remarks) == [
        "binary.jsonl", "deep.jsonl", "folder.jsonl", "foreign.jsonl", "newer.jsonl", "text.jsonl",
    ]  # fmt: skip
    assert any("another version of mlxmtp" in remark for remark in listed.remarks)
    assert sessions.latest() == good


@pytest.mark.parametrize("damage", [b"{oops\n", b"\0" * 4096 + b"\n", b'"text"\n', b'{"type": "answer'])
def test_what_cannot_be_read_of_a_session_is_said(sessions: Sessions, damage: bytes) -> None:
    summary = saved(sessions)
    assert sessions.read(summary).remarks == ()
    with summary.path.open("ab") as file:
        file.write(damage)
    said = f"One line of session {summary.id} cannot be read, so what stood there is missing ({summary.path})."
    assert sessions.read(summary).remarks == (said,)
    resumed = sessions.open(summary)
    assert resumed.remarks == (said,)
    assert [one.question for one in resumed.conversation.exchanges] == ["Why?"]
    resumed.conversation.close()


def test_finding_by_name_id_and_beginning(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = iter(["aabb0000", "aabb1111", "cccc2222"])
    monkeypatch.setattr(journal_module, "_fresh_id", lambda: next(ids))
    first, second, third = (saved(sessions) for _ in range(3))
    conversation = sessions.open(third).conversation
    conversation.rename("prime talk")
    conversation.close()
    assert sessions.find("aabb0").id == first.id
    assert sessions.find("aabb1111").id == second.id
    assert sessions.find("c").id == sessions.find("prime talk").id == third.id
    for wanted, sentence in [
        ("aabb", "'aabb' fits 2 sessions"),
        ("aabb000x", "There is no session 'aabb000x': did you mean 'aabb0000'?"),
        ("prime tal", "did you mean 'prime talk'?"),
        ("", "There is no session ''"),
    ]:
        with pytest.raises(UsageError) as refused:
            sessions.find(wanted)
        assert sentence in str(refused.value)


UNREADABLE = {
    "newer001": (b'{"type": "session", "format": 3}\n', "newer001.jsonl was written by another version of mlxmtp"),
    "foreign1": (b"hello\nthere\n", "foreign1.jsonl is not a session of mlxmtp"),
}


@pytest.mark.parametrize("wanted", UNREADABLE)
def test_a_session_that_cannot_be_read_is_refused_with_its_own_reason(sessions: Sessions, wanted: str) -> None:
    data, sentence = UNREADABLE[wanted]
    saved(sessions)
    (sessions.folder / f"{wanted}.jsonl").write_bytes(data)
    with pytest.raises(SessionError, match=sentence):
        sessions.find(wanted)
    with pytest.raises(UsageError, match="There is no session"):
        sessions.find(wanted[:5])  # only the whole id: a beginning means those in the list


def close_to_reading(monkeypatch: pytest.MonkeyPatch, closed: Path) -> None:
    """Nobody may read this file; modes do not keep the superuser out, who may be running this."""
    read_bytes, open_file = Path.read_bytes, os.open

    def refuse_bytes(path: Path) -> bytes:
        if path == closed:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return read_bytes(path)

    def refuse_open(path: Path, flags: int, *more: Any) -> int:
        if path == closed:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return open_file(path, flags, *more)

    monkeypatch.setattr(Path, "read_bytes", refuse_bytes)
    monkeypatch.setattr(os, "open", refuse_open)


def test_a_session_that_may_not_be_read_says_so_and_can_be_removed(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = saved(sessions)
    close_to_reading(monkeypatch, summary.path)
    with pytest.raises(MlxmtpError, match=rf"{summary.path} cannot be read: Permission denied"):
        sessions.find(summary.id)
    assert sessions.remove(sessions.find_any(summary.id)) == summary.size
    assert list(sessions.folder.iterdir()) == []


def test_what_cannot_be_read_or_holds_no_question_is_removed_by_its_whole_id(sessions: Sessions) -> None:
    summary = saved(sessions)
    conversation = sessions.open(summary).conversation
    conversation.undo()
    conversation.close()
    with pytest.raises(UsageError, match=f"Session {summary.id} has no questions left"):
        sessions.find(summary.id)
    for wanted, (data, _) in UNREADABLE.items():
        (sessions.folder / f"{wanted}.jsonl").write_bytes(data)
    (sessions.folder / "foreign1.kv.safetensors").write_bytes(b"x" * 1000)
    for wanted in (summary.id, *UNREADABLE):
        with pytest.raises(UsageError, match="There is no session"):
            sessions.find_any(wanted[:-1])
        found = sessions.find_any(wanted)
        assert sessions.remove(found) == found.size
    assert (found.id, found.size) == ("foreign1", 1012)
    assert list(sessions.folder.iterdir()) == []


def test_continuing_tells_which_newer_ones_it_passes_over(sessions: Sessions) -> None:
    old = saved(sessions, updated=1000.0)
    for at, (wanted, (data, _)) in enumerate(UNREADABLE.items()):
        path = sessions.folder / f"{wanted}.jsonl"
        path.write_bytes(data)
        os.utime(path, (3000.0 - at, 3000.0 - at))
    older = sessions.folder / "older000.jsonl"
    older.write_bytes(b"hello\nthere\n")
    os.utime(older, (500.0, 500.0))
    remarks: list[str] = []
    assert sessions.latest(remarks.append) == old
    assert remarks == [
        "newer001.jsonl was written by another version of mlxmtp: update it to read this session.",
        "foreign1.jsonl is not a session of mlxmtp.",
    ]


def test_only_files_are_sessions(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    good = saved(sessions, updated=1000.0)
    os.mkfifo(sessions.folder / "pipe.jsonl")
    (sessions.folder / "folder.jsonl").mkdir()
    (sessions.folder / "nowhere.jsonl").symlink_to("gone")
    monkeypatch.chdir(sessions.folder)  # a socket's address is 100 bytes at most
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.jsonl")
        listed = sessions.listing()
        assert sessions.latest() == good
    assert listed.sessions == (good,)
    assert sorted(listed.remarks) == [
        "folder.jsonl is not a session of mlxmtp.",
        "nowhere.jsonl: No such file or directory.",
        "pipe.jsonl is not a session of mlxmtp.",
        "socket.jsonl is not a session of mlxmtp.",
    ]
    for name, reason in [("pipe", "is not a session"), ("socket", "is not a session"), ("nowhere", "cannot be read")]:
        with pytest.raises(MlxmtpError, match=rf"{name}\.jsonl {reason}"):
            sessions.find(name)
        sessions.remove(sessions.find_any(name))
    with pytest.raises(MlxmtpError, match="Session folder cannot be removed"):
        sessions.remove(sessions.find_any("folder"))


def test_names_are_one_line_and_belong_to_one_session(sessions: Sessions) -> None:
    first, second = saved(sessions), saved(sessions)
    conversation = sessions.open(first).conversation
    conversation.rename(sessions.check_name("  talk ", first.id))
    conversation.close()
    assert sessions.find("talk").id == first.id
    assert sessions.check_name("talk", first.id) == "talk"
    for name, own in [("talk", second.id), (first.id, second.id), ("", first.id), ("a\nb", first.id), ("x" * 61, "")]:
        with pytest.raises(UsageError):
            sessions.check_name(name, own)


def test_opening_goes_on_in_the_same_file(sessions: Sessions) -> None:
    summary = saved(sessions)
    before = summary.path.read_bytes()
    resumed = sessions.open(summary)
    assert resumed.remarks == ()
    assert summary.path.read_bytes() == before
    resumed.conversation.ask("And?")
    answer(resumed.conversation, Reply("Thus."))
    resumed.conversation.close()
    assert summary.path.read_bytes().startswith(before)
    assert history_of(summary.path) == resumed.conversation.history


def test_a_session_that_is_open_goes_on_in_a_copy(sessions: Sessions) -> None:
    summary = saved(sessions)
    first = sessions.open(summary).conversation
    first.rename("talk")
    second = sessions.open(summary)
    assert "open in another window, so this goes on in a copy" in second.remarks[0]
    assert len(list(sessions.folder.iterdir())) == 1, "a copy appears with its first question"
    first.ask("One?")
    second.conversation.ask("Two?")
    assert second.conversation.session not in (None, summary.id)
    assert sessions.find("talk").id == summary.id
    assert [[one.question for one in history_of(path).exchanges] for path in sorted(
        sessions.folder.iterdir(), key=lambda path: path.stem != summary.id
    )] == [["Why?", "One?"], ["Why?", "Two?"]]  # fmt: skip


def test_removing_takes_the_kept_keys_and_values_with_it(sessions: Sessions) -> None:
    summary = saved(sessions)
    summary.path.with_name(f"{summary.id}.kv.safetensors").write_bytes(b"x" * 1000)
    (listed,) = sessions.listing().sessions
    assert listed.size == summary.size + 1000
    assert sessions.remove(listed) == listed.size
    assert list(sessions.folder.iterdir()) == []
    for again in (sessions.remove, sessions.open, sessions.read):
        with pytest.raises(UsageError, match="has been removed"):
            again(summary)


def test_an_open_session_is_not_removed(sessions: Sessions) -> None:
    summary = saved(sessions)
    conversation = sessions.open(summary).conversation
    with pytest.raises(SessionInUse, match="open in another window"):
        sessions.remove(summary)
    conversation.close()
    sessions.remove(summary)


def test_what_cannot_be_read_is_a_sentence(sessions: Sessions) -> None:
    summary = saved(sessions)
    summary.path.write_bytes(b"hello\n")
    for act in (sessions.open, sessions.read):
        with pytest.raises(SessionError, match="is not a session"):
            act(summary)
    summary.path.unlink()
    summary.path.mkdir()
    for act in (sessions.open, sessions.read):
        with pytest.raises(MlxmtpError, match="cannot be"):
            act(summary)
    with pytest.raises(MlxmtpError, match="cannot be removed"):
        sessions.remove(summary)


# --- other processes ---

TALKER = """
import sys
from pathlib import Path
from mlxmtp.chat.sessions import Sessions
sessions = Sessions(Path(sys.argv[1]))
conversation = sessions.open(sessions.find(sys.argv[2])).conversation
for number in range(int(sys.argv[4])):
    conversation.ask(f"{sys.argv[3]} {number}?")
    for word in "a b c d".split():
        conversation.part(word * 100)
    conversation.finish("stop")
    print("said", flush=True)
    if sys.argv[4] == "1":
        sys.stdin.readline()
"""


def start_talker(sessions: Sessions, summary: Summary, name: str, turns: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", TALKER, str(sessions.folder), summary.id, name, str(turns)],
        env={"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_two_windows_at_once_do_not_mix(sessions: Sessions) -> None:
    summary = saved(sessions)
    talkers = [start_talker(sessions, summary, name, 50) for name in ("one", "two")]
    while any(talker.poll() is None for talker in talkers):
        assert sessions.listing().remarks == (), "a list taken meanwhile is whole"
    for talker in talkers:
        talker.communicate()
        assert talker.returncode == 0
    listed = sessions.listing().sessions
    said = {each.id: [one.question for one in sessions.read(each).conversation.exchanges] for each in listed}
    runs = [[f"{name} {number}?" for number in range(50)] for name in ("one", "two")]
    original = said.pop(summary.id)
    first = original[1].startswith("two")
    if said:  # one went on in a copy of what the other had said until then
        (copy,) = said.values()
        assert original == ["Why?", *runs[first]]
        assert copy[-50:] == runs[not first]
        assert copy[:-50] == original[: len(copy) - 50]
    else:  # one was done before the other came
        assert original == ["Why?", *runs[first], *runs[not first]]
    # A copy may have been made in the middle of an answer; what follows it is whole.
    replies = {one.reply for each in listed for one in sessions.read(each).conversation.exchanges[-50:]}
    assert replies == {Reply("".join(letter * 100 for letter in "abcd"))}


def test_a_killed_process_gives_its_session_back(sessions: Sessions) -> None:
    summary = saved(sessions)
    talker = start_talker(sessions, summary, "one", 1)
    assert talker.stdout is not None
    assert talker.stdout.readline() == "said\n"
    assert sessions.open(summary).remarks != ()
    with pytest.raises(SessionInUse):
        sessions.remove(summary)
    talker.kill()
    talker.communicate()
    resumed = sessions.open(summary)
    assert resumed.remarks == ()
    assert [one.question for one in resumed.conversation.exchanges] == ["Why?", "one 0?"]
