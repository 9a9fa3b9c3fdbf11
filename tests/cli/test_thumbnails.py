"""Small pictures in the terminal: only where it says that it draws them, in its own protocol, never in a pipe."""

from __future__ import annotations

import base64
import io
import re
from io import StringIO
from pathlib import Path

import pytest
from PIL import Image

from mlxmtp.cli.terminal.output import Look, Output
from mlxmtp.cli.terminal.thumbnails import thumbnail
from mlxmtp.environment import Pictures, draws_pictures
from mlxmtp.media.image import open_picture, small_png
from tests.cli.talking import Conversing, Paper, WideOutput
from tests.media_golden import pictures
from tests.seeing import write_seeing_pocket


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-ghostty", "TERM_PROGRAM": "ghostty"}, "kitty"),
        ({"TERM_PROGRAM": "iTerm.app", "TERM": "xterm-256color"}, "iterm2"),
        ({"LC_TERMINAL": "iTerm2"}, "iterm2"),
        ({"TERM_PROGRAM": "WezTerm"}, "iterm2"),
        ({"TERM_PROGRAM": "Apple_Terminal", "TERM": "xterm-256color"}, ""),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, ""),
        ({"TERM": "xterm-kitty", "TMUX": "/tmp/x,1,0"}, ""),
        ({"LC_TERMINAL": "iTerm2", "STY": "1.pts"}, ""),
        ({}, ""),
    ],
)
def test_the_terminal_says_if_it_draws_pictures(environ: dict[str, str], wanted: str) -> None:
    assert draws_pictures(environ) == wanted


def test_nothing_is_drawn_in_a_pipe_or_where_nothing_is_repainted() -> None:
    look = Look(pictures="kitty")
    assert Output(Paper(), None, look).pictures == "kitty"
    assert Output(StringIO(), None, look).pictures == ""
    assert Output(Paper(), None, Look(pictures="kitty", still=True)).pictures == ""
    assert Output(Paper(), None, Look(pictures="kitty", dumb=True)).pictures == ""


def png(width: int, height: int) -> bytes:
    return small_png(open_picture(Image.effect_noise((width, height), 90).convert("RGB")), 480, 240)


def test_kittys_pieces_are_the_file_and_its_size() -> None:
    data = png(300, 200)
    drawn = thumbnail(data, 300, 200, "kitty")
    pieces = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", drawn)
    assert "".join(f"\x1b_G{keys};{text}\x1b\\" for keys, text in pieces) + "\n" == drawn
    assert len(pieces) > 2
    assert pieces[0][0] == "a=T,f=100,q=2,r=6,m=1"
    assert [keys for keys, _ in pieces[1:]] == ["m=1"] * (len(pieces) - 2) + ["m=0"]
    assert all(len(text) <= 4096 for _, text in pieces)
    assert base64.b64decode("".join(text for _, text in pieces)) == data


@pytest.mark.parametrize(("width", "height", "size"), [(200, 300, "height=6"), (900, 200, "width=40")])
def test_iterm2_gets_the_file_in_one_piece(width: int, height: int, size: str) -> None:
    data = png(width, height)
    drawn = thumbnail(data, width, height, "iterm2")
    keys, text = re.fullmatch(r"\x1b]1337;File=(.*):(.*)\x07\n", drawn).groups()  # type: ignore[union-attr]
    assert keys == f"inline=1;size={len(data)};{size};preserveAspectRatio=1"
    shown = Image.open(io.BytesIO(base64.b64decode(text)))
    assert shown.size[0] <= 480
    assert shown.size[1] <= 240
    assert thumbnail(data, width, height, "") == ""


@pytest.mark.parametrize("protocol", ["kitty", ""])
def test_a_conversation_shows_a_picture_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: Pictures
) -> None:
    monkeypatch.chdir(tmp_path)
    pictures()[0].save("tall.png")
    talk = Conversing(tmp_path, model=write_seeing_pocket(tmp_path / "seeing"))
    talk.talk.change(image_tokens=70)
    talk.talk.out = WideOutput(talk.paper, talk.paper, Look(pictures=protocol))
    shown = talk.say("/file tall.png", "What is it?", "And @tall.png?", answers=["Yes.<turn|>"] * 2)
    assert shown.count("\x1b_Ga=T") == (2 if protocol else 0)
    talk.talk.conversation.close()
