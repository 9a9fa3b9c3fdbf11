"""What was learned about drafting, on disk: whole or not at all, and only for what it was learned on."""

import json
import math
from pathlib import Path

import pytest

from mlxmtp.app.open import LearnedDrafting
from mlxmtp.decode.draft_length import DraftLength

OF = {"model": "a", "drafter": "b", "chip": "c", "mlx": "1", "mlxmtp": "2"}
LEARNED = {"kinds": [[2.0, [0.9] * 8]], "costs": {"1": [0.2, 0.05]}, "price": 1.5, "rows": 512}


def only_file(tmp_path):
    [path] = (tmp_path / "tuning").iterdir()
    return path


def test_what_was_written_comes_back_and_starts_a_controller(tmp_path):
    assert LearnedDrafting(tmp_path, OF).read() == {}
    LearnedDrafting(tmp_path, OF).write(LEARNED)
    assert LearnedDrafting(tmp_path, OF).read() == LEARNED
    depth = DraftLength()
    depth.start_from(LearnedDrafting(tmp_path, OF).read())
    assert depth != DraftLength()
    assert only_file(tmp_path).suffix == ".json"  # nothing half written beside it


@pytest.mark.parametrize("part", OF)
def test_another_model_machine_or_version_knows_nothing_of_it(tmp_path, part):
    LearnedDrafting(tmp_path, OF).write(LEARNED)
    assert LearnedDrafting(tmp_path, {**OF, part: "other"}).read() == {}


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"\xff\xfe", b"[]", b'{"of": {}}', b"null", b'{"learned": {"costs": 1}}']
)
def test_a_damaged_file_is_no_file(tmp_path, damage):
    LearnedDrafting(tmp_path, OF).write(LEARNED)
    only_file(tmp_path).write_bytes(damage)
    assert LearnedDrafting(tmp_path, OF).read() == {}
    LearnedDrafting(tmp_path, OF).write(LEARNED)
    assert LearnedDrafting(tmp_path, OF).read() == LEARNED


def test_numbers_that_cannot_be_are_refused_by_the_controller(tmp_path):
    LearnedDrafting(tmp_path, OF).write({**LEARNED, "kinds": [[1.0, [math.nan] * 8]]})
    with pytest.raises(ValueError, match="learned"):
        DraftLength().start_from(LearnedDrafting(tmp_path, OF).read())


def test_a_folder_that_cannot_be_written_is_left(tmp_path):
    (tmp_path / "tuning").write_text("in the way")
    LearnedDrafting(tmp_path, OF).write(LEARNED)
    assert LearnedDrafting(tmp_path, OF).read() == {}
    assert (tmp_path / "tuning").read_text() == "in the way"


def test_the_file_says_what_it_is_of(tmp_path):
    LearnedDrafting(tmp_path, OF).write(LEARNED)
    assert json.loads(only_file(tmp_path).read_text())["of"].items() >= OF.items()


def test_a_disk_that_is_full_is_left_as_it_was(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    LearnedDrafting(tmp_path, OF).write(LEARNED)
    monkeypatch.setattr(Path, "replace", full)
    LearnedDrafting(tmp_path, OF).write({**LEARNED, "costs": {}})
    assert LearnedDrafting(tmp_path, OF).read() == LEARNED
    assert only_file(tmp_path).suffix == ".json"
