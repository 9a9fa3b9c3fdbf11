"""The built-in model calls the built-in tools by itself: no script, no stand-in.

Left out as long as its chat template declares no tools, which is what the program itself refuses them by.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Any

import pytest

from mlxmtp.cli import app
from mlxmtp.engine.tokenizer import Tokenizer

POCKET = Path(__file__).parents[2] / "assets/pocket/target"
pytestmark = pytest.mark.skipif(
    not Tokenizer.load(POCKET).declares_tools, reason="the built-in model has not learned to call tools"
)


class OneMoment(datetime):
    """Always the same: what the model says of the time depends on it."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> OneMoment:
        return cls(2026, 3, 18, 14, 5, 9, tzinfo=tz or UTC)

    def astimezone(self, tz: tzinfo | None = None) -> OneMoment:
        return self


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLXMTP_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("mlxmtp.app.tools.builtin.datetime", OneMoment)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "notes.txt").write_text("The blue door is open", encoding="utf-8")
    return tmp_path / "files"


@pytest.mark.parametrize(
    ("tools", "question", "name", "said"),
    [
        ("calculator", "What is 17 times 23?", "calculate", "391"),
        ("calculator,time", "What day is it today?", "now", r"20\d\d-\d\d-\d\d"),
        ("calculator,files={folder}", "Which files are here?", "list_files", r"notes\.txt"),
        ("time,files={folder}", "Read notes.txt", "read_file", "blue door"),
    ],
)
def test_a_question_is_answered_by_a_tool(
    folder: Path, capsys: pytest.CaptureFixture[str], tools: str, question: str, name: str, said: str
) -> None:
    words = ["ask", "--no-stdin", "-m", "pocket", "--temp", "0", "--json", "--tools", tools.format(folder=folder)]
    assert app.main([*words, question]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    [one] = found["calls"]
    assert (one["name"], one["is_error"]) == (name, False)
    assert re.search(said, one["result"])
    assert re.search(said, found["response"])  # it tells what the tool said


def test_the_prompt_after_a_call_is_read_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["ask", "--no-stdin", "-m", "pocket", "--temp", "0", "--json", "--tools", "calculator"]
    assert app.main([*words, "What is 12 + 30?"]) == 0
    stats = json.loads(capsys.readouterr().out)["stats"]
    assert stats["reused_tokens"] > stats["prompt_tokens"] / 2
