"""Configurations of targets and drafters, from their JSON files alone; imports no MLX."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, Self

from mlxmtp.errors import LoadError
from mlxmtp.models.config_check import is_quantization, problems, token_ids, usable
from mlxmtp.models.safetensors import advice, named, other_weights

TARGET_TYPES = frozenset({"gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text"})
DRAFTER_TYPES = frozenset({"gemma4_assistant", "gemma4_unified_assistant"})

FULL = "full_attention"
SLIDING = "sliding_attention"

_ROPE: Mapping[str, Mapping[str, Any]] = {
    FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
    SLIDING: {"rope_type": "default", "rope_theta": 1e4},
}
"""Rotary parameters where config.json has none, as in transformers and mlx-lm."""
_OTHER = " Correct it, or take another checkpoint."


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A target's or a drafter's configuration.

    ``text`` is ``text_config`` without nulls, with sizes of ``per_layer_config`` under their older names.
    ``generation`` is what can be used of ``generation_config.json``; ``notes`` are sentences on what is ignored.
    """

    folder: Path
    model_type: str
    raw: Mapping[str, Any]
    text: Mapping[str, Any]
    generation: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @classmethod
    def parse(cls, raw: Mapping[str, Any] | bytes, origin: Path | str, *, generation: bytes | None = None) -> Self:
        """Return the configuration in ``raw``, the object in config.json or the file's bytes.

        ``generation`` are the bytes of generation_config.json. ``origin`` names it in errors: the checkpoint folder, or
        the repository of a model that is not on the disk.
        Raises LoadError for what cannot be read, or a model type this program does not know.
        """
        name = named(origin, "config.json")
        raw = _object(raw, "config.json", origin) if isinstance(raw, bytes) else raw
        model_type = str(raw.get("model_type"))
        if model_type not in TARGET_TYPES | DRAFTER_TYPES:
            raise LoadError(
                f"{origin} holds a '{model_type}' model; mlxmtp runs Gemma 4 (gemma4, gemma4_unified) and its drafters."
            )
        text = raw.get("text_config", raw if model_type.endswith("_text") else None)
        if not isinstance(text, dict):
            raise LoadError(f"{name} has no text_config.{_OTHER}")
        # A cap of null means none, everything else that is null was left out.
        text = {key: value for key, value in text.items() if value is not None or key == "final_logit_softcapping"}
        for key in ("tie_word_embeddings", "vocab_size"):
            if raw.get(key) is not None:
                text.setdefault(key, raw[key])
        if problem := next(problems(text, raw if model_type in DRAFTER_TYPES else None), None):
            raise LoadError(f"{name} {problem}.{_OTHER}")
        used, notes = usable({} if generation is None else _object(generation, "generation_config.json", origin))
        if text.get("rope_scaling"):
            notes.append("rope_scaling of config.json is ignored: no Gemma 4 has it.")
        folder = origin if isinstance(origin, Path) else Path()
        return cls(folder, model_type, raw, text, used, tuple(notes))

    @property
    def is_drafter(self) -> bool:
        return self.model_type in DRAFTER_TYPES

    @property
    def max_positions(self) -> int:
        """Longest context in tokens, prompt and answer together."""
        return int(self.text.get("max_position_embeddings", 131072))

    @property
    def vocab_size(self) -> int:
        return int(self.text.get("vocab_size", 262144))

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
    def sees_ahead(self) -> bool:
        """Return True if tokens of one picture attend to each other, in sliding layers and within the window."""
        return self.text.get("use_bidirectional_attention") == "vision"

    @property
    def stop_ids(self) -> frozenset[int]:
        """End tokens of config.json and generation_config.json together: published files list different sets."""
        tables = (self.raw, self.text, self.generation)
        return frozenset(one for table in tables for one in token_ids(table.get("eos_token_id")) or ())

    @property
    def suppressed_ids(self) -> list[int]:
        """Tokens that an answer never has, by generation_config.json."""
        return [one for one in self.generation.get("suppress_tokens", ()) if one < self.vocab_size]

    @property
    def quantization(self) -> Mapping[str, Any] | None:
        """MLX's own quantization block, absent in a published checkpoint. Loading goes by the shapes instead."""
        found = self.raw.get("quantization")
        if not isinstance(found, Mapping):
            return None
        entries = [found, *(one for one in found.values() if isinstance(one, Mapping))]
        return found if found and all(map(is_quantization, entries)) else None

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
        found = (self.text.get("rope_parameters") or _ROPE).get(kind) or _ROPE[kind]
        return {key: value for key, value in found.items() if value is not None}


def read_config(folder: Path) -> ModelConfig:
    """Read ``config.json`` and, where present, ``generation_config.json`` of a checkpoint folder. Raises LoadError."""
    if not folder.is_dir():
        raise LoadError(f"{folder} is not a folder. Give the folder that holds config.json and model.safetensors.")
    generation = folder / "generation_config.json"
    if not (folder / "config.json").exists():
        raise LoadError(no_config([item.name for item in folder.iterdir()], folder))
    return ModelConfig.parse(
        _read(folder / "config.json"),
        folder,
        generation=_read(generation) if generation.exists() else None,
    )


def no_config(present: Collection[str], origin: Path | str) -> str:
    """Return the sentence for a folder or repository without config.json, by the files that are ``present``."""
    if isinstance(origin, Path):
        way = "Give the folder that holds config.json and model.safetensors."
        places = ("*/config.json", "snapshots/*/config.json", "*/snapshots/*/config.json")
        found = islice(chain(*map(origin.glob, places)), 100)
        if inner := sorted(file.parent.relative_to(origin) for file in found):
            way = f"Give the folder of one model in it: {', '.join(map(str, inner[:3]))}{', …' if inner[3:] else ''}."
    else:
        way = "Try another repository."
    return other_weights(present, origin) or f"{origin} holds no model: it has no config.json. {way}"


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
    except OSError as error:
        raise LoadError(f"{path} cannot be read ({error}). {advice(path)}") from None


def _object(content: bytes, file: str, origin: Path | str) -> dict[str, Any]:
    """Parse the JSON object in a file of ``origin``. Raises LoadError."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise LoadError(f"{named(origin, file)} cannot be read ({error}). {advice(origin)}") from None
    if not isinstance(value, dict):
        raise LoadError(f"{named(origin, file)} does not hold a JSON object. {advice(origin)}")
    return value
