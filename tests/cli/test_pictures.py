"""Pictures for `mlxmtp ask`, through the real program: few tests, each is a start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.media_golden import pictures
from tests.seeing import write_blind_pocket, write_seeing_pocket

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model that sees, `seeing`, and two pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    write_seeing_pocket(folder / "seeing")
    tall, wide = pictures()
    tall.save(folder / "tall.png")
    wide.save(folder / "wide picture.jpg")
    return folder


def ask(folder: Path, *args: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    own = {"MLXMTP_HOME": str(folder / "home"), "PYTHONPATH": str(ROOT), "HOME": str(folder)}
    environment = {"PATH": os.environ["PATH"], "OPENBLAS_NUM_THREADS": "1", **own}
    command = [sys.executable, "-m", "mlxmtp", "ask", "--seed", "1", "--max-tokens", "8", *args]
    return subprocess.run(
        command, env=environment, cwd=folder, input=stdin, capture_output=True, timeout=120, check=False
    )


def test_pictures_are_read_from_files_and_pipes_before_the_question(folder: Path) -> None:
    piped = (folder / "tall.png").read_bytes()
    given = ["--image-tokens", "70", "--json", "-m", str(folder / "seeing"), "What is a drafter?"]
    named = ask(folder, "-f", "wide picture.jpg", "-f", "tall.png", *given)
    assert named.returncode == 0, named.stderr
    one, two = (json.loads(done.stdout)["stats"]["prompt_tokens"] for done in (ask(folder, *given, stdin=piped), named))
    assert two - one == 60 + 2  # a picture and its marks
    shown = ask(folder, "-f", "tall.png", *given[2:], "--dry-run")
    table = json.loads(shown.stdout)
    assert table["prompt"].count("<|image|>What is a drafter?") == 1
    assert table["tokens"] == one + 252 - 60  # the usual budget is 280


def test_what_cannot_be_seen_is_an_error_and_no_invention(folder: Path) -> None:
    (folder / "cut.png").write_bytes((folder / "tall.png").read_bytes()[:500])
    about = ["-m", str(folder / "seeing"), "Describe it."]
    cases = [
        (["-f", "gone.png", *about], b"There is no file gone.png."),
        (["-f", "cut.png", *about], b"cut.png is damaged"),
        (
            ["-f", "tall.png", "-m", str(write_blind_pocket(folder / "blind")), "Describe it."],
            b"has no vision tower, so it cannot see tall.png",
        ),
        (["-f", "tall.png", "--image-tokens", "100", *about], b"must be 70, 140, 280, 560 or 1120, not 100"),
    ]
    for args, sentence in cases:
        done = ask(folder, *args)
        assert done.returncode in (1, 2)
        assert sentence in done.stderr
        assert not done.stdout
