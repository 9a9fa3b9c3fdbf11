"""Gemma 4's tensors, from a configuration alone: the one description of the network; imports no MLX.

Loading, conversion, `show` and predictions read from it; ``tests/models/test_shapes.py`` compares it with mlx-lm.
"""

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, NamedTuple, Self

from mlxmtp.errors import LoadError
from mlxmtp.limits import QUANTIZED_DRAFTER_FROM
from mlxmtp.models.config import FULL, ModelConfig

Kind = Literal[
    "embedding", "per-layer embedding", "per-layer projections", "attention", "mlp", "router", "experts", "head",
    "norms and scalars", "drafter's projections", "vision tower", "audio tower",
]  # fmt: skip
NORM: Kind = "norms and scalars"

MODES = {"affine": (64, 4), "mxfp4": (32, 4), "mxfp8": (32, 8), "nvfp4": (16, 4)}
"""Default group size and bits of MLX's quantization modes; those of the floating-point modes are fixed."""

_SCALE_BYTES = {"affine": 4, "mxfp4": 1, "mxfp8": 1, "nvfp4": 1}
"""Bytes beside the quantized values of a group: a 16-bit scale and bias, or one 8-bit scale."""

_TOWERS: dict[str, Kind] = {
    "vision_tower.": "vision tower", "embed_vision.": "vision tower", "vision_embedder.": "vision tower",
    "multi_modal_projector.": "vision tower", "audio_tower.": "audio tower", "embed_audio.": "audio tower",
}  # fmt: skip
_NOT_WEIGHTS = ("rotary_emb", "inv_freq", "embed_scale", "input_max", "input_min", "output_max", "output_min")
_PEFT = "base_model.model."  # before every name where a merged adapter was saved with its wrapper


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of the network, by its name in MLX conversions (a drafter's: in the published file).

    ``quantizable``: whether it is a matrix that MLX can quantize. ``loaded``: whether the network reads it; published
    checkpoints hold keys and values of layers that share those of others, and a head tied to the embedding.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    quantizable: bool = True
    loaded: bool = True

    @property
    def module(self) -> str:
        """The name without ``.weight``, as quantization blocks have it."""
        return self.name.removesuffix(".weight")

    @property
    def size(self) -> int:
        return prod(self.shape)


class Piece(NamedTuple):
    """A tensor of the network in one of a checkpoint: all of it, or ``half`` 0 or 1 of every expert's rows."""

    tensor: Tensor
    half: int | None = None


class Names:
    """Names in checkpoints of ``config``, in every layout in circulation.

    ``X`` in text-only checkpoints is ``model.language_model.X`` as published, ``language_model.model.X`` in MLX
    conversions; published files join gate and up projections of the experts.
    """

    def __init__(self, config: ModelConfig) -> None:
        self._pieces: dict[str, list[Piece]] = {}
        for tensor in _published(config):
            self._add(tensor.name, Piece(tensor))
            base, joined, projection = tensor.module.partition("switch_glu.")
            if joined:
                half = {"gate_proj": 0, "up_proj": 1}.get(projection)
                self._add(base + ("down_proj" if half is None else "gate_up_proj"), Piece(tensor, half))

    def find(self, name: str) -> list[Piece] | None:
        """Return what the tensor ``name`` holds of the network, [] for what no network reads, None if it is unknown."""
        name = name.removeprefix(_PEFT)
        pieces = self._pieces.get(name)
        if pieces is not None:
            return [piece for piece in pieces if piece.tensor.loaded]
        return [] if tower(name) or any(word in name for word in _NOT_WEIGHTS) else None

    def kind(self, name: str) -> Kind:
        pieces = self._pieces.get(name.removeprefix(_PEFT))
        if pieces is not None:
            return pieces[0].tensor.kind
        found = tower(name)
        return NORM if found is None else found[0]

    def _add(self, name: str, piece: Piece) -> None:
        for known in _spellings(name):
            self._pieces.setdefault(known, []).append(piece)


def _spellings(name: str) -> tuple[str, ...]:
    """Return the names that a tensor or module of the network has in checkpoints and in quantization blocks."""
    inner = name.removeprefix("language_model.")
    bare = inner.removeprefix("model.")
    return inner, f"language_model.{inner}", f"model.language_model.{inner}", f"model.language_model.{bare}"


def tower(name: str) -> tuple[Kind, str] | None:
    """Return kind and name in MLX conversions of a tower's tensor; None for any other."""
    rest = name.removeprefix(_PEFT).removeprefix("model.")
    return next(((kind, rest) for prefix, kind in _TOWERS.items() if rest.startswith(prefix)), None)


def stored_name(name: str, stored: Container[str]) -> str | None:
    """Return the name in a checkpoint of the tower's tensor that is ``name`` in MLX conversions; None without it."""
    spellings = (f"{wrapper}{model}{name}" for wrapper in ("", _PEFT) for model in ("", "model."))
    return next((one for one in spellings if one in stored), None)


def tensors(config: ModelConfig) -> Iterator[Tensor]:
    """Yield every tensor of the network that ``config`` describes; towers are no part of it."""
    return (tensor for tensor in _published(config) if tensor.loaded)


def parameter_count(config: ModelConfig) -> int:
    """Return the number of weights; the token ordering of a centroid head is no weight."""
    return sum(tensor.size for tensor in tensors(config) if not tensor.name.endswith("token_ordering"))


def quantized_by_default(drafter: ModelConfig) -> bool:
    """Return True if a 16-bit drafter is quantized at load, on a GPU."""
    return drafter.quantization is None and parameter_count(drafter) >= QUANTIZED_DRAFTER_FROM


def drafter_bits(drafter: ModelConfig, asked: int | None, *, cpu: bool) -> int | None:
    """Return the bits to which a drafter is quantized as it is read; None: it stays as it is stored.

    ``asked``: 4, 8 or 16 for those, None for 4 where it is a large one on a GPU.
    """
    if asked is None:
        return 4 if quantized_by_default(drafter) and not cpu else None
    return None if asked == 16 else asked


def own_layers(config: ModelConfig) -> int:
    """Return the number of layers with K/V of their own; the others read those of the last own one of their kind."""
    return len(config.layer_types) - int(config.text.get("num_kv_shared_layers") or 0)


def _published(config: ModelConfig) -> Iterator[Tensor]:
    """Yield the tensors of a published checkpoint, those that no network reads included."""
    return _drafter(config) if config.is_drafter else _target(config)


def _target(config: ModelConfig) -> Iterator[Tensor]:
    text = config.text
    width, layers = config.hidden_size, len(config.layer_types)
    extra = int(text.get("hidden_size_per_layer_input") or 0)
    at = "language_model.model"
    yield Tensor(f"{at}.embed_tokens.weight", "embedding", (config.vocab_size, width))
    for i in range(layers):
        yield from _layer(config, f"{at}.layers.{i}", i, own=i < own_layers(config))
        if text.get("enable_moe_block"):
            yield from _experts(config, f"{at}.layers.{i}")
        if extra:
            yield Tensor(f"{at}.layers.{i}.per_layer_input_gate.weight", "per-layer projections", (extra, width))
            yield Tensor(f"{at}.layers.{i}.per_layer_projection.weight", "per-layer projections", (width, extra))
            yield _vector(f"{at}.layers.{i}.post_per_layer_input_norm.weight", width)
    yield _vector(f"{at}.norm.weight", width)
    if extra:
        rows = int(text.get("vocab_size_per_layer_input") or config.vocab_size)
        yield Tensor(f"{at}.embed_tokens_per_layer.weight", "per-layer embedding", (rows, layers * extra))
        yield Tensor(f"{at}.per_layer_model_projection.weight", "per-layer projections", (layers * extra, width))
        yield _vector(f"{at}.per_layer_projection_norm.weight", extra)
    tied = bool(text.get("tie_word_embeddings", True))
    yield Tensor("language_model.lm_head.weight", "head", (config.vocab_size, width), loaded=not tied)


def _drafter(config: ModelConfig) -> Iterator[Tensor]:
    width, backbone = config.hidden_size, int(config.raw["backbone_hidden_size"])
    yield Tensor("pre_projection.weight", "drafter's projections", (width, 2 * backbone))
    yield Tensor("post_projection.weight", "drafter's projections", (backbone, width))
    yield Tensor("model.embed_tokens.weight", "embedding", (config.vocab_size, width))
    for i in range(len(config.layer_types)):
        yield from _layer(config, f"model.layers.{i}", i, own=False)
    yield _vector("model.norm.weight", width)
    if config.raw.get("use_ordered_embeddings"):
        yield Tensor("masked_embedding.centroids.weight", "head", (int(config.raw["num_centroids"]), width))
        yield _vector("masked_embedding.token_ordering", config.vocab_size, "head")
    yield Tensor("lm_head.weight", "head", (config.vocab_size, width), loaded=False)


def _layer(config: ModelConfig, at: str, i: int, *, own: bool) -> Iterator[Tensor]:
    text, kind, width = config.text, config.layer_types[i], config.hidden_size
    head, kv = config.head_dim(kind), config.kv_heads(kind)
    queries = int(text["num_attention_heads"]) * head
    yield Tensor(f"{at}.self_attn.q_proj.weight", "attention", (queries, width))
    yield Tensor(f"{at}.self_attn.o_proj.weight", "attention", (width, queries))
    yield _vector(f"{at}.self_attn.q_norm.weight", head)
    yield Tensor(f"{at}.self_attn.k_proj.weight", "attention", (kv * head, width), loaded=own)
    if not own or not config.k_is_v(kind):
        yield Tensor(f"{at}.self_attn.v_proj.weight", "attention", (kv * head, width), loaded=own)
    yield Tensor(f"{at}.self_attn.k_norm.weight", NORM, (head,), quantizable=False, loaded=own)
    wide = not own and not config.is_drafter and text.get("use_double_wide_mlp")
    inner = int(text["intermediate_size"]) * (2 if wide else 1)
    for name, shape in _gated(width, inner):
        yield Tensor(f"{at}.mlp.{name}.weight", "mlp", shape)
    for name in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
        yield _vector(f"{at}.{name}_layernorm.weight", width)
    yield _vector(f"{at}.layer_scalar", 1)


def _experts(config: ModelConfig, at: str) -> Iterator[Tensor]:
    text, width = config.text, config.hidden_size
    count, inner = int(text["num_experts"]), int(text["moe_intermediate_size"])
    yield Tensor(f"{at}.router.proj.weight", "router", (count, width))
    yield _vector(f"{at}.router.scale", width, "router")
    yield _vector(f"{at}.router.per_expert_scale", count, "router")
    for name, shape in _gated(width, inner):
        yield Tensor(f"{at}.experts.switch_glu.{name}.weight", "experts", (count, *shape))
    for name in ("post_feedforward_layernorm_1", "post_feedforward_layernorm_2", "pre_feedforward_layernorm_2"):
        yield _vector(f"{at}.{name}.weight", width)


def _gated(width: int, inner: int) -> tuple[tuple[str, tuple[int, int]], ...]:
    return ("gate_proj", (inner, width)), ("up_proj", (inner, width)), ("down_proj", (width, inner))


def _vector(name: str, width: int, kind: Kind = NORM) -> Tensor:
    return Tensor(name, kind, (width,), quantizable=False)


@dataclass(frozen=True, slots=True)
class Quantization:
    """Quantization of a matrix along its rows, or of keys and values along a head."""

    bits: int
    group_size: int
    mode: str = "affine"

    @classmethod
    def read(cls, entry: Mapping[str, Any]) -> Self:
        """Return what an entry of config.json's quantization block says, with MLX's defaults."""
        mode = str(entry.get("mode") or "affine")
        group, bits = MODES.get(mode, MODES["affine"])
        return cls(int(entry.get("bits") or bits), int(entry.get("group_size") or group), mode)

    @property
    def arguments(self) -> dict[str, Any]:
        """MLX's keyword arguments, and an entry of config.json's block."""
        return {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}

    @property
    def title(self) -> str:
        """`4 bit`, or the name of a floating-point mode."""
        return f"{self.bits} bit" if self.mode == "affine" else self.mode

    def nbytes(self, tensor: Tensor, plain: int = 2) -> int:
        """Return the bytes of a quantized tensor; ``plain`` is the width of 16-bit values in use (4 on a CPU)."""
        scale = _SCALE_BYTES.get(self.mode, 4)
        return tensor.size * self.bits // 8 + tensor.size // self.group_size * (scale * plain // 2 if scale > 1 else 1)

    def fitting(self, tensor: Tensor) -> "Quantization | None":
        """Return this, or affine groups of 32 where its own do not divide the rows; None where nothing does."""
        if tensor.shape[-1] % self.group_size == 0:
            return self
        return Quantization(self.bits, 32) if tensor.shape[-1] % 32 == 0 else None


def module_quantization(module: str, block: Mapping[str, Any]) -> Quantization | None:
    """Return what config.json's quantization block says of a module: its own entry, or the block's; None for false."""
    entries = (f"{name}{end}" for name in _spellings(module) for end in ("", ".weight"))
    own = next((block[entry] for entry in entries if entry in block), True)
    if own is False:
        return None
    return Quantization.read(own if isinstance(own, Mapping) else block)


def quantization_of(tensor: Tensor, block: Mapping[str, Any] | None) -> Quantization | None:
    """Return how config.json's quantization block stores ``tensor``; None if it is left as it is."""
    found = None if block is None or not tensor.quantizable else module_quantization(tensor.module, block)
    return None if found is None or tensor.shape[-1] % found.group_size else found


def kv_quantization(config: ModelConfig, bits: int | None) -> Quantization | None:
    """Return how full layers store keys and values with ``--kv-bits``; None (nothing said): as they are computed.

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
    return Quantization(bits, group)
