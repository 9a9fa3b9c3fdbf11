"""Texts about pictures: the reference's, with any drafts, in any chunks, and never another picture's."""

from __future__ import annotations

import gc
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mlxmtp.app.remote_media import Sent, as_sent
from mlxmtp.decode.decoder import Decoder
from mlxmtp.engine.media import Media
from mlxmtp.engine.model import Model
from mlxmtp.errors import DeviceFailed, LoadError, UsageError
from mlxmtp.media.image import Picture
from mlxmtp.media.source import MediaFile
from mlxmtp.models.config import read_config
from tests.golden import FOLDER
from tests.media_golden import BUDGET, FAMILIES, IMAGE, MediaGolden, build, pictures
from tests.networks import Adversary


@pytest.fixture(scope="module", params=[one for one in FAMILIES if one != "26b"])
def golden(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> MediaGolden:
    return build(request.param, tmp_path_factory.mktemp("media") / request.param)


@pytest.fixture(scope="module")
def model(golden: MediaGolden) -> Model:
    return Model.load(golden.target, golden.drafter)


def text(model: Model, prompt: list[int], media: Sequence[object] | None = None, **options: Any) -> list[int]:
    given: dict[str, Any] = {
        "media": pictures() if media is None else media,
        "image_tokens": BUDGET,
        "stop": (),
    } | options
    rounds = model.rounds(prompt, max_tokens=24, **given)
    return [token for one in rounds for token in one.tokens]


@pytest.mark.parametrize("drafts", [0, 3, "auto"])
def test_text_about_pictures_is_the_references_whatever_is_drafted(
    golden: MediaGolden, model: Model, drafts: int | str
) -> None:
    assert text(model, golden.ids("prompt"), num_draft_tokens=drafts) == golden.ids("greedy")


def test_text_of_experts_about_pictures_is_the_references(tmp_path: Path) -> None:
    """The 26B's; all else about its pictures is that of the 31B."""
    golden = build("26b", tmp_path / "26b")
    model = Model.load(golden.target, golden.drafter)
    assert text(model, golden.ids("prompt"), num_draft_tokens=3) == golden.ids("greedy")


def test_a_hostile_drafter_changes_no_text_after_a_picture(golden: MediaGolden, model: Model) -> None:
    hostile = Model(
        Decoder(model._decoder.target, Adversary(golden.ids("greedy")[1], 128), compiled="never"), model.config, None
    )
    prompt, plain = golden.ids("prompt"), text(model, golden.ids("prompt"), num_draft_tokens=0, temp=0.8, seed=5)
    assert text(hostile, prompt, num_draft_tokens=2) == golden.ids("greedy")
    assert text(hostile, prompt, num_draft_tokens=8, temp=0.8, seed=5) == plain


def test_a_sampled_text_is_the_same_with_and_without_drafts(golden: MediaGolden, model: Model) -> None:
    sampled = [text(model, golden.ids("prompt"), num_draft_tokens=n, temp=0.8, seed=5) for n in (0, 4)]
    assert sampled[0] == sampled[1]


def test_a_failure_while_a_picture_is_read_is_told_once(
    golden: MediaGolden, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("Insufficient Memory")

    model._decoder.forget()
    model.media.forget()
    monkeypatch.setitem(model.media.__dict__, "_vision", fail)
    with pytest.raises(DeviceFailed) as failure:
        text(model, golden.ids("prompt"))
    assert str(failure.value).count("MLX failed") == 1


@pytest.mark.parametrize("chunk", [7, 64, 90])
def test_chunks_cut_no_picture(golden: MediaGolden, chunk: int) -> None:
    model = Model.load(golden.target, golden.drafter)
    model._decoder.chunk = chunk
    assert text(model, golden.ids("prompt")) == golden.ids("greedy")


def test_the_next_turn_reads_no_picture_again_and_another_picture_is_no_prefix(
    golden: MediaGolden, model: Model
) -> None:
    prompt, greedy = golden.ids("prompt"), golden.ids("greedy")
    said = text(model, prompt)
    whole = len(golden.ids("whole"))
    again = text(model, [*prompt, *said, 110, 111, 112])
    assert model._decoder.reused == whole + len(said) - 1
    fresh = Model.load(golden.target, golden.drafter)
    assert again == text(fresh, [*prompt, *said, 110, 111, 112])
    swapped = text(model, prompt, [pictures()[1], pictures()[0]])
    assert model._decoder.reused <= prompt.index(IMAGE) + 1  # up to the first picture
    assert swapped == text(fresh, prompt, [pictures()[1], pictures()[0]])
    assert swapped != greedy


def test_paths_bytes_and_pictures_are_alike(golden: MediaGolden, model: Model, tmp_path: Path) -> None:
    files = []
    for i, picture in enumerate(pictures()):
        files.append(tmp_path / f"{i}.png")
        picture.save(files[-1])
    assert text(model, golden.ids("prompt"), list(files)) == golden.ids("greedy")
    assert text(model, golden.ids("prompt"), [file.read_bytes() for file in files]) == golden.ids("greedy")


def test_no_picture_stays_decoded_in_memory(golden: MediaGolden) -> None:
    gc.collect()
    before = [one for one in gc.get_objects() if type(one) is Picture]  # of other tests
    for media in (Media(read_config(golden.target)), Sent()):
        files = []
        for i, picture in enumerate(pictures()):
            buffer = io.BytesIO()
            picture.save(buffer, "TIFF")
            files.append(MediaFile(f"{i}.tiff", "image/tiff", buffer.getvalue()))
        prepared = [media.prepare(file, BUDGET) for file in files]
        as_sent([{"role": "user", "content": [{"type": "image", "image": file} for file in files]}])
        assert [media.prepare(file, BUDGET) for file in files] == prepared
        decoded = [one for one in gc.get_objects() if type(one) is Picture]
        assert not [one for one in decoded if not any(one is other for other in before)]


def test_placeholders_and_media_are_as_many(model: Model) -> None:
    with pytest.raises(ValueError, match="1 placeholders for 2 images"):
        model.rounds([2, IMAGE, 5], max_tokens=1, media=pictures(), image_tokens=70)
    with pytest.raises(ValueError, match="1 placeholders for 0 images"):
        model.rounds([2, IMAGE, 5], max_tokens=1)
    with pytest.raises(ValueError, match="70, 140, 280, 560, 1120"):
        model.rounds([2, IMAGE, 5], max_tokens=1, media=pictures()[:1], image_tokens=100)
    with pytest.raises(ValueError, match="prompt ids must lie in"):
        model.rounds([2, -7, 5], max_tokens=1)
    with pytest.raises(UsageError, match=r"There is no file nowhere\.png"):
        model.rounds([2, IMAGE], max_tokens=1, media=["nowhere.png"])
    with pytest.raises(UsageError, match="is neither a readable image nor audio"):
        model.rounds([2, IMAGE], max_tokens=1, media=[b"some text"])


def test_a_prompt_that_ends_in_a_picture_is_answered(golden: MediaGolden, model: Model) -> None:
    assert len(text(model, [2, 5, IMAGE], pictures()[:1])) == 24


def test_a_text_model_says_that_it_sees_nothing() -> None:
    model = Model.load(FOLDER / "e2b" / "target")
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9)).save(buffer, "PNG")
    with pytest.raises(LoadError, match="no vision tower"):
        model.rounds([2, IMAGE], max_tokens=1, media=[buffer.getvalue()])


def test_a_question_without_a_picture_reads_no_tower(golden: MediaGolden, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise AssertionError("the tower is read")

    monkeypatch.setattr("mlxmtp.models.load.load_vision", refuse)
    model = Model.load(golden.target, golden.drafter)
    assert len([*model.rounds([2, 5, 9], max_tokens=3, num_draft_tokens=0, stop=())]) == 3
    with pytest.raises(AssertionError, match="the tower is read"):
        text(model, golden.ids("prompt"))


def test_pictures_beside_each_other_without_marks_keep_their_places(golden: MediaGolden, model: Model) -> None:
    prepared = [model.media.prepare(one, BUDGET) for one in pictures()]
    soft = model.media.soft([2, *prepared[0].ids, *prepared[1].ids, 5], prepared)
    assert [(one.start, one.end) for one in soft] == [(1, 61), (61, 121)]


@pytest.mark.parametrize(("said", "most"), [(70, 70), (280, 280), (71, 280), ("70", 280), (None, 280)])
def test_a_picture_has_at_most_the_tokens_that_the_checkpoint_was_published_with(
    golden: MediaGolden, said: object, most: int
) -> None:
    config = read_config(golden.target)
    media = Media(replace(config, raw={**config.raw, "vision_soft_tokens_per_image": said}))
    assert most // 2 < media.prepare(pictures()[0]).count <= most
    assert 70 < media.prepare(pictures()[0], 140).count <= 140
