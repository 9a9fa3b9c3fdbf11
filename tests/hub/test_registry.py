from __future__ import annotations

import pytest

from mlxmtp.hub.registry import entries, find_entry, known_names

# Copies of published figures: bytes of the weight files and where they are.
PUBLISHED = {
    "e2b": ("mlx-community/gemma-4-e2b-it-4bit", 3_610_000_000),
    "e4b": ("mlx-community/gemma-4-e4b-it-4bit", 5_150_000_000),
    "12b": ("mlx-community/gemma-4-12B-it-4bit", 6_740_000_000),
    "26b": ("mlx-community/gemma-4-26b-a4b-it-4bit", 15_600_000_000),
    "31b": ("mlx-community/gemma-4-31b-it-4bit", 18_400_000_000),
    "e2b:bf16": ("google/gemma-4-E2B-it", 10_246_621_918),
    "e4b:bf16": ("google/gemma-4-E4B-it", 15_992_595_884),
    "26b:bf16": ("google/gemma-4-26B-A4B-it", 51_612_009_916),
    "31b:bf16": ("google/gemma-4-31B-it", 62_546_338_248),
}
DRAFTERS = {"e2b": 157_565_344, "e4b": 159_138_208, "12b:bf16": 845_719_296, "31b": 939_042_560}


@pytest.mark.parametrize("name", PUBLISHED)
def test_targets(name: str) -> None:
    entry = find_entry(name)
    assert entry is not None
    assert (entry.target.repo, entry.target.size) == PUBLISHED[name]


@pytest.mark.parametrize("name", DRAFTERS)
def test_drafters(name: str) -> None:
    entry = find_entry(name)
    assert entry is not None
    assert entry.drafter.size == DRAFTERS[name]
    assert entry.drafter.repo.split("/")[1].lower().startswith(f"gemma-4-{name.partition(':')[0]}")


def test_every_model_has_its_variants_and_no_name_twice() -> None:
    names = [entry.name for entry in entries()]
    assert len(names) == len(set(names))
    for alias in known_names()[1:]:
        assert {alias, *(f"{alias}:{variant}" for variant in ("4bit", "8bit", "bf16", "qat"))} <= set(names)


def test_a_bare_alias_is_the_four_bit_variant_and_case_does_not_matter() -> None:
    bare, named, repo = find_entry("E4B"), find_entry("e4b:4bit"), find_entry("MLX-community/gemma-4-E4b-it-4bit")
    assert bare is not None
    assert named is not None
    assert bare.target == named.target
    assert repo == bare
    assert find_entry("e5b") is None
