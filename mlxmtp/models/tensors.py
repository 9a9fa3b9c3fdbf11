"""The tensors that a target or a drafter consists of, from its configuration alone.

Names and shapes are those of the loaded network (mlx-lm's classes for the target, the published file for a drafter);
``tests/models/test_shapes.py`` compares them. With them memory can be computed before a byte of weights is read, or
downloaded. Towers for images and sound are not loaded and therefore not here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from mlxmtp.errors import LoadError
from mlxmtp.models.config import FULL, ModelConfig

Kind = Literal["embedding", "per-layer embedding", "per-layer", "attention", "mlp", "router", "experts", "head", "norm"]

_SCALE_BYTES = {"affine": 4, "mxfp4": 1, "mxfp8": 1, "nvfp4": 1}
"""Bytes beside the packed values of a group: a 16-bit scale and bias, or one 8-bit scale."""

_GROUPS = {"affine": 64, "mxfp4": 32, "mxfp8": 32, "nvfp4": 16}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One parameter of the network; ``packs`` if it belongs to a module that MLX can quantize."""

    name: str
    kind: Kind
    shape: tuple[int, ...]
    packs: bool = True

    @property
    def size(self) -> int:
        """Number of values."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Packing:
    """How a tensor is quantized."""

    bits: int
    group_size: int
    mode: str = "affine"

    def nbytes(self, tensor: Tensor, plain: int = 2) -> int:
        """Bytes of a packed tensor; ``plain`` is the width of 16-bit values where they are used (4 on a CPU)."""
        scale = _SCALE_BYTES.get(self.mode, 4)
        return tensor.size * self.bits // 8 + tensor.size // self.group_size * (scale * plain // 2 if scale > 1 else 1)


def tensors(config: ModelConfig) -> Iterator[Tensor]:
    """Every parameter of the network that ``config`` describes."""
    return _drafter(config) if config.is_drafter else _target(config)


def parameter_count(config: ModelConfig) -> int:
    """Number of weights; the token ordering of a centroid head is no weight."""
    return sum(tensor.size for tensor in tensors(config) if not tensor.name.endswith("token_ordering"))


def own_layers(config: ModelConfig) -> int:
    """Number of layers with keys and values of their own; the others read those of the last own one of their kind."""
    layers = len(config.layer_types)
    return layers - int(config.text.get("num_kv_shared_layers") or 0)


def packing(tensor: Tensor, quantization: Mapping[str, Any] | None) -> Packing | None:
    """How config.json's quantization block packs ``tensor``; None if it is left as it is."""
    if quantization is None or not tensor.packs:
        return None
    own = quantization.get(tensor.name.removesuffix(".weight"), True)
    if own is False:
        return None
    table = {**quantization, **own} if isinstance(own, Mapping) else quantization
    mode = str(table.get("mode") or "affine")
    group = int(table.get("group_size") or _GROUPS.get(mode, 64))
    return Packing(int(table.get("bits") or 4), group, mode) if tensor.shape[-1] % group == 0 else None


def kv_packing(config: ModelConfig, bits: int | None) -> Packing | None:
    """How full layers keep keys and values with ``--kv-bits``; None (nothing said): as they are computed.

    Raises LoadError for anything but 4 and 8, and where heads cannot be divided into groups.
    """
    if bits is None:
        return None
    if bits not in (4, 8):
        raise LoadError(f"Keys and values can be packed to 4 or 8 bits, not {bits}.")
    dim = config.head_dim(FULL)
    group = next((group for group in (64, 32) if dim % group == 0), None)
    if group is None:
        raise LoadError(
            f"Keys and values of {config.folder} cannot be packed: its heads have {dim} entries, and 32 of them "
            "make a group. Leave out --kv-bits."
        )
    return Packing(bits, group)


def _target(config: ModelConfig) -> Iterator[Tensor]:
    text = config.text
    width, layers = config.hidden_size, len(config.layer_types)
    extra = int(text.get("hidden_size_per_layer_input") or 0)
    yield Tensor("language_model.model.embed_tokens.weight", "embedding", (config.vocab_size, width))
    for i in range(layers):
        at = f"language_model.model.layers.{i}"
        yield from _layer(config, at, i, own=i < own_layers(config))
        if text.get("enable_moe_block"):
            yield from _experts(config, at)
        if extra:
            yield Tensor(f"{at}.per_layer_input_gate.weight", "per-layer", (extra, width))
            yield Tensor(f"{at}.per_layer_projection.weight", "per-layer", (width, extra))
            yield _norm(f"{at}.post_per_layer_input_norm.weight", width)
    yield _norm("language_model.model.norm.weight", width)
    if extra:
        rows = int(text.get("vocab_size_per_layer_input") or config.vocab_size)
        at = "language_model.model"
        yield Tensor(f"{at}.embed_tokens_per_layer.weight", "per-layer embedding", (rows, layers * extra))
        yield Tensor(f"{at}.per_layer_model_projection.weight", "per-layer", (layers * extra, width))
        yield _norm(f"{at}.per_layer_projection_norm.weight", extra)
    if not text.get("tie_word_embeddings", True):
        yield Tensor("language_model.lm_head.weight", "head", (config.vocab_size, width))


def _drafter(config: ModelConfig) -> Iterator[Tensor]:
    width, backbone = config.hidden_size, int(config.raw["backbone_hidden_size"])
    yield Tensor("pre_projection.weight", "mlp", (width, 2 * backbone))
    yield Tensor("post_projection.weight", "mlp", (backbone, width))
    yield Tensor("model.embed_tokens.weight", "embedding", (config.vocab_size, width))
    for i in range(len(config.layer_types)):
        yield from _layer(config, f"model.layers.{i}", i, own=False)
    yield _norm("model.norm.weight", width)
    if config.raw.get("use_ordered_embeddings"):
        yield Tensor("masked_embedding.centroids.weight", "head", (int(config.raw["num_centroids"]), width))
        yield Tensor("masked_embedding.token_ordering", "head", (config.vocab_size,), packs=False)


def _layer(config: ModelConfig, at: str, i: int, *, own: bool) -> Iterator[Tensor]:
    text, kind, width = config.text, config.layer_types[i], config.hidden_size
    head, kv = config.head_dim(kind), config.kv_heads(kind)
    queries = int(text["num_attention_heads"]) * head
    yield Tensor(f"{at}.self_attn.q_proj.weight", "attention", (queries, width))
    yield Tensor(f"{at}.self_attn.o_proj.weight", "attention", (width, queries))
    yield _norm(f"{at}.self_attn.q_norm.weight", head)
    if own:
        yield Tensor(f"{at}.self_attn.k_proj.weight", "attention", (kv * head, width))
        if not (kind == FULL and text.get("attention_k_eq_v")):
            yield Tensor(f"{at}.self_attn.v_proj.weight", "attention", (kv * head, width))
        yield _norm(f"{at}.self_attn.k_norm.weight", head)
    wide = not own and not config.is_drafter and text.get("use_double_wide_mlp")
    inner = int(text["intermediate_size"]) * (2 if wide else 1)
    for name, shape in (("gate_proj", (inner, width)), ("up_proj", (inner, width)), ("down_proj", (width, inner))):
        yield Tensor(f"{at}.mlp.{name}.weight", "mlp", shape)
    for name in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
        yield _norm(f"{at}.{name}_layernorm.weight", width)
    yield _norm(f"{at}.layer_scalar", 1)


def _experts(config: ModelConfig, at: str) -> Iterator[Tensor]:
    text, width = config.text, config.hidden_size
    count, inner = int(text["num_experts"]), int(text["moe_intermediate_size"])
    yield Tensor(f"{at}.router.proj.weight", "router", (count, width))
    yield _norm(f"{at}.router.scale", width)
    yield _norm(f"{at}.router.per_expert_scale", count)
    for name, shape in (("gate_proj", (inner, width)), ("up_proj", (inner, width)), ("down_proj", (width, inner))):
        yield Tensor(f"{at}.experts.switch_glu.{name}.weight", "experts", (count, *shape))
    for name in ("post_feedforward_layernorm_1", "post_feedforward_layernorm_2", "pre_feedforward_layernorm_2"):
        yield _norm(f"{at}.{name}.weight", width)


def _norm(name: str, width: int) -> Tensor:
    return Tensor(name, "norm", (width,), packs=False)
