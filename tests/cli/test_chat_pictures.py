"""Pictures in the conversation: before a message, in it, from the clipboard, taken back, and in the next window."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlxmtp.chat import material
from mlxmtp.cli.repl import files
from mlxmtp.errors import UsageError
from tests.cli.talking import Conversing
from tests.media_golden import pictures
from tests.seeing import IDS, write_seeing_pocket

END, YES = IDS["eoi_token_id"], "Yes.<turn|>"
TALL, WIDE = 60, 60  # soft tokens at the budget of these tests
WIDE_FILE = "wide picture.png"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_seeing_pocket(tmp_path_factory.mktemp("model") / "seeing")


@pytest.fixture
def talk(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Conversing]:
    monkeypatch.chdir(tmp_path)
    tall, wide = pictures()
    tall.save("tall.png")
    wide.save(WIDE_FILE)
    Path("cut.png").write_bytes(Path("tall.png").read_bytes()[:600])
    talk = Conversing(tmp_path, model=model)
    talk.talk.change(image_tokens=70)
    yield talk
    talk.talk.conversation.close()


def prompt(talk: Conversing, number: int = -1) -> list[int]:
    ids: list[int] = talk.decoder.requests[number].prompt
    return ids


def seen(ids: list[int]) -> list[tuple[int, ...]]:
    """The pictures of a prompt, each as its first ids."""
    ends = [place for place, token in enumerate(ids) if token == END and ids[place - 1] < 0]
    return [tuple(ids[end - 3 : end]) for end in ends]


def test_a_picture_in_a_message_is_told_and_stays_with_the_conversation(talk: Conversing) -> None:
    shown = talk.say("What is @tall.png?", "And now?", answers=[YES, YES])
    assert "tall.png, 120x200, 60 tokens\n" in shown
    first, second = prompt(talk, 0), prompt(talk, 1)
    assert sum(token < 0 for token in first) == TALL
    assert seen(first) == seen(second)
    Path("tall.png").unlink()  # as screenshots are
    session = talk.talk.conversation.session
    assert session is not None
    talk.say("/clear", f"/load {session}", "Still there?", "/regen", answers=[YES, YES])
    assert seen(prompt(talk)) == seen(first)
    talk.say("/undo 3", "Without?", answers=[YES])
    assert not seen(prompt(talk))


def test_a_context_full_of_pictures_offers_to_leave_the_oldest_out(talk: Conversing) -> None:
    talk.say("What is @tall.png?", answers=[YES])
    talk.talk.model.fits_memory = len(prompt(talk)) + 20
    talk.script.answers = [True]
    shown = talk.say("Thanks", answers=[YES])
    assert "Leave the oldest exchange out" in shown
    assert not seen(prompt(talk))
    talk.talk.change(image_tokens=280)
    talk.talk.model.fits_memory = 400
    shown = talk.say("And @tall.png?", "/context", answers=[YES])
    [filled] = [int(line.split()[2]) for line in shown.splitlines() if line.startswith("2 exchanges")]
    assert filled > 200


def test_pictures_wait_are_dropped_and_replaced(talk: Conversing) -> None:
    shown = talk.say("/file tall.png 'wide picture.png'", "/file", "/file drop 1", "What?", "More?", answers=[YES, YES])
    assert "1. tall.png, 120x200, 60 tokens, goes with the next message\n2. wide picture.png, 300x90" in shown
    assert "tall.png goes with no message." in shown
    assert [len(seen(prompt(talk, number))) for number in (0, 1)] == [1, 1], "it is asked with once, and then said"
    assert "/file drop takes the number" in talk.say("/file drop 5")
    talk.say("What is @tall.png?", answers=[YES])
    before = seen(prompt(talk))
    talk.say('/edit And @"wide picture.png"?', answers=[YES])
    after = seen(prompt(talk))
    assert len(after) == len(before) == 2
    assert after[1] == after[0] != before[1], "what the new words name replaces what the old ones did"
    talk.say('/edit Look at @tall.png and @"wide picture.png"', "/regen", answers=[YES, YES])
    assert seen(prompt(talk)) == [after[0], before[1], after[0]]
    budgets = talk.say("/set image-tokens 140", "/file tall.png")
    assert "tall.png, 120x200, 135 tokens, goes with the next message" in budgets


def test_other_words_drop_the_pages_of_a_scan_that_they_do_not_name(
    talk: Conversing, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("scan.pdf").write_bytes(b"%PDF-1.7")
    pages = [SimpleNamespace(number=1, text="", picture=Path(name).read_bytes()) for name in ("tall.png", WIDE_FILE)]
    monkeypatch.setattr(material, "read_pages", lambda *_: pages)
    talk.say("What is @scan.pdf?", "/edit And @scan.pdf here?", answers=[YES, YES])
    assert len(seen(prompt(talk))) == 2
    pages.pop()
    talk.say("/edit And now @scan.pdf?", answers=[YES])
    assert len(seen(prompt(talk))) == 1
    talk.say("/edit What is MTP?", answers=[YES])
    assert not seen(prompt(talk))
    talk.say("/file scan.pdf", "What @...?", "/edit Why?", answers=[YES, YES])
    assert len(seen(prompt(talk))) == 1, "what was attached stays"


def test_the_clipboards_picture_waits_like_a_file(talk: Conversing, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    pictures()[1].save(buffer, "PNG")
    copied: list[bytes | str] = [buffer.getvalue(), "tall.png", buffer.getvalue()]
    monkeypatch.setattr(files, "copied_picture", lambda: copied.pop(0))
    shown = talk.say("/paste", "/paste", "/paste", "What are these?", answers=[YES])
    assert "image from the clipboard 1, 300x90, 60 tokens, goes with the next message" in shown
    assert "tall.png, 120x200" in shown
    assert "image from the clipboard 2" in shown
    wide, tall, again = seen(prompt(talk))
    assert wide == again != tall

    def nothing() -> bytes:
        raise UsageError("There is no image in the clipboard: copy one.")

    monkeypatch.setattr(files, "copied_picture", nothing)
    assert "Error: There is no image in the clipboard" in talk.say("/paste")


def test_what_cannot_be_seen_is_said_and_asks_nothing(talk: Conversing) -> None:
    shown = talk.say("/file cut.png", "/file", "What is @cut.png?", "And @gone.png?", answers=[YES])
    assert shown.count("Error: cut.png is damaged") == 2
    assert "No file waits for the next message" in shown
    assert "There is no file gone.png, so @gone.png is only text" in shown
    assert len(talk.decoder.requests) == 1


def test_a_conversation_open_elsewhere_goes_on_with_pictures_of_its_own(talk: Conversing) -> None:
    talk.say("What is @tall.png?", answers=[YES])
    session = talk.talk.conversation.session
    summary = talk.sessions.find(str(session))
    forked = talk.sessions.open(summary).conversation
    talk.talk.conversation.close()
    talk.sessions.remove(summary)
    talk.talk.begin_anew(forked)
    talk.say("And now?", answers=[YES])
    assert seen(prompt(talk, 0)) == seen(prompt(talk, 1))
