from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest

from mlxmtp.chat.conversation import Conversation
from mlxmtp.chat.history import Exchange, Reply
from mlxmtp.chat.message import (
    AudioPart,
    ImagePart,
    Message,
    Part,
    TextPart,
    ToolCall,
    ToolResult,
    read_message,
)
from mlxmtp.chat.transcript import as_markdown, as_table, export
from mlxmtp.errors import MlxmtpError, UsageError
from tests.chat.test_conversation import answer


@pytest.fixture
def conversation() -> Conversation:
    conversation = Conversation(model="12b", system="Be brief.")
    for question, reply in [
        ("Old?", Reply("Gone.")),
        ("What is in it?", Reply("Little.", thinking="A secret thought", stats={"seed": 7})),
        ("Go on.", Reply("1, 2", finish_reason="length")),
        ("More.", Reply("3", finish_reason="cancelled")),
    ]:
        material = ("--- a.txt ---\nalpha", "--- b.txt ---\nbeta") if "in it" in question else ()
        conversation.ask(question, *material)
        answer(conversation, reply)
    conversation.drop_oldest(1)
    conversation.ask("And?", "from a pipe")
    return conversation


def test_markdown_is_what_was_said(conversation: Conversation) -> None:
    assert as_markdown(conversation.history, "3f9a2c1b") == (
        "# Old?\n\n12b · session 3f9a2c1b\n\n## System\n\nBe brief.\n\n## Question\n\nOld?\n\n## Answer\n\nGone.\n\n"
        "*(The context was full: the model no longer reads what is above.)*\n\n"
        "## Question\n\n*(Attached: a.txt, b.txt)*\n\nWhat is in it?\n\n## Answer\n\nLittle.\n\n"
        "## Question\n\nGo on.\n\n## Answer\n\n1, 2\n\n*(cut at the length limit)*\n\n"
        "## Question\n\nMore.\n\n## Answer\n\n3\n\n*(stopped)*\n\n"
        "## Question\n\n*(Attached: piped text)*\n\nAnd?\n\n*(not answered)*\n"
    )
    assert as_markdown(Conversation().history) == "# Conversation\n"


def test_tools_and_media_are_a_line_each() -> None:
    conversation = Conversation(model="12b")
    photo = ImagePart("sha256:1", "image/png", (480, 640), 1000, "photo.png")
    sound = AudioPart("sha256:2")
    conversation.add(Message("user", (photo, sound, Part(more={"type": "hologram"}), TextPart("What is it?"))))
    call = ToolCall("c1", "look_up", {"name": "Füchse", "lines": ["x" * 200]})
    conversation.add(Message("assistant", (TextPart("Let me see."), call), "Hm.", "tool"))
    failed = ToolResult("c1", "look_up", (TextPart("No\nnetwork."), photo), is_error=True)
    conversation.add(Message("tool", (failed, ToolResult("c2", "time", (TextPart("12:00"),)))))
    conversation.part("A fox.")
    conversation.finish("length", {"seed": 7}, {"temp": 0.5})
    assert as_markdown(conversation.history).partition("## Question\n\n")[2] == (
        "*(Image: photo.png)*\n\n*(Audio: sha256:2)*\n\n*(A part of type hologram)*\n\nWhat is it?\n\n"
        "## Answer\n\nLet me see.\n\n"
        f'*(Called look_up: {{"name": "Füchse", "lines": ["{"x" * 69}…)*\n\n'
        "*(look_up failed: No network.)*\n\n*(time returned: 12:00)*\n\nA fox.\n\n*(cut at the length limit)*\n"
    )
    table = json.loads(json.dumps(as_table(conversation.history)))
    back = [read_message(one, one["role"]) for one in table["messages"]]
    assert tuple(back) == conversation.history.turns[0]
    assert table["messages"][-1] == {
        "role": "assistant", "parts": [{"type": "text", "text": "A fox."}], "finish_reason": "length",
        "stats": {"seed": 7}, "model": "12b", "sampling": {"temp": 0.5},
    }  # fmt: skip
    assert table["exchanges"][0]["reply"]["text"] == "Let me see.\n\nA fox."


def test_json_holds_everything_and_gives_it_back(conversation: Conversation, tmp_path: Path) -> None:
    path = export(conversation.history, str(tmp_path / "talk.JSON"), "3f9a2c1b")
    table = json.loads(path.read_text(encoding="utf-8"))
    assert table == as_table(conversation.history, "3f9a2c1b")
    back = [
        Exchange(one["question"], one["reply"] and Reply(**one["reply"]), one["attached"], one["mentioned"])
        for one in table["exchanges"]
    ]
    assert tuple(back) == conversation.dropped + conversation.exchanges
    assert [one["in_context"] for one in table["exchanges"]] == [False, True, True, True, True]
    assert (table["session"], table["model"], table["system"]) == ("3f9a2c1b", "12b", "Be brief.")


def test_a_home_that_nobody_has_is_refused(conversation: Conversation) -> None:
    with pytest.raises(UsageError, match="no home folder for ~nobody-here"):
        export(conversation.history, "~nobody-here/talk.md")


def test_a_file_says_by_its_name_what_it_holds_and_is_not_overwritten(
    conversation: Conversation, tmp_path: Path
) -> None:
    file = str(tmp_path / "talk.md")
    assert export(conversation.history, file).read_text() == as_markdown(conversation.history)
    with pytest.raises(UsageError, match="exists already"):
        export(conversation.history, file)
    export(Conversation().history, file, overwrite=True)
    assert Path(file).read_text() == "# Conversation\n"
    for name in ("talk.txt", "talk"):
        with pytest.raises(UsageError, match=r"must end in \.md or \.json"):
            export(conversation.history, str(tmp_path / name))
    with pytest.raises(MlxmtpError, match="cannot be written"):
        export(conversation.history, str(tmp_path / "none" / "talk.md"))


def test_a_full_disk_leaves_what_was_there(conversation: Conversation, tmp_path: Path) -> None:
    file = tmp_path / "talk.md"
    file.write_text("before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        for name, overwrite in ((file, True), (tmp_path / "new.md", False)):
            with pytest.raises(MlxmtpError, match="cannot be written"):
                export(conversation.history, str(name), overwrite=overwrite)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("talk.md", "before")]


@pytest.mark.parametrize("mode", [0o600, 0o664])
def test_an_export_over_a_file_keeps_who_may_read_it(conversation: Conversation, tmp_path: Path, mode: int) -> None:
    path = tmp_path / "talk.md"
    path.write_text("old")
    path.chmod(mode)
    export(conversation.history, str(path), overwrite=True)
    assert path.read_text() != "old"
    assert path.stat().st_mode & 0o777 == mode
