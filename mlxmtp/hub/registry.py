"""Short names of models: `e2b`, `12b:8bit`. The data is in `registry.toml`; nothing here touches the disk beyond it."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mlxmtp.models.config import FULL, SLIDING, ModelConfig

BUILT_IN = "pocket"

_PACKED = {"4bit": 4, "8bit": 8, "qat": 4}
_FOUR_LAYERS = {
    "num_hidden_layers": 4, "pattern": 3, "num_kv_shared_layers": 4,
    "hidden_size_per_layer_input": 0, "enable_moe_block": False,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Repo:
    """A repository on the Hugging Face hub; `size` in bytes, None where nobody has measured it."""

    repo: str
    size: int | None


@dataclass(frozen=True, slots=True)
class Entry:
    """One alias in one variant: what `pull NAME` would fetch."""

    name: str
    title: str
    target: Repo
    drafter: Repo
    family: str
    variant: str
    draft: int
    """Draft tokens per round that other engines recommend."""

    def target_config(self) -> ModelConfig:
        """What decides about the target's size, quantized as the variant says; it has no folder."""
        return _config(_table()[self.family]["text"], _PACKED.get(self.variant), drafter=False)

    def drafter_config(self) -> ModelConfig:
        """The same for the drafter, in 16 bits."""
        table = _table()[self.family]
        more = {"backbone_hidden_size": table["text"]["hidden_size"]}
        return _config({**table["text"], **_FOUR_LAYERS, **table["drafter_text"]}, None, drafter=True, **more)

    @property
    def size(self) -> int | None:
        """Bytes of target and drafter together, None if one is unknown."""
        if self.target.size is None or self.drafter.size is None:
            return None
        return self.target.size + self.drafter.size


def find_entry(name: str) -> Entry | None:
    """The entry of `alias`, `alias:variant`, or of a repository that an alias stands for. Case does not matter."""
    wanted = name.lower()
    for entry in entries():
        if wanted in (entry.name, entry.target.repo.lower()):
            return entry
    return None


@cache
def entries() -> tuple[Entry, ...]:
    """Every alias in every variant, from the smallest model to the largest; the default variant has the bare name."""
    return tuple(entry for alias, model in _table().items() for entry in _variants(alias, model))


def same_shape(config: ModelConfig) -> Entry | None:
    """The model with a short name that a configuration is a variant of: its drafter belongs to that one, too."""
    for entry in entries():
        known = entry.target_config()
        if (known.hidden_size, known.layer_types) == (config.hidden_size, config.layer_types):
            return entry
    return None


def known_names() -> tuple[str, ...]:
    """The bare aliases, the built-in model first."""
    return (BUILT_IN, *(entry.name for entry in entries() if ":" not in entry.name))


def _variants(alias: str, model: Mapping[str, Any]) -> Iterator[Entry]:
    paired = model["drafter"]
    for variant, target in model["variants"].items():
        drafter = target.get("drafter", paired)
        names = [alias, f"{alias}:{variant}"] if variant == model["default"] else [f"{alias}:{variant}"]
        for name in names:
            yield Entry(name, model["title"], _repo(target), _repo(drafter), alias, variant, model["draft"])


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("registry.toml").read_text(encoding="utf-8"))


def _config(table: Mapping[str, Any], bits: int | None, *, drafter: bool, **more: Any) -> ModelConfig:
    text = {"vocab_size": 262144, "head_dim": 256, "global_head_dim": 512, **table}
    group = [SLIDING] * int(text.pop("pattern")) + [FULL]
    count = int(text["num_hidden_layers"])
    text["layer_types"] = (group * count)[:count]
    raw = {**more, "use_ordered_embeddings": "num_centroids" in text, "num_centroids": text.get("num_centroids")}
    if bits:
        raw["quantization"] = {"bits": bits, "group_size": 64}
    return ModelConfig(Path(), "gemma4_assistant" if drafter else "gemma4", raw, text)


def _repo(table: Mapping[str, Any]) -> Repo:
    return Repo(table["repo"], table.get("bytes"))
