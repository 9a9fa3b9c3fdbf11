"""Configurations of targets and drafters, from their JSON files alone; imports no MLX."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from mlxmtp.errors import LoadError

TARGET_TYPES = frozenset({"gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text"})
DRAFTER_TYPES = frozenset({"gemma4_assistant", "gemma4_unified_assistant"})

FULL = "full_attention"
SLIDING = "sliding_attention"

_REQUIRED = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "layer_types", "sliding_window",
)  # fmt: skip
_AGAIN = " Download the model again."


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A target's or a drafter's configuration; ``text`` is text_config, ``generation`` generation_config.json or {}."""

    folder: Path
    model_type: str
    raw: Mapping[str, Any]
    text: Mapping[str, Any]
    generation: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(
        cls, raw: Mapping[str, Any] | bytes, origin: Path | str, *, generation: Mapping[str, Any] | None = None
    ) -> Self:
        """Return the configuration in ``raw``, the object in config.json or the file's bytes.

        ``origin`` names it in errors: the checkpoint folder, or the repository of a model that is not on the disk.
        Raises LoadError for what cannot be read, or a model type this program does not know.
        """
        folder, name, advice = Path(), f"config.json of {origin}", ""
        if isinstance(origin, Path):
            folder, name, advice = origin, str(origin / "config.json"), _AGAIN
        raw = _object(raw, name, advice) if isinstance(raw, bytes) else raw
        model_type = str(raw.get("model_type"))
        if model_type not in TARGET_TYPES | DRAFTER_TYPES:
            raise LoadError(
                f"{origin} holds a '{model_type}' model; mlxmtp runs Gemma 4 (gemma4, gemma4_unified) and its drafters."
            )
        text = raw.get("text_config", raw if model_type.endswith("_text") else None)
        if not isinstance(text, dict):
            raise LoadError(f"{name} has no text_config.{advice}")
        config = cls(folder, model_type, raw, text, generation or {})
        problem = _problem(config)
        if problem:
            raise LoadError(f"{name} {problem}.{advice}")
        return config

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
        found = [part.get("eos_token_id") for part in (self.raw, self.text, self.generation)]
        lists = [[one] if isinstance(one, int) else one or () for one in found]
        return frozenset().union(*lists)

    @property
    def quantization(self) -> Mapping[str, Any] | None:
        """MLX's own quantization block, absent in a published checkpoint."""
        found = self.raw.get("quantization")
        return found if isinstance(found, Mapping) else None

    def head_dim(self, kind: str) -> int:
        width = self.text.get("global_head_dim") if kind == FULL else None
        return int(width or self.text["head_dim"])

    def kv_heads(self, kind: str) -> int:
        count = self.text.get("num_global_key_value_heads") if self.k_is_v(kind) else None
        return int(count or self.text["num_key_value_heads"])

    def k_is_v(self, kind: str) -> bool:
        """Return True if layers of ``kind`` have one projection for keys and values."""
        return bool(kind == FULL and self.text.get("attention_k_eq_v"))

    @property
    def heads(self) -> int:
        return int(self.text["num_attention_heads"])

    @property
    def eps(self) -> float:
        return float(self.text.get("rms_norm_eps", 1e-6))

    def rope(self, kind: str) -> Mapping[str, Any]:
        """Rotary parameters of layers of ``kind``: rope_theta, rope_type, partial_rotary_factor."""
        return dict((self.text.get("rope_parameters") or {}).get(kind) or {})


def read_config(folder: Path) -> ModelConfig:
    """Read ``config.json`` and, where present, ``generation_config.json`` of a checkpoint folder. Raises LoadError."""
    if not folder.is_dir():
        raise LoadError(f"{folder} is not a folder. Give the folder that holds config.json and model.safetensors.")
    generation = folder / "generation_config.json"
    return ModelConfig.parse(
        _read(folder / "config.json"),
        folder,
        generation=_object(_read(generation), str(generation), _AGAIN) if generation.exists() else {},
    )


def check_pair(target: ModelConfig, drafter: ModelConfig) -> None:
    """Raise LoadError unless the drafter can read the target's hidden states and K/V."""
    if not drafter.is_drafter:
        raise LoadError(f"{drafter.folder} is a '{drafter.model_type}' model, not a Gemma 4 drafter.")
    kinds = sorted(set(drafter.layer_types))
    strange = next((kind for kind in kinds if kind not in target.layer_types), None)
    if strange is not None:
        raise LoadError(
            f"The drafter in {drafter.folder} has {strange} layers and the target has none: they are not a pair."
        )
    sizes = [
        ("hidden size", target.hidden_size, drafter.raw.get("backbone_hidden_size")),
        ("vocabulary", target.vocab_size, drafter.vocab_size),
        ("sliding window", target.window, drafter.window),
    ]
    for kind in kinds:
        sizes += [
            (f"head size of {kind}", target.head_dim(kind), drafter.head_dim(kind)),
            (f"key/value heads of {kind}", target.kv_heads(kind), drafter.kv_heads(kind)),
        ]
    for name, ours, theirs in sizes:
        if ours != theirs:
            raise LoadError(
                f"The drafter in {drafter.folder} does not fit this target: {name} {theirs}, the target has {ours}."
            )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise LoadError(
            f"{path} is missing. Give a folder in the published layout, or download the model again."
        ) from None
    except OSError as error:
        raise LoadError(f"{path} cannot be read ({error}).{_AGAIN}") from None


def _object(content: bytes, name: str, advice: str) -> dict[str, Any]:
    """Parse the JSON object in ``content``, the file ``name``. Raises LoadError, which ends in ``advice``."""
    try:
        value = json.loads(content)
    except ValueError as error:
        raise LoadError(f"{name} cannot be read ({error}).{advice}") from None
    if not isinstance(value, dict):
        raise LoadError(f"{name} does not hold a JSON object.{advice}")
    return value


def _problem(config: ModelConfig) -> str | None:
    """Return what is wrong with a text_config, as the end of a sentence."""
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
