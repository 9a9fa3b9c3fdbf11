"""Texts about sounds: the reference's, with any drafts, and never another sound's."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import soundfile

from mlxmtp.decode.decoder import Decoder
from mlxmtp.engine.model import Model
from mlxmtp.errors import LoadError, UsageError
from scripts.goldens.pictures import SOUNDS, sound
from tests.golden import FOLDER
from tests.media_golden import AUDIO, BUDGET, IMAGE, MediaGolden, build, pictures
from tests.networks import Adversary


@pytest.fixture(scope="module", params=["e2b", "12b"])
def golden(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> MediaGolden:
    return build(request.param, tmp_path_factory.mktemp("media") / request.param, record="hearing")


@pytest.fixture(scope="module")
def model(golden: MediaGolden) -> Model:
    return Model.load(golden.target, golden.drafter)


def wav(samples: np.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, 16_000, format="WAV", subtype="FLOAT")
    return file.getvalue()


def text(model: Model, prompt: list[int], media: Sequence[object] | None = None, **options: Any) -> list[int]:
    first, second = map(wav, SOUNDS)
    given: dict[str, Any] = {
        "media": [first, pictures()[0], second] if media is None else media,
        "image_tokens": BUDGET,
        "stop": (),
    } | options
    return [token for one in model.rounds(prompt, max_tokens=24, **given) for token in one.tokens]


@pytest.mark.parametrize("drafts", [0, 3, "auto"])
def test_text_about_sounds_is_the_references_whatever_is_drafted(
    golden: MediaGolden, model: Model, drafts: int | str
) -> None:
    assert text(model, golden.ids("prompt"), num_draft_tokens=drafts) == golden.ids("greedy")


def test_a_hostile_drafter_changes_no_text_after_a_sound(golden: MediaGolden, model: Model) -> None:
    hostile = Model(
        Decoder(model._decoder.target, Adversary(golden.ids("greedy")[1], 128), compiled="never"), model.config, None
    )
    assert text(hostile, golden.ids("prompt"), num_draft_tokens=4) == golden.ids("greedy")
    sampled = [text(one, golden.ids("prompt"), num_draft_tokens=4, temp=0.8, seed=5) for one in (hostile, model)]
    assert sampled[0] == sampled[1]


def test_a_sampled_text_is_the_same_with_and_without_drafts(golden: MediaGolden, model: Model) -> None:
    sampled = [text(model, golden.ids("prompt"), num_draft_tokens=n, temp=0.8, seed=5) for n in (0, 4)]
    assert sampled[0] == sampled[1]


def test_chunks_may_cut_a_sound(golden: MediaGolden) -> None:
    model = Model.load(golden.target, golden.drafter)
    model._decoder.chunk = 7
    assert text(model, golden.ids("prompt")) == golden.ids("greedy")


def test_the_next_turn_reads_no_sound_again_and_another_sound_is_no_prefix(golden: MediaGolden, model: Model) -> None:
    prompt = golden.ids("prompt")
    said = text(model, prompt)
    again = text(model, [*prompt, *said, 110, 111, 112])
    assert model._decoder.reused == len(golden.ids("whole")) + len(said) - 1
    fresh = Model.load(golden.target, golden.drafter)
    assert again == text(fresh, [*prompt, *said, 110, 111, 112])
    other = [wav(-SOUNDS[0]), pictures()[0], wav(SOUNDS[1])]
    swapped = text(model, prompt, other)
    assert swapped == text(fresh, prompt, other)


def test_long_sounds_are_pieces_with_marks_of_their_own(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlxmtp.media.sound.PIECE", 16_000 * 8)  # instead of 30 s, which the context does not hold
    samples = sound(16_000 * 12, 1)
    samples[16_000 * 6 : 16_000 * 6 + 3200] = 0
    whole = model.media.prepare(wav(samples))
    cut = 16_000 * 6 + 2400  # the last of the quiet places
    first, second = whole.pieces
    assert first.data.shape == model.media.prepare(wav(samples[:cut])).data.shape
    assert (first.digest, second.digest) == tuple(
        model.media.prepare(wav(one)).digest for one in (samples[:cut], samples[cut:])
    )
    assert "hears 8 s at once: it is read in 2 pieces, cut where it is quiet." in whole.notes[-1]
    assert whole.count == first.count + second.count
    split = text(model, [2, AUDIO, AUDIO, 5], [wav(samples[:cut]), wav(samples[cut:])], num_draft_tokens=0)
    assert text(model, [2, AUDIO, 5], [wav(samples)], num_draft_tokens=0) == split


def test_placeholders_and_sounds_are_as_many_and_of_one_kind(model: Model) -> None:
    with pytest.raises(ValueError, match="0 placeholders for 1 images and audio files"):
        model.rounds([2, 5], max_tokens=1, media=[wav(SOUNDS[0])])
    with pytest.raises(ValueError, match="which is audio, is one for image"):
        model.rounds([2, IMAGE, 5], max_tokens=1, media=[wav(SOUNDS[0])])
    with pytest.raises(UsageError, match="too short"):
        model.rounds([2, AUDIO, 5], max_tokens=1, media=[wav(SOUNDS[0][:80])])


def test_a_model_without_the_tower_says_so_and_names_those_that_hear() -> None:
    model = Model.load(FOLDER / "e2b" / "target")
    with pytest.raises(LoadError, match="cannot hear the image or audio file: take e2b, e4b or 12b"):
        model.rounds([2, AUDIO], max_tokens=1, media=[wav(SOUNDS[0])])
