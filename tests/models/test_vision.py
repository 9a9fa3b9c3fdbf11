"""Pictures: pixels, soft tokens, masks and texts are those of the reference (`tests/goldens/media`)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from mlxmtp.engine.media import Media, expanded
from mlxmtp.errors import LoadError
from mlxmtp.media.image import open_picture, target_size
from mlxmtp.models.config import read_config
from mlxmtp.models.kv_cache import KVCache, PromptView, visible
from mlxmtp.models.load import load_target
from mlxmtp.models.towers import stored_audio, stored_vision, vision_tensors
from tests.golden import FOLDER, relative_error
from tests.media_golden import BUDGET, FAMILIES, MediaGolden, build, pictures

CLOSE = 2e-5
LOGITS_CLOSE = 2e-4  # sums in another order, through six layers of sharp attention


@pytest.fixture(scope="module", params=FAMILIES)
def golden(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> MediaGolden:
    return build(request.param, tmp_path_factory.mktemp("media") / request.param)


def test_pixels_are_those_of_the_reference_bit_for_bit(golden: MediaGolden) -> None:
    for picture, (rows, columns, _, known) in zip(pictures(), golden.facts["pixels"], strict=True):
        pixels = open_picture(picture).pixels(BUDGET, 48)
        assert pixels.shape == (rows, columns, 3)
        assert hashlib.sha256(pixels.tobytes()).hexdigest() == known


def test_soft_tokens_are_those_of_the_reference(golden: MediaGolden) -> None:
    media = Media(read_config(golden.target))
    for i, picture in enumerate(pictures()):
        medium = media.prepare(picture, BUDGET)
        wanted = golden.arrays[f"soft.{i}"]
        assert medium.count == wanted.shape[0]
        assert relative_error(media._rows(medium), wanted) < CLOSE


@pytest.mark.parametrize("window", [None, 128], ids=["longer than the window", "within the window"])
def test_logits_follow_the_rule_of_the_masks_and_no_other(
    golden: MediaGolden, window: int | None, tmp_path: Path
) -> None:
    made = golden if window is None else build(golden.family, tmp_path / "wide", window=window)
    prefix = "" if window is None else "wide."
    target = load_target(made.target)
    media = Media(target.config)
    prepared = [media.prepare(one, BUDGET) for one in pictures()]
    prompt = expanded(golden.ids("prompt"), prepared, media.marks)
    soft = media.soft(prompt, prepared)
    assert [122 if token < 0 else token for token in prompt] == golden.ids("whole")
    ids = mx.array([max(token, 0) for token in prompt])
    h = target.embed(ids)
    for one in soft:
        h[one.start : one.end] = one.rows()
    cache = KVCache(target.cache_spec, target.dtype)
    cache.reserve(len(ids))
    blocks = [(one.start, one.end) for one in soft if one.block]
    assert bool(blocks) == (golden.family != "e2b")
    view = PromptView(target.cache_spec, cache.buffers, 0, len(ids), blocks)
    logits = target.logits(target.hidden(ids, view, embeddings=h))
    kept = mx.arange(120)  # suppressed ones are far below in ours
    got, wanted = logits[-12:][:, kept], made.arrays[f"{prefix}logits"][:, kept]
    assert relative_error(got, wanted) < LOGITS_CLOSE
    for wrong in ("causal", "gemma3") if blocks else ():
        assert relative_error(got, made.arrays[f"{prefix}{wrong}"][:, kept]) > 5 * LOGITS_CLOSE


def test_a_window_hides_what_lies_behind_and_not_what_lies_ahead() -> None:
    from mlxmtp.models.kv_cache import with_blocks

    seen = visible(mx.arange(2, 8), mx.arange(8), 3)
    blocks = np.array(with_blocks(seen, [(1, 5)], 2, 3))
    rows = [[k for k in range(8) if row[k]] for row in blocks]
    assert rows == [[0, 1, 2], [1, 2, 3, 4, 5, 6], [2, 3, 4, 5, 6], [3, 4, 5, 6], [4, 5, 6], [5, 6, 7]]


@pytest.mark.parametrize(
    ("width", "height", "sizes"),
    [
        (1, 1, [(384, 384), (528, 528), (768, 768), (1104, 1104), (1584, 1584)]),
        (640, 480, [(432, 336), (624, 480), (912, 672), (1296, 960), (1824, 1344)]),
        (1920, 1080, [(528, 288), (720, 384), (1056, 576), (1488, 816), (2112, 1200)]),
        (2480, 3508, [(336, 432), (432, 672), (672, 912), (912, 1344), (1344, 1872)]),
    ],
)
def test_every_budget_gives_the_published_sizes(width: int, height: int, sizes: list[tuple[int, int]]) -> None:
    found = [target_size(height, width, budget) for budget in (70, 140, 280, 560, 1120)]
    assert [(columns, rows) for rows, columns in found] == sizes


def test_very_long_pictures_keep_their_budget() -> None:
    assert target_size(10, 3000, 280) == (48, 13440)
    assert target_size(4000, 30, 280) == (9264, 48)
    with pytest.raises(ValueError, match="70, 140, 280, 560, 1120 tokens, not 300"):
        target_size(10, 10, 300)


def quantized(golden: MediaGolden, folder: Path, bits: int) -> tuple[Path, Path]:
    """Write the checkpoint with matrices of the tower packed, and with the numbers that they stand for, as MLX does."""
    config = read_config(golden.target)
    vision = stored_vision(config)
    assert vision is not None
    kinds = {tensor.name: tensor for tensor in vision_tensors(vision)}
    made: tuple[dict[str, mx.array], dict[str, mx.array]] = ({}, {})
    for name, value in stored(golden.target):
        tensor = kinds.get(name.removeprefix("model."))
        if tensor is None or not tensor.quantizable or value.shape[-1] % 32:
            for one in made:
                one[name] = value
            continue
        parts = mx.quantize(value.astype(mx.float32), group_size=32, bits=bits)  # scales that are not rounded
        stem = tensor.name.removesuffix(".weight")
        made[0].update({f"{stem}.{part}": one for part, one in zip(("weight", "scales", "biases"), parts, strict=True)})
        made[1][name] = mx.dequantize(*parts, group_size=32, bits=bits)
    folders = folder / "packed", folder / "plain"
    for dest, tensors in zip(folders, made, strict=True):
        dest.mkdir()
        mx.save_safetensors(str(dest / "model.safetensors"), tensors)
        (dest / "config.json").write_bytes((golden.target / "config.json").read_bytes())
    return folders


def stored(folder: Path) -> Iterator[tuple[str, mx.array]]:
    """Yield the tensors that the index names: files hold stand-ins of others."""
    places = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    files = {file: cast("dict[str, mx.array]", mx.load(str(folder / file))) for file in set(places.values())}
    yield from ((name, files[file][name]) for name, file in places.items())


def test_quantized_towers_compute_with_the_numbers_that_are_packed(golden: MediaGolden, tmp_path: Path) -> None:
    """Those of the 26B's golden are such that 4 bits hold them exactly, so the reference's soft tokens are wanted."""
    packed, plain = (Media(read_config(one)) for one in quantized(golden, tmp_path, 4))
    for i, picture in enumerate(pictures()):
        rows, wanted = (media._rows(media.prepare(picture, BUDGET)) for media in (packed, plain))
        assert relative_error(rows, wanted) < CLOSE
        assert (relative_error(rows, golden.arrays[f"soft.{i}"]) < CLOSE) == (golden.family == "26b")


def test_towers_of_a_merged_adapter_may_have_its_prefix(golden: MediaGolden, tmp_path: Path) -> None:
    tensors = {f"base_model.model.{name}": value for name, value in stored(golden.target)}
    mx.save_safetensors(str(tmp_path / "model.safetensors"), tensors)
    (tmp_path / "config.json").write_bytes((golden.target / "config.json").read_bytes())
    config = read_config(tmp_path)
    media = Media(config)
    rows = media._rows(media.prepare(pictures()[0], BUDGET))
    assert relative_error(rows, golden.arrays["soft.0"]) < CLOSE
    assert stored_audio(config) == stored_audio(read_config(golden.target))


def test_a_model_without_a_tower_refuses_pictures() -> None:
    media = Media(read_config(FOLDER / "31b" / "target"))  # has names of one, and no vision_config
    with pytest.raises(LoadError, match="no vision tower, so it cannot see the image"):
        media.prepare(Image.new("RGB", (3, 2)))


def test_a_tensor_that_is_missing_is_named(golden: MediaGolden, tmp_path: Path) -> None:
    folder = build(golden.family, tmp_path / "short").target
    unified = golden.family == "12b"
    name = "vision_embedder.pos_norm.bias" if unified else "vision_tower.encoder.layers.1.self_attn.k_norm.weight"
    index = folder / "model.safetensors.index.json"
    table = json.loads(index.read_text())
    del table["weight_map"][f"model.{name}"]
    index.write_text(json.dumps(table))
    media = Media(read_config(folder))
    with pytest.raises(LoadError, match=f"lacks {name}"):
        media._rows(media.prepare(pictures()[0], BUDGET))
