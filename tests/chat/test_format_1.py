"""Sessions of format 1, as version 0.1 wrote them, with what 0.1 itself read from them (format_1/expected.json)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mlxmtp.chat.conversation import Conversation
from mlxmtp.chat.history import Exchange, Reply
from mlxmtp.chat.journal import read_events
from mlxmtp.chat.message import ImagePart, Message, TextPart
from mlxmtp.chat.sessions import Sessions, Summary, summarize
from mlxmtp.chat.transcript import as_table

DATA = Path(__file__).parent / "format_1"
EXPECTED: dict[str, dict[str, Any]] = json.loads((DATA / "expected.json").read_text(encoding="utf-8"))


def seen(conversation: Conversation) -> dict[str, Any]:
    """What the front ends get, as it was recorded."""
    table = as_table(conversation.history, "id")
    about = {name: table[name] for name in ("name", "title", "model", "system", "exchanges")}
    return {**about, "messages": conversation.messages()}


def read(path: Path) -> Conversation:
    return Conversation.restore(read_events(path.read_bytes(), path))


def opened(tmp_path: Path, name: str) -> tuple[Path, Conversation]:
    path = Path(shutil.copy(DATA / f"{name}.jsonl", tmp_path / "old00001.jsonl"))
    summary = Summary("old00001", path, None, "", "", 0, 0, 0, 0)
    return path, Sessions(tmp_path).open(summary).conversation


@pytest.mark.parametrize("name", EXPECTED)
def test_a_file_is_read_as_it_was(name: str) -> None:
    path = DATA / f"{name}.jsonl"
    summary = summarize(path)
    assert summary is not None
    assert {**seen(read(path)), "turns": summary.turns} == EXPECTED[name]


def test_any_sequence_of_events_is_read_as_it_was() -> None:
    for case in json.loads((DATA / "random.json").read_text(encoding="utf-8")):
        now = seen(Conversation.restore(case["events"]))
        assert {name: now[name] for name in case["seen"]} == case["seen"], case["events"]


@pytest.mark.parametrize("name", EXPECTED)
def test_a_file_goes_on_in_place_and_is_of_this_format_then(tmp_path: Path, name: str) -> None:
    """Version 0.1 refuses it from then on, instead of passing over what it does not know."""
    path, conversation = opened(tmp_path, name)
    before = path.read_bytes()
    assert seen(conversation) == {key: value for key, value in EXPECTED[name].items() if key != "turns"}
    assert before == (DATA / f"{name}.jsonl").read_bytes(), "opening changes nothing"
    said = conversation.exchanges
    conversation.add(Message("user", (ImagePart("sha256:1", name="a.png"), TextPart("And now?"))))
    conversation.part("Now.")
    conversation.finish("stop", None, {"temp": 0.5})
    conversation.close()
    marked = before.replace(b'"format": 1', b'"format": 2', 1)
    assert path.read_bytes().startswith(marked)
    assert read(path).history == conversation.history
    assert read(path).exchanges == (
        *said,
        Exchange("And now?", Reply("Now."), media=(ImagePart("sha256:1", name="a.png"),)),
    )
    path.write_bytes(marked)  # killed between the header and the event
    assert seen(read(path)) == {key: value for key, value in EXPECTED[name].items() if key != "turns"}


@pytest.mark.parametrize("written", ['{"type":"session","format":1}', '{"format": 1, "type": "session"}'])
def test_a_header_that_another_program_wrote_is_marked_too(tmp_path: Path, written: str) -> None:
    path = tmp_path / "old00001.jsonl"
    path.write_text(f'{written}\n{{"type": "question", "text": "What is \\"format\\": 1?"}}\n', encoding="utf-8")
    conversation = Sessions(tmp_path).open(Summary("old00001", path, None, "", "", 0, 0, 0, 0)).conversation
    conversation.ask("And?")
    conversation.close()
    assert path.read_text(encoding="utf-8").startswith(written.replace("1", "2"))
    assert [one.question for one in read(path).exchanges] == ['What is "format": 1?', "And?"]


def test_a_copy_of_an_open_file_is_of_this_format(tmp_path: Path) -> None:
    path, first = opened(tmp_path, "edits")
    second = Sessions(tmp_path).open(Summary("old00001", path, None, "", "", 0, 0, 0, 0)).conversation
    first.ask("One?")
    second.ask("Two?")
    (copy,) = (one for one in tmp_path.iterdir() if one != path)
    assert b'"format": 2' in copy.read_bytes().splitlines()[0]
    assert read(copy).exchanges[:-1] == read(path).exchanges[:-1] == read(DATA / "edits.jsonl").exchanges
