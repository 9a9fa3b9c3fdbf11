"""Conversations of a server on disk: the next process reads of a prompt only what no file holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlxmtp.app import prompt_cache
from mlxmtp.app.prompt_cache import PromptCache
from mlxmtp.decode import snapshots, texts
from mlxmtp.engine import kv_file
from mlxmtp.engine.model import Model
from tests.golden import load_golden
from tests.networks import decode, tokens

GOLDEN = load_golden("e2b")
SYSTEM = [token % 100 + 8 for token in range(150)]
AGENTS = {letter: SYSTEM + [letter] * 140 for letter in (3, 4)}


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny network's context is short: so are texts that are worth keeping."""
    for module, name in ((texts, "WORTH"), (snapshots, "APART"), (prompt_cache, "SHORTEST")):
        monkeypatch.setattr(module, name, 64)


def model() -> Model:
    found = Model.load(GOLDEN.target, GOLDEN.drafter)
    found.hold_texts(2**30)
    return found


def said(one: Model, prompt: list[int], places: tuple[int, ...] = ()) -> list[int]:
    rounds = one._decoder.rounds(prompt, max_tokens=6, num_draft_tokens=3, snapshot_at=places)
    return tokens(rounds)


def test_another_process_goes_on_with_every_conversation_and_with_what_they_share(tmp_path: Path) -> None:
    cache, first = PromptCache(tmp_path / "prompts", 10**9), model()
    answers = {letter: said(first, prompt, (150, 290)) for letter, prompt in AGENTS.items()}
    cache.keep(first)
    files = sorted(int(path.name.split("-")[1]) for path in cache.folder.iterdir())
    assert files == [150, 290, 290]  # what both begin with stands there once
    second = model()
    for letter, prompt in AGENTS.items():
        following = [*prompt, *answers[letter], 5, 6]
        cache.extend(second, following)
        assert said(second, following) == decode(Model.load(GOLDEN.target)._decoder, following, 6)
        assert second._decoder.reused == 290
    other = [*SYSTEM, *[9] * 90]
    cache.extend(second, other)
    assert said(second, other) == decode(Model.load(GOLDEN.target)._decoder, other, 6)
    assert second._decoder.reused == 150
    again = [*AGENTS[3], *answers[3], 5, 6]  # nothing was driven out by the others
    assert second.reusable(again) >= 290


def test_a_damaged_file_and_a_folder_that_is_none_cost_only_time(tmp_path: Path) -> None:
    cache, first = PromptCache(tmp_path / "prompts", 10**9), model()
    said(first, AGENTS[3], (290,))
    cache.keep(first)
    [path] = cache.folder.iterdir()
    path.write_bytes(path.read_bytes()[:-4] + b"oops")
    second, prompt = model(), [*AGENTS[3], 7]
    cache.extend(second, prompt)
    assert said(second, prompt) == decode(Model.load(GOLDEN.target)._decoder, prompt, 6)
    assert second._decoder.reused == 0
    (tmp_path / "file").write_text("")
    PromptCache(tmp_path / "file", 10**9).keep(first)


def lengths(cache: PromptCache) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in cache.folder.iterdir())


def test_a_text_that_could_not_be_held_is_neither_written_nor_loaded(tmp_path: Path) -> None:
    cache, first, other = PromptCache(tmp_path / "prompts", 10**9), model(), model()
    said(first, AGENTS[3], (150, 290))
    cache.keep(first)
    limit = other._decoder.target.cache_spec.nbytes(mx.float32, 256)
    other.hold_texts(limit)
    cache.extend(other, [*AGENTS[3], 5])
    assert other.reusable([*AGENTS[3], 5]) == 150
    said(other, AGENTS[4], (150, 290))
    cache.keep(other)
    assert lengths(cache) == [150, 290]


def test_no_more_is_written_than_there_is_room_for_and_the_last_text_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roomy, first = PromptCache(tmp_path / "roomy", 10**9), model()
    for prompt in AGENTS.values():
        said(first, prompt, (80, 150, 220, 290))
    roomy.keep(first)
    assert lengths(roomy) == [80, 150, 290, 290]
    size = max(path.stat().st_size for path in roomy.folder.iterdir())
    written: list[int] = []

    def counted(*about: Any, real: Any = kv_file.write) -> int:
        written.append(real(*about))
        return written[-1]

    monkeypatch.setattr(kv_file, "write", counted)
    tight = PromptCache(tmp_path / "tight", size + 100)
    tight.keep(first)
    assert written == [size]
    second = model()
    tight.extend(second, [*AGENTS[4], 5])
    assert second.reusable([*AGENTS[4], 5]) == 290


def test_a_disk_that_is_full_holds_no_more_than_its_limit_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = model()
    for prompt in AGENTS.values():
        said(first, prompt, (150, 290))
    PromptCache(tmp_path, 10**9).keep(first)
    size = max(path.stat().st_size for path in tmp_path.iterdir())

    def full(*_: object) -> None:
        raise RuntimeError("No space left on device")

    monkeypatch.setattr(mx, "save_safetensors", full)
    said(first, [9] * 290, (290,))
    PromptCache(tmp_path, size).keep(first)
    assert lengths(PromptCache(tmp_path, size)) == [290]
