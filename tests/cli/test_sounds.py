"""Sounds for `mlxmtp ask`, through the real program: few tests, each is a start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import soundfile

from scripts.goldens.pictures import SOUNDS
from tests.cli.test_pictures import ask
from tests.media_golden import pictures
from tests.seeing import write_blind_pocket, write_seeing_pocket

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model that hears, `seeing`, two sounds and a picture."""
    folder = tmp_path_factory.mktemp("sounds")
    write_seeing_pocket(folder / "seeing")
    soundfile.write(folder / "memo.wav", SOUNDS[0], 16_000)
    soundfile.write(folder / "my memo.flac", SOUNDS[1], 16_000)
    pictures()[0].save(folder / "tall.png")
    return folder


def test_sounds_are_read_from_files_and_pipes_with_pictures_among_them(folder: Path) -> None:
    given = ["--image-tokens", "70", "--json", "-m", str(folder / "seeing"), "What is said?"]
    named = ask(folder, "-f", "memo.wav", "-f", "tall.png", "-f", "my memo.flac", *given)
    assert named.returncode == 0, named.stderr
    piped = ask(folder, *given, stdin=(folder / "memo.wav").read_bytes())
    one, three = (json.loads(done.stdout)["stats"]["prompt_tokens"] for done in (piped, named))
    assert three - one == 60 + 2 + 8 + 2  # a picture and a short sound with their marks
    shown = json.loads(ask(folder, "-f", "memo.wav", "-f", "tall.png", *given, "--dry-run").stdout)
    assert shown["prompt"].count("<|audio|><|image|>What is said?") == 1


def test_a_conversation_keeps_its_sounds(folder: Path) -> None:
    given = ["--json", "-m", str(folder / "seeing")]
    copied = folder / "gone.wav"
    copied.write_bytes((folder / "memo.wav").read_bytes())
    first = ask(folder, "--save", "-f", "gone.wav", *given, "What is said?")
    copied.unlink()
    second = ask(folder, "-c", *given, "And then?")
    assert second.returncode == 0, second.stderr
    one, two = (json.loads(done.stdout)["stats"]["prompt_tokens"] for done in (first, second))
    assert two > one


def test_what_cannot_be_heard_is_an_error_and_no_invention(folder: Path) -> None:
    soundfile.write(folder / "short.wav", SOUNDS[0][:80], 16_000)
    (folder / "cut.flac").write_bytes((folder / "my memo.flac").read_bytes()[:60])
    about = ["-m", str(folder / "seeing"), "What is said?"]
    cases = [
        (["-f", "gone.mp3", *about], b"There is no file gone.mp3."),
        (["-f", "short.wav", *about], b"short.wav is too short: it has 5 ms"),
        (["-f", "cut.flac", *about], b"cut.flac is "),
        (
            ["-f", "memo.wav", "-m", str(write_blind_pocket(folder / "blind")), "What is said?"],
            b"has no audio tower, so it cannot hear memo.wav",
        ),
    ]
    for args, sentence in cases:
        done = ask(folder, *args)
        assert done.returncode in (1, 2)
        assert sentence in done.stderr
        assert not done.stdout
