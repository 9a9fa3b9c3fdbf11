from __future__ import annotations

from pathlib import Path

import pytest

from mlxmtp.errors import LoadError, ModelNotFound
from mlxmtp.hub.registry import find_entry
from mlxmtp.hub.store import Store, best_fit, missing_sentence
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
    assert missing_sentence(entry, 32 * GB) == (
        "Model '12b' is not on this machine. Run: mlxmtp pull 12b (6.7 GB, fits)"
    )
    assert missing_sentence(entry, 8 * GB).endswith("(6.7 GB, does not fit 8.0 GB of memory)")


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
    default = store.default()
    assert default is not None
    assert default.name == "e2b"


def test_an_incomplete_snapshot_counts_as_absent(store: Store, tmp_path: Path) -> None:
    folder = put_in_cache(tmp_path, "a/b", "config.json", "one.safetensors")
    write_json(
        folder / "model.safetensors.index.json", {"weight_map": {"x": "one.safetensors", "y": "two.safetensors"}}
    )
    with pytest.raises(ModelNotFound):
        store.resolve("a/b")
    (folder / "two.safetensors").write_text("")
    assert store.resolve("a/b").folder == folder


def test_the_default_is_the_largest_that_fits_or_what_there_is(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for repo in ("gemma-4-e2b-it-4bit", "gemma-4-e4b-it-4bit", "gemma-4-31b-it-4bit"):
        put_in_cache(tmp_path, f"mlx-community/{repo}", "config.json", "model.safetensors")
    for memory, name in [(64, "31b"), (16, "e4b"), (4, "e2b")]:
        monkeypatch.setattr("mlxmtp.hub.store.machine_memory", lambda memory=memory: memory * GB)
        default = store.default()
        assert default is not None
        assert default.name == name


def test_without_models_there_is_no_default(store: Store) -> None:
    assert store.default() is None


@pytest.mark.parametrize(("memory", "name"), [(4, None), (8, "e2b"), (16, "12b"), (24, "26b"), (64, "31b")])
def test_the_largest_model_that_fits(memory: int, name: str | None) -> None:
    best = best_fit(memory * GB)
    assert (best.name if best else None) == name
