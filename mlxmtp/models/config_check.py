"""Values of config.json and generation_config.json, checked where they enter: types, ranges, and what fits together."""

from collections.abc import Iterator, Mapping
from typing import Any

_KINDS = ("full_attention", "sliding_attention")
_REQUIRED = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "layer_types", "sliding_window",
)  # fmt: skip
SIZES_BY_KIND = ("head_dim", "global_head_dim", "num_key_value_heads", "num_global_key_value_heads")
"""Sizes that differ between kinds of layers: of sliding ones, and of full ones."""
_LAYERS = 1024  # each of them has some twenty tensors, which are listed before anything is known of a file
_NESTED, _DIGITS = 8, 10  # lists in lists of ids, and digits of a number that is written as text
_LARGEST = 1 << 24  # of any size: far beyond every network, and products stay numbers that a machine can hold
_SIZES = {
    1: (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "head_dim", "sliding_window", "vocab_size", "max_position_embeddings",
    ),
    0: (  # 0 stands for none
        "num_kv_shared_layers", "hidden_size_per_layer_input", "vocab_size_per_layer_input", "global_head_dim",
        "num_global_key_value_heads", "num_experts", "top_k_experts", "moe_intermediate_size",
    ),
}  # fmt: skip
_OF_EXPERTS = ("num_experts", "top_k_experts", "moe_intermediate_size")
_OF_CENTROIDS = ("num_centroids", "centroid_intermediate_top_k")
_SWITCHES = ("attention_k_eq_v", "tie_word_embeddings", "enable_moe_block", "use_double_wide_mlp")
_FIXED = {
    "hidden_activation": "gelu_pytorch_tanh", "attention_bias": False, "use_bidirectional_attention": "vision",
}  # fmt: skip
_RANGES = {
    "rms_norm_eps": (1e-12, 0.1), "final_logit_softcapping": (1e-3, 1e6), "rope_theta": (1.0, 1e12),
    "partial_rotary_factor": (1e-3, 1.0), "temperature": (0.0, 1e6), "top_p": (1e-6, 1.0), "min_p": (0.0, 1.0),
    "top_k": (0, _LARGEST), "max_new_tokens": (1, 1 << 40),
}  # fmt: skip
_MODES = ("affine", "mxfp4", "mxfp8", "nvfp4")


def problems(text: dict[str, Any], drafter: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield what is wrong with a text_config (``drafter``: the config.json of one) as ends of sentences, worst first.

    Puts sizes of ``per_layer_config`` under the older names of published files.
    """
    if missing := [key for key in _REQUIRED if key not in text]:
        yield f"lacks {', '.join(missing)} in text_config"
    for least, keys in _SIZES.items():
        yield from (_no_size(key, text[key], least) for key in keys if key in text and not _is_size(text[key], least))
    for key in _SWITCHES:
        if not isinstance(text.get(key, False), bool):
            yield f"has {key} {text[key]!r:.40}, which is neither true nor false"
    for key, meant in _FIXED.items():
        if text.get(key, meant) != meant:
            yield f"has {key} {text[key]!r:.40}, which no Gemma 4 has"
    for key in ("rms_norm_eps", "final_logit_softcapping"):
        yield from _out_of_range(key, text)
    yield from _problems_of_layers(text, None if drafter is not None else text.get("num_kv_shared_layers", 0))
    if drafter is not None:
        yield from _problems_of_drafter(drafter, text.get("vocab_size", 262144))


def _problems_of_layers(text: dict[str, Any], shared: int | None) -> Iterator[str]:
    kinds = text["layer_types"]
    if text["num_hidden_layers"] > _LAYERS:
        yield f"has {text['num_hidden_layers']:,} layers, which no Gemma 4 has"
    if not isinstance(kinds, list) or len(kinds) != text["num_hidden_layers"]:
        count = len(kinds) if isinstance(kinds, list) else "no"
        yield f"names {count} layer types for {text['num_hidden_layers']} layers"
    if strange := [kind for kind in kinds if kind not in _KINDS]:
        yield f"has layers of the unknown type {strange[0]!r:.40}"
    if shared and not set(kinds) <= set(kinds[: max(0, len(kinds) - shared)]):
        yield f"shares keys and values of {shared} layers with none before them of the same type"
    if text["num_attention_heads"] % text["num_key_value_heads"]:
        yield f"has {text['num_attention_heads']} heads for {text['num_key_value_heads']} of keys and values"
    vocabulary = text.get("vocab_size", 262144)
    if text.get("hidden_size_per_layer_input") and vocabulary > (text.get("vocab_size_per_layer_input") or vocabulary):
        yield "has per-layer embeddings for fewer tokens than its vocabulary has"
    if text.get("enable_moe_block"):
        if missing := [key for key in _OF_EXPERTS if not text.get(key)]:
            yield f"lacks {', '.join(missing)} in text_config"
        if text["top_k_experts"] > text["num_experts"]:
            yield f"chooses {text['top_k_experts']} of {text['num_experts']} experts"
    yield from _problems_of_rotations(text.get("rope_parameters", {}))
    yield from _unify_layers(text)


def _problems_of_rotations(every: Any) -> Iterator[str]:
    if not isinstance(every, Mapping) or not all(isinstance(every.get(kind, {}), Mapping | None) for kind in _KINDS):
        yield "has rope_parameters that are no table of tables"
    for rope in (every.get(kind) or {} for kind in _KINDS):
        if rope.get("rope_type", "default") not in ("default", "proportional"):
            yield f"uses rope_type {rope['rope_type']!r:.40}, which no Gemma 4 has"
        for key in ("rope_theta", "partial_rotary_factor"):
            yield from _out_of_range(key, rope)


def _unify_layers(text: dict[str, Any]) -> Iterator[str]:
    """Put the sizes of ``per_layer_config``, which transformers writes from 5.15 on, under their older names."""
    table = text.get("per_layer_config", {})
    if not isinstance(table, Mapping) or not all(isinstance(entry, Mapping) for entry in table.values()):
        yield "has a per_layer_config that is no table of tables"
    layers = {int(at): entry for at, entry in table.items() if _is_number(str(at))}
    for key, older in zip(SIZES_BY_KIND[::2], SIZES_BY_KIND[1::2], strict=True):
        if not any(key in entry for entry in layers.values()):
            continue
        sizes: dict[str, set[Any]] = {kind: set() for kind in _KINDS}
        for i, kind in enumerate(text["layer_types"]):
            size = layers.get(i, {}).get(key, text[key])
            if not _is_size(size, 1):
                yield _no_size(key, size, 1)
            sizes[kind].add(size)
        if any(len(found) > 1 for found in sizes.values()):
            yield f"has layers of one type with different {key} in per_layer_config, which no Gemma 4 has"
        full, sliding = (next(iter(sizes[kind]), text[key]) for kind in _KINDS)
        text[older], text[key] = full, sliding
    if strange := {key for entry in table.values() for key in entry} - set(SIZES_BY_KIND[::2]):
        yield f"has {min(strange)} in per_layer_config, which no Gemma 4 has"


def _problems_of_drafter(raw: Mapping[str, Any], vocabulary: int) -> Iterator[str]:
    wanted = ("backbone_hidden_size", *(_OF_CENTROIDS if raw.get("use_ordered_embeddings") else ()))
    yield from (_no_size(key, raw.get(key), 1) for key in wanted if not _is_size(raw.get(key), 1))
    if raw.get("use_ordered_embeddings"):
        count, top = (raw[key] for key in _OF_CENTROIDS)
        if vocabulary % count or top > count:
            yield f"takes {top} of {count} centroids for {vocabulary} tokens, which do not go together"


def usable(generation: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return what can be used of a generation_config.json, and sentences on values that mean nothing here."""
    used: dict[str, Any] = {}
    notes: list[str] = []
    for key, value in generation.items():
        meant: Any = None
        if key in ("eos_token_id", "suppress_tokens"):
            meant = token_ids(value)
        elif key == "do_sample":
            meant = value if isinstance(value, bool) else None
        elif key in _RANGES and not next(_out_of_range(key, generation), None):
            meant = value if isinstance(_RANGES[key][0], float) or isinstance(value, int) else None
        if meant is not None:
            used[key] = meant
        elif value is not None and (key in _RANGES or key in ("eos_token_id", "suppress_tokens", "do_sample")):
            notes.append(f"{key} of generation_config.json is {value!r:.40}, which means nothing here: it is ignored.")
    return used, notes


def token_ids(value: Any, depth: int = 0) -> list[int] | None:
    """Return the ids in a number or a list, nested or written as text as some tools do; None where there is another."""
    if isinstance(value, list):
        parts = [token_ids(one, depth + 1) if depth < _NESTED else None for one in value]
        return None if None in parts else [one for part in parts for one in part or ()]
    if isinstance(value, str) and _is_number(value):
        return [int(value)]
    return [value] if _is_size(value, 0) else None


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) < _DIGITS


def is_quantization(entry: Mapping[str, Any]) -> bool:
    """Return True if an entry of MLX's quantization block has values that MLX knows."""
    bits, group, mode = (entry.get(key) for key in ("bits", "group_size", "mode"))
    known = bits in (None, 2, 3, 4, 5, 6, 8) and group in (None, 16, 32, 64, 128) and mode in (None, *_MODES)
    return known and not isinstance(bits, float | bool) and not isinstance(group, float | bool)


def _is_size(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= _LARGEST


def _no_size(key: str, value: Any, least: int) -> str:
    return f"has {key} {value!r:.40}, which is no whole number from {least} to {_LARGEST:,}"


def _out_of_range(key: str, table: Mapping[str, Any]) -> Iterator[str]:
    value, (low, high) = table.get(key), _RANGES[key]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is not None and not (number and low <= value <= high):
        yield f"has {key} {value!r:.40}, which is no number from {low:g} to {high:g}"
