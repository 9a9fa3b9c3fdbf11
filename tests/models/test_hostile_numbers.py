"""Numbers in a checkpoint's files that would fill the memory or break what reads them, before a weight is read."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from mlxmtp.errors import LoadError
from mlxmtp.models.config import ModelConfig, read_config
from mlxmtp.models.config_check import token_ids
from mlxmtp.models.safetensors import header_length, read_header
from tests.golden import load_golden


def config_of(generation: bytes = b"{}", **text: Any) -> ModelConfig:
    """The config of a golden target with other values in its text_config."""
    folder = load_golden("31b").target
    raw = json.loads((folder / "config.json").read_text())
    raw["text_config"] |= text
    return ModelConfig.parse(raw, folder, generation=generation)


def test_a_header_that_is_longer_than_the_format_allows_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", 1 << 30))
        stream.truncate(1 << 31)  # a hole, which takes no room
    with pytest.raises(LoadError, match=r"model\.safetensors is cut off or not a safetensors file"):
        header_length(struct.pack("<Q", 1 << 30), 1 << 31, file)
    with pytest.raises(LoadError, match=r"model\.safetensors is cut off or not a safetensors file"):
        read_header(file)
    assert header_length(struct.pack("<Q", 100_000_000), 1 << 31, file) == 100_000_000


def test_a_network_of_more_layers_than_any_has_is_refused() -> None:
    def layers(count: int) -> ModelConfig:
        return config_of(num_hidden_layers=count, layer_types=["full_attention"] * count, num_kv_shared_layers=0)

    with pytest.raises(LoadError, match="has 2,000 layers, which no Gemma 4 has"):
        layers(2000)
    with pytest.raises(LoadError, match="has 1,025 layers"):
        layers(1025)
    assert len(layers(1024).layer_types) == 1024


@pytest.mark.parametrize(
    "value", [f"{'[' * 600}106{']' * 600}", f'"{"1" * 5000}"', f'[106, "{"1" * 5000}"]', f'"{"1" * 10}"'], ids=len
)
@pytest.mark.parametrize("key", ["eos_token_id", "suppress_tokens"])
def test_an_id_that_is_none_is_ignored_and_named(key: str, value: str) -> None:
    config = config_of(f'{{"{key}": {value}, "temperature": 0.5}}'.encode())
    assert config.generation == {"temperature": 0.5}
    [note] = config.notes
    assert note.startswith(f"{key} of generation_config.json is ")
    assert len(note) < 200


def test_ids_may_be_nested_and_text_within_reason() -> None:
    assert token_ids([[["106"]], 1, [[[[50]]]]]) == [106, 1, 50]
    assert token_ids("1" * 9) == [111_111_111]
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    assert token_ids(deep) is None


def test_a_layer_whose_number_has_thousands_of_digits_is_none() -> None:
    entries = {"1" * 5000: {"head_dim": 64}, "9" * 10: {"head_dim": 64}}
    found = config_of(per_layer_config=entries).text
    assert {key: value for key, value in found.items() if key != "per_layer_config"} == config_of().text
    with pytest.raises(LoadError, match="has intermediate_size in per_layer_config"):
        config_of(per_layer_config={"1" * 5000: {"intermediate_size": 64}})


def test_a_config_of_a_number_with_thousands_of_digits_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(f'{{"model_type": "gemma4", "vocab_size": {"1" * 5000}}}')
    with pytest.raises(LoadError):
        read_config(tmp_path)
