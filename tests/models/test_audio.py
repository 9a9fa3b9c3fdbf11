"""Sounds: features, counts, soft tokens and logits are those of the reference (`tests/goldens/media/*/hearing.*`)."""

from __future__ import annotations

import io
from pathlib import Path
from typing import cast

import mlx.core as mx
import numpy as np
import pytest
import soundfile

from mlxmtp.engine.media import Media, Medium, expanded
from mlxmtp.errors import LoadError
from mlxmtp.media.sound import mel_features
from mlxmtp.models.config import read_config
from mlxmtp.models.kv_cache import KVCache, PromptView
from mlxmtp.models.load import load_audio, load_target
from mlxmtp.models.towers import audio_tensors, stored_audio
from scripts.goldens.pictures import SOUNDS, sound
from tests.golden import relative_error
from tests.media_golden import BUDGET, MediaGolden, build, pictures
from tests.text_checkpoint import write_json

CLOSE = 2e-5
LOGITS_CLOSE = 2e-4


@pytest.fixture(scope="module", params=["e2b", "12b"])
def golden(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> MediaGolden:
    return build(request.param, tmp_path_factory.mktemp("media") / request.param, record="hearing")


def wav(samples: np.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, 16_000, format="WAV", subtype="FLOAT")
    return file.getvalue()


def prepared(golden: MediaGolden, media: Media) -> list[Medium]:
    first, second = (media.prepare(wav(one)) for one in SOUNDS)
    return [first, media.prepare(pictures()[0], BUDGET), second]


def test_features_are_those_of_the_reference(golden: MediaGolden) -> None:
    medium = Media(read_config(golden.target)).prepare(wav(SOUNDS[1]))
    np.testing.assert_allclose(medium.data, np.array(golden.arrays["features"]), rtol=0, atol=1e-6)


def test_counts_are_those_of_the_reference(golden: MediaGolden) -> None:
    for samples, count in golden.facts.get("counts", {}).items():
        assert -(-len(mel_features(sound(int(samples), 1))) // 4) == count, samples


def test_soft_tokens_are_those_of_the_reference_and_see_no_key_more(golden: MediaGolden) -> None:
    media = Media(read_config(golden.target))
    for i, samples in enumerate(SOUNDS):
        medium = media.prepare(wav(samples))
        assert medium.count == golden.arrays[f"soft.{i}"].shape[0]
        assert relative_error(media._rows(medium), golden.arrays[f"soft.{i}"]) < CLOSE
    if golden.family == "e2b":
        rows = media._rows(media.prepare(wav(SOUNDS[0])))
        assert relative_error(rows, golden.arrays["behind.0"]) > 100 * CLOSE


def test_a_longer_sound_begins_with_the_soft_tokens_of_its_beginning(golden: MediaGolden) -> None:
    """Nothing looks ahead but the convolutions, by three frames of ten milliseconds."""
    tower = load_audio(read_config(golden.target))
    assert tower is not None
    if golden.family == "e2b":
        mel = mx.array(mel_features(sound(40_000, 3)))
        whole, part = tower(mel), tower(mel[:120])
        assert relative_error(part[:28], whole[:28]) < CLOSE
        assert relative_error(part[:30], whole[2:32]) > 0.1


def test_logits_follow_the_reference_and_sounds_do_not_see_ahead(golden: MediaGolden) -> None:
    target = load_target(golden.target)
    media = Media(target.config)
    three = prepared(golden, media)
    prompt = expanded(golden.ids("prompt"), three, media.marks)
    runs = [one if one >= 0 else None for one in prompt]
    assert runs == [None if one in (122, 125) else one for one in golden.ids("whole")]
    h = target.embed(mx.array([max(token, 0) for token in prompt]))
    soft = media.soft(prompt, three)
    for one in soft:
        h[one.start : one.end] = one.rows()
    assert [one.block for one in soft] == [False, golden.family == "12b", False]
    cache = KVCache(target.cache_spec, target.dtype)
    cache.reserve(len(prompt))
    blocks = [(one.start, one.end) for one in soft if one.block]
    view = PromptView(target.cache_spec, cache.buffers, 0, len(prompt), blocks)
    logits = target.logits(target.hidden(mx.array([max(token, 0) for token in prompt]), view, embeddings=h))
    kept = mx.arange(120)  # suppressed ones are far below in ours
    got = logits[-12:][:, kept]
    assert relative_error(got, golden.arrays["logits"][:, kept]) < LOGITS_CLOSE
    if golden.family == "12b":
        assert relative_error(got, golden.arrays["blocks"][:, kept]) > 5 * LOGITS_CLOSE


def test_towers_are_told_by_their_tensors_not_by_the_configuration(golden: MediaGolden, tmp_path: Path) -> None:
    config = read_config(golden.target)
    table = {key: value for key, value in config.raw.items() if key != "audio_config"}
    for file in golden.target.iterdir():
        (tmp_path / file.name).symlink_to(file.resolve())
    (tmp_path / "config.json").unlink()
    write_json(tmp_path / "config.json", table)
    found = stored_audio(read_config(tmp_path))
    assert found is not None
    if golden.family == "12b":  # has the published sizes
        assert load_audio(read_config(tmp_path)) is not None
    else:
        assert (found.hidden, found.layers, found.channels) == (1024, 12, (128, 32))
        with pytest.raises(LoadError, match="and should be"):
            load_audio(read_config(tmp_path))


@pytest.mark.parametrize("change", [{"attention_context_right": 3}, {"num_attention_heads": 0}, {"hidden_size": "x"}])
def test_sizes_that_no_gemma_has_are_refused(golden: MediaGolden, tmp_path: Path, change: dict[str, object]) -> None:
    if golden.family == "12b":
        pytest.skip("has no tower")
    table = dict(read_config(golden.target).raw)
    for file in golden.target.glob("*.safetensors*"):
        (tmp_path / file.name).symlink_to(file.resolve())
    write_json(tmp_path / "config.json", table | {"audio_config": table["audio_config"] | change})
    with pytest.raises(LoadError, match="audio_config of"):
        stored_audio(read_config(tmp_path))


def test_mlx_conversions_order_convolutions_otherwise_and_may_quantize(golden: MediaGolden, tmp_path: Path) -> None:
    """The tower of a conversion: names without `model.`, channels last, matrices of whole groups in 8 bits."""
    if golden.family == "12b":
        pytest.skip("has no convolutions")
    config = read_config(golden.target)
    audio = stored_audio(config)
    assert audio is not None
    index = {tensor.name: tensor for tensor in audio_tensors(audio)}
    made: dict[str, mx.array] = {}
    for file in golden.target.glob("*.safetensors"):
        for name, value in cast("dict[str, mx.array]", mx.load(str(file))).items():
            tensor = index.get(name.removeprefix("model."))
            if tensor is None:
                made[name] = value
            elif tensor.name.endswith(("conv.weight", "conv1d.weight")):
                made[tensor.name] = mx.moveaxis(value, 1, -1)
            elif tensor.quantizable and value.shape[-1] % 32 == 0:
                stem = tensor.name.removesuffix(".weight")
                parts = mx.quantize(value, group_size=32, bits=8)
                made |= {f"{stem}.{part}": one for part, one in zip(("weight", "scales", "biases"), parts, strict=True)}
            else:
                made[tensor.name] = value
    mx.save_safetensors(str(tmp_path / "model.safetensors"), made)
    write_json(tmp_path / "config.json", dict(config.raw))
    tower = load_audio(read_config(tmp_path))
    assert tower is not None
    got = tower(mx.array(mel_features(SOUNDS[0])))
    assert relative_error(got, golden.arrays["soft.0"]) < 0.05
