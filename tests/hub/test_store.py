from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from mlxmtp.errors import LoadError, ModelNotFound
from mlxmtp.hub.cache import Record
from mlxmtp.hub.inventory import default
from mlxmtp.hub.registry import find_entry
from mlxmtp.hub.store import Store, best_fit, missing_sentence
from mlxmtp.machine.chip import this_machine
from mlxmtp.settings import Places
from tests.text_checkpoint import write_json

GB = 10**9


@pytest.fixture
def store(tmp_path: Path) -> Store:
    places = Places(tmp_path / "config.toml", tmp_path / "data", tmp_path / "cache", tmp_path / "own")
    return Store(places, {"mine": "e2b", "org": "a/b"})


def put_in_cache(tmp_path: Path, repo: str, *files: str) -> Path:
    base = tmp_path / "cache" / f"models--{repo.replace('/', '--')}"
    folder = base / "snapshots" / "abc"
    folder.mkdir(parents=True)
    (base / "refs").mkdir()
    (base / "refs" / "main").write_text("abc")
    for name in files:
        (folder / name).write_text("{}")
    return folder


def test_the_sentence_of_a_missing_model() -> None:
    entry = find_entry("12b")
    assert entry is not None
    large, small = (replace(this_machine(), memory=memory * GB, usable=memory * GB * 2 // 3) for memory in (32, 8))
    assert missing_sentence(entry, large) == "Model '12b' is not on this machine. Run: mlxmtp pull 12b (6.7 GB, fits)"
    assert missing_sentence(entry, small).endswith("(6.7 GB, does not fit 8.0 GB of memory)")


@pytest.mark.parametrize("name", ["12b", "31b:bf16", "mine", "org/repo", "mlx-community/gemma-4-e2b-it-4bit"])
def test_what_is_not_here_names_the_command_that_gets_it(store: Store, name: str) -> None:
    with pytest.raises(ModelNotFound, match=r"is not on this machine\. Run: mlxmtp pull "):
        store.resolve(name)


@pytest.mark.parametrize("name", ["12c", "./nowhere", "/nowhere/at/all", "a/b/c"])
def test_what_can_be_no_model_says_what_can(store: Store, name: str) -> None:
    with pytest.raises(ModelNotFound, match="pocket, e2b, e4b, 12b, 26b, 31b"):
        store.resolve(name)


def test_a_typo_gets_a_suggestion(store: Store) -> None:
    with pytest.raises(ModelNotFound, match="did you mean 'pocket'"):
        store.resolve("poket")


def test_a_folder_is_a_model_and_its_drafter_is_beside_it(store: Store, tmp_path: Path) -> None:
    target, drafter = tmp_path / "pair" / "target", tmp_path / "pair" / "drafter"
    target.mkdir(parents=True)
    found = store.resolve(str(target))
    assert (found.name, found.folder) == (str(target), target)
    assert store.drafter_for(found, None) is None
    drafter.mkdir()
    (drafter / "config.json").write_text("{}")
    paired = store.drafter_for(found, None)
    assert paired is not None
    assert (paired.name, paired.folder) == (str(drafter), drafter)
    assert store.drafter_for(found, False) is None


def test_a_drafter_next_to_a_folder_can_be_named_as_published(store: Store, tmp_path: Path) -> None:
    for name in ("gemma", "gemma-assistant"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    paired = store.drafter_for(store.resolve(str(tmp_path / "gemma")), None)
    assert paired is not None
    assert paired.folder == tmp_path / "gemma-assistant"
    assert store.drafter_for(store.resolve(str(tmp_path / "gemma-assistant")), None) is None


def test_a_file_is_no_model(store: Store, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(LoadError, match="is a file"):
        store.resolve(str(tmp_path / "model.safetensors"))


def test_complete_snapshots_of_the_cache_are_found(store: Store, tmp_path: Path) -> None:
    folder = put_in_cache(tmp_path, "mlx-community/gemma-4-e2b-it-4bit", "config.json", "model.safetensors")
    drafter = put_in_cache(tmp_path, "mlx-community/gemma-4-E2B-it-assistant-bf16", "config.json", "model.safetensors")
    other = put_in_cache(tmp_path, "a/b", "config.json", "model.safetensors")
    for name in ("e2b", "E2B", "mine", "mlx-community/gemma-4-e2b-it-4bit"):
        found = store.resolve(name)
        assert found.folder == folder
        paired = store.drafter_for(found, None)
        assert paired is not None
        assert (paired.name, paired.folder) == ("mlx-community/gemma-4-E2B-it-assistant-bf16", drafter)
        assert store.drafter_for(found, paired.name) == paired
    assert store.resolve("org").folder == other
    chosen = default(store, 8 * GB)
    assert chosen is not None
    assert chosen.name == "e2b"


def test_the_drafter_that_a_pull_fell_back_to_is_found_and_meant_by_the_alias(store: Store, tmp_path: Path) -> None:
    for repo in ("mlx-community/gemma-4-e2b-it-4bit", "google/gemma-4-E2B-it-assistant"):
        put_in_cache(tmp_path, repo, "config.json", "model.safetensors")
    target, drafter = "mlx-community/gemma-4-e2b-it-4bit", "google/gemma-4-E2B-it-assistant"
    assert store.drafter_for(store.resolve("e2b"), None) is None
    store.records.write(Record(target, None, "abc", drafter, time.time(), {}))
    for wanted, name in ((None, drafter), ("e2b", "e2b")):
        paired = store.drafter_for(store.resolve("e2b"), wanted)
        assert paired is not None
        assert (paired.name, paired.folder) == (name, store.cached(drafter))


def test_an_incomplete_snapshot_counts_as_absent(store: Store, tmp_path: Path) -> None:
    folder = put_in_cache(tmp_path, "a/b", "config.json", "one.safetensors")
    write_json(
        folder / "model.safetensors.index.json", {"weight_map": {"x": "one.safetensors", "y": "two.safetensors"}}
    )
    with pytest.raises(ModelNotFound):
        store.resolve("a/b")
    (folder / "two.safetensors").write_text("")
    assert store.resolve("a/b").folder == folder


@pytest.mark.parametrize(
    ("names", "usable", "name"),
    [
        (("e2b", "e4b", "31b"), 48, "31b"),
        (("e2b", "e4b", "31b"), 12, "e4b"),
        (("e2b", "e4b", "31b"), 2, "e2b"),
        (("e2b:8bit", "e4b:8bit"), 7, "e2b:8bit"),  # the registry knows the bytes of none of these
        (("e2b", "12b:qat"), 12, "12b:qat"),
    ],
)
def test_the_default_is_the_largest_that_fits_or_what_there_is(
    store: Store, tmp_path: Path, names: tuple[str, ...], usable: int, name: str
) -> None:
    for one in names:
        entry = find_entry(one)
        assert entry is not None
        folder, config = put_in_cache(tmp_path, entry.target.repo, "model.safetensors"), entry.target_config()
        write_json(
            folder / "config.json", {**config.raw, "model_type": config.model_type, "text_config": dict(config.text)}
        )
    chosen = default(store, usable * GB)
    assert chosen is not None
    assert (chosen.name, chosen.entry) == (name, find_entry(name))


def test_without_models_there_is_no_default(store: Store, tmp_path: Path) -> None:
    put_in_cache(tmp_path, "org/another-network", "config.json", "model.safetensors")
    assert default(store, 64 * GB) is None


@pytest.mark.parametrize(("usable", "name"), [(2, None), (4, "e2b"), (14, "12b"), (19, "26b"), (48, "31b")])
def test_the_largest_model_that_fits(usable: int, name: str | None) -> None:
    best = best_fit(usable * GB)
    assert (best.name if best else None) == name
    if best is not None:
        assert best_fit(usable * GB, 131072) != best or usable == 48
