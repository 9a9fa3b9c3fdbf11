"""What a checkpoint folder says about itself, read from its JSON files alone.

Knows nothing of arrays: importing this module costs nothing, so a command can refuse a prompt that is
too long before a single weight is read. Field names are those of the published ``config.json``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlxmtp.errors import LoadError

TARGET_TYPES = frozenset({"gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text"})
DRAFTER_TYPES = frozenset({"gemma4_assistant", "gemma4_unified_assistant"})

FULL = "full_attention"
SLIDING = "sliding_attention"


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A target's or a drafter's configuration.

    ``text`` is the raw ``text_config`` (mlx-lm's classes take it as it is); the other fields are what the
    rest of the program asks for. ``generation`` is ``generation_config.json`` or empty.
    """

    folder: Path
    model_type: str
    raw: Mapping[str, Any]
    text: Mapping[str, Any]
    generation: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_drafter(self) -> bool:
        return self.model_type in DRAFTER_TYPES

    @property
    def max_positions(self) -> int:
        """Longest context in tokens, prompt and answer together."""
        return int(self.text.get("max_position_embeddings", 131072))

    @property
    def vocab_size(self) -> int:
        return int(self.text.get("vocab_size", self.raw.get("vocab_size", 262144)))

    @property
    def hidden_size(self) -> int:
        return int(self.text["hidden_size"])

    @property
    def layer_types(self) -> tuple[str, ...]:
        return tuple(self.text["layer_types"])

    @property
    def window(self) -> int:
        """Rows a sliding layer attends to, its own position included."""
        return int(self.text["sliding_window"])

    @property
    def stop_ids(self) -> frozenset[int]:
        """End tokens of config.json and generation_config.json together: published files list different sets."""
        return (
            _ids(self.raw.get("eos_token_id"))
            | _ids(self.text.get("eos_token_id"))
            | _ids(self.generation.get("eos_token_id"))
        )

    @property
    def quantization(self) -> Mapping[str, Any] | None:
        """MLX's own quantization block, absent in a published checkpoint."""
        found = self.raw.get("quantization")
        return found if isinstance(found, Mapping) else None

    def head_dim(self, kind: str) -> int:
        """Width of one attention head in layers of ``kind``."""
        width = self.text.get("global_head_dim") if kind == FULL else None
        return int(width or self.text["head_dim"])

    def kv_heads(self, kind: str) -> int:
        """Key/value heads in layers of ``kind``."""
        shared = kind == FULL and self.text.get("attention_k_eq_v")
        count = self.text.get("num_global_key_value_heads") if shared else None
        return int(count or self.text["num_key_value_heads"])

    def rope(self, kind: str) -> Mapping[str, Any]:
        """Rotary parameters of layers of ``kind``: rope_theta, rope_type, partial_rotary_factor."""
        return dict((self.text.get("rope_parameters") or {}).get(kind) or {})


def read_config(folder: Path) -> ModelConfig:
    """Reads ``config.json`` and, where present, ``generation_config.json`` of a checkpoint folder.

    Raises LoadError for a missing or unreadable file, or a model type this program does not know.
    """
    if not folder.is_dir():
        raise LoadError(f"{folder} is not a folder. Give the folder that holds config.json and model.safetensors.")
    raw = _read_json(folder / "config.json")
    model_type = str(raw.get("model_type"))
    if model_type not in TARGET_TYPES | DRAFTER_TYPES:
        raise LoadError(
            f"{folder} holds a '{model_type}' model; mlxmtp runs Gemma 4 (gemma4, gemma4_unified) and its drafters."
        )
    text = raw.get("text_config", raw if model_type.endswith("_text") else None)
    if not isinstance(text, dict):
        raise LoadError(f"{folder / 'config.json'} has no text_config. Download the model again.")
    generation_file = folder / "generation_config.json"
    generation = _read_json(generation_file) if generation_file.exists() else {}
    config = ModelConfig(folder, model_type, raw, text, generation)
    problem = _problem(config)
    if problem:
        raise LoadError(f"{folder / 'config.json'} {problem}. Download the model again.")
    return config


def _problem(config: ModelConfig) -> str | None:
    """What is wrong with a text_config, as the end of a sentence."""
    text = config.text
    missing = [key for key in _REQUIRED if text.get(key) is None]
    if missing:
        return f"lacks {', '.join(missing)} in text_config"
    kinds = config.layer_types
    if len(kinds) != text["num_hidden_layers"]:
        return f"names {len(kinds)} layer types for {text['num_hidden_layers']} layers"
    for kind in sorted(set(kinds)):
        if kind not in (FULL, SLIDING):
            return f"has layers of the unknown type '{kind}'"
        rope_type = config.rope(kind).get("rope_type", "default")
        if rope_type not in ("default", "proportional"):
            return f"uses rope_type '{rope_type}', which no Gemma 4 has"
    return None


_REQUIRED = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "layer_types", "sliding_window",
)  # fmt: skip


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LoadError(
            f"{path} is missing. Give a folder in the published layout, or download the model again."
        ) from None
    except (OSError, ValueError) as error:
        raise LoadError(f"{path} cannot be read ({error}). Download the model again.") from None
    if not isinstance(value, dict):
        raise LoadError(f"{path} does not hold a JSON object. Download the model again.")
    return value


def _ids(value: Any) -> frozenset[int]:
    if value is None:
        return frozenset()
    return frozenset([value] if isinstance(value, int) else value)


def check_pair(target: ModelConfig, drafter: ModelConfig) -> None:
    """Raises LoadError unless the drafter can read the target's hidden states and K/V."""
    if not drafter.is_drafter:
        raise LoadError(f"{drafter.folder} is a '{drafter.model_type}' model, not a Gemma 4 drafter.")
    pairs = [
        ("hidden size", target.hidden_size, drafter.raw.get("backbone_hidden_size")),
        ("vocabulary", target.vocab_size, drafter.vocab_size),
        ("sliding window", target.window, drafter.window),
    ]
    for kind in sorted(set(drafter.layer_types)):
        if kind not in target.layer_types:
            raise LoadError(
                f"The drafter in {drafter.folder} has {kind} layers and the target has none: they are not a pair."
            )
        pairs += [
            (f"head size of {kind}", target.head_dim(kind), drafter.head_dim(kind)),
            (f"key/value heads of {kind}", target.kv_heads(kind), drafter.kv_heads(kind)),
        ]
    for what, ours, theirs in pairs:
        if ours != theirs:
            raise LoadError(
                f"The drafter in {drafter.folder} does not fit this target: {what} {theirs}, the target has {ours}."
            )
