"""The picture of a conversation: what a terminal shows, in its colours, as SVG that a parser takes."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyte
import pytest

ROOT = Path(__file__).parents[1]


def load_script() -> Any:
    spec = importlib.util.spec_from_file_location("render_chat", ROOT / "scripts" / "render_chat.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_rows_runs_and_colours() -> None:
    script = load_script()
    screen = pyte.Screen(20, 5)
    pyte.Stream(screen).feed("> a <b> & c\r\n\r\n\x1b[1;32mgreen\x1b[0m 中文 \x1b[38;2;1;2;3mrgb\x1b[0m")
    root = ElementTree.fromstring(script.svg(screen))
    texts = [element for element in root.iter() if element.tag.endswith("text")]
    assert [element.text for element in texts] == ["> a <b> & c", "green", "中文", "rgb"]
    assert [element.get("fill") for element in texts] == [script.INK, "#3fb950", script.INK, "#010203"]
    assert texts[1].get("font-weight") == "bold"
    assert [round(float(str(element.get("x"))) - script.MARGIN) for element in texts] == [
        0, 0, round(6 * script.CELL), round(11 * script.CELL)
    ]  # fmt: skip
    assert float(str(texts[2].get("textLength"))) == 4 * script.CELL


@pytest.mark.parametrize("name", ["chat.svg", "chat-80.svg", "chat-120.svg"])
def test_the_shipped_pictures_are_such_files(name: str) -> None:
    root = ElementTree.parse(ROOT / "assets" / name).getroot()
    text = "\n".join(element.text or "" for element in root.iter())
    assert "mlxmtp chat: /help, Ctrl+D to leave" in text
    assert "To come back: mlxmtp chat -r" in text
    figures = [row for row in text.split("\n") if "tok/s" in row]
    assert len(figures) == 3
    assert all("context" in row for row in figures), "the line of figures takes one row"
