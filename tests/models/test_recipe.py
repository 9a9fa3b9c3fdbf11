"""Which tensor gets how many bits, on the five full-size configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlxmtp.convert.recipe import Recipe, make_recipe
from mlxmtp.convert.tasks import output_config
from mlxmtp.errors import UsageError
from mlxmtp.machine.memory import weight_bytes
from mlxmtp.models.config import ModelConfig, read_config
from mlxmtp.models.tensors import NORM, quantization_of, tensors
from tests.full_size import PAIRS, write


def pair(tmp_path: Path, family: str) -> tuple[ModelConfig, ModelConfig]:
    target, drafter = write(tmp_path, family)
    return read_config(target), read_config(drafter)


def bits(recipe: Recipe, config: ModelConfig) -> dict[str, set[tuple[int, int, str] | None]]:
    """What each kind of module is packed to, as config.json will say it and every loader reads it."""
    block = recipe.block(config)
    found: dict[str, set[Any]] = {}
    for tensor in tensors(config):
        if not tensor.quantizable and tensor.kind == "router":
            continue
        own = quantization_of(tensor, block)
        found.setdefault(tensor.kind, set()).add(own and (own.bits, own.group_size, own.mode))
    return found


@pytest.mark.parametrize("family", PAIRS)
def test_the_default_recipe(tmp_path, family):
    target, _ = pair(tmp_path, family)
    got = bits(make_recipe({}), target)
    assert got.pop(NORM) == {None}
    wanted: dict[str, set[Any]] = {
        "embedding": {(6, 64, "affine")}, "attention": {(4, 64, "affine")}, "mlp": {(4, 64, "affine")},
    }  # fmt: skip
    if family in ("e2b", "e4b"):
        wanted |= {"per-layer embedding": {(8, 64, "affine")}, "per-layer projections": {None}}
    if family == "26b":
        wanted |= {"router": {(8, 64, "affine")}, "experts": {(4, 64, "affine")}}
    assert got == wanted


@pytest.mark.parametrize("asked", [4, 5, 6, 8])
def test_nothing_gets_fewer_bits_than_asked_for(tmp_path, asked):
    for family in ("e2b", "26b"):
        target, _ = pair(tmp_path / family, family)
        got = bits(make_recipe({"bits": asked}), target)
        for kind, least in {"embedding": 6, "per-layer embedding": 8, "router": 8, "experts": 4, "mlp": 4}.items():
            assert {own and own[0] for own in got.get(kind, set())} <= {max(asked, least)}, kind


def test_floating_point_modes_leave_their_own_8_bits_to_affine_where_it_matters(tmp_path):
    target, _ = pair(tmp_path, "e2b")
    for mode, group, width in (("mxfp4", 32, 4), ("nvfp4", 16, 4), ("mxfp8", 32, 8)):
        got = bits(make_recipe({"mode": mode}), target)
        assert got["mlp"] == got["attention"] == {(width, group, mode)}
        assert got["per-layer embedding"] == {(8, 64, "affine")}
        assert got["embedding"] == {(6, 64, "affine") if width == 4 else (8, 32, "mxfp8")}


def test_weights_trained_for_it_are_packed_in_groups_of_32(tmp_path):
    target, _ = pair(tmp_path, "e4b")
    assert bits(make_recipe({}, qat=True), target)["mlp"] == {(4, 32, "affine")}
    assert bits(make_recipe({"group_size": 64}, qat=True), target)["mlp"] == {(4, 64, "affine")}
    assert bits(make_recipe({"mode": "nvfp4"}, qat=True), target)["mlp"] == {(4, 16, "nvfp4")}


@pytest.mark.parametrize("family", PAIRS)
@pytest.mark.parametrize(
    ("flags", "large"),
    [({}, 4), ({"bits": 8}, 8), ({"bits": 16}, 16), ({"draft_bits": 16}, 16), ({"draft_bits": 8}, 8)],
    ids=str,
)
def test_large_drafters_are_packed_and_small_ones_only_if_asked_to(tmp_path, family, flags, large):
    _, drafter = pair(tmp_path, family)
    recipe = make_recipe(flags).for_drafter(drafter)
    wanted = flags.get("draft_bits", 16) if family in ("e2b", "e4b") else large
    got = bits(recipe, drafter)
    assert got["embedding"] == got["mlp"] == got["attention"] == {None if wanted == 16 else (wanted, 64, "affine")}
    if "head" in got:  # its token ordering is a list of numbers
        assert None in got["head"]


@pytest.mark.parametrize("family", PAIRS)
def test_the_block_is_short_and_says_all(tmp_path, family):
    """Memory is computed from config.json alone, so it must tell what is not packed, too."""
    target, _ = pair(tmp_path, family)
    recipe = make_recipe({})
    block = output_config(target, recipe)["quantization"]
    assert (block["bits"], block["group_size"], block["mode"]) == (4, 64, "affine")
    for tensor in tensors(target):
        assert quantization_of(tensor, block) == recipe.quantization(tensor, drafter=False)
    raw = {**target.raw, "quantization": block}
    packed = ModelConfig(target.folder, target.model_type, raw, target.text)
    stored = 0
    for tensor in tensors(target):
        own = recipe.quantization(tensor, drafter=False)
        stored += 2 * tensor.size if own is None else own.nbytes(tensor)
    assert weight_bytes(packed, cpu=False) == pytest.approx(stored, rel=1e-3)


def test_no_packing_leaves_no_block(tmp_path):
    target, drafter = pair(tmp_path, "e2b")
    recipe = make_recipe({"bits": 16})
    assert "quantization" not in output_config(target, recipe)
    assert "quantization" not in output_config(drafter, recipe.for_drafter(drafter))


def test_the_recipe_in_words(tmp_path):
    target, _ = pair(tmp_path, "e2b")
    assert make_recipe({"dtype": "float16"}).described(target) == {
        "embedding": "6 bit, groups of 64",
        "attention": "4 bit, groups of 64",
        "mlp": "4 bit, groups of 64",
        "per-layer projections": "float16",
        "per-layer embedding": "8 bit, groups of 64",
    }


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"bits": 3}, "--q-bits must be 4, 5, 6, 8 or 16, not 3"),
        ({"group_size": 48}, "--q-group-size must be 32, 64 or 128, not 48"),
        ({"mode": "int4"}, "--q-mode must be one of affine, mxfp4, mxfp8, nvfp4, not 'int4'"),
        ({"mode": "mxfp4", "bits": 8}, "mxfp4 has 4 bits and groups of 32"),
        ({"mode": "nvfp4", "group_size": 32}, "nvfp4 has 4 bits and groups of 16"),
        ({"draft_bits": 5}, "--draft-bits must be 4, 8 or 16, not 5"),
        ({"dtype": "int8"}, "--dtype must be one of bfloat16, float16, float32, not 'int8'"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(flags, said):
    with pytest.raises(UsageError, match=said):
        make_recipe(flags)
