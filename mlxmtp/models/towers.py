"""The parts of a checkpoint that see and hear: their configurations and tensors; imports no MLX.

A model has a tower if its checkpoint has the tensors: configurations name towers that conversions left out.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mlxmtp.errors import LoadError
from mlxmtp.models.config import ModelConfig
from mlxmtp.models.safetensors import read_folder
from mlxmtp.models.tensors import NORM, Kind, Tensor, stored_name

VISION: Kind = "vision tower"
AUDIO: Kind = "audio tower"
VISION_MARK = "embed_vision.embedding_projection.weight"
"""The tensor without which a checkpoint makes no soft tokens of pictures."""
AUDIO_MARK = "embed_audio.embedding_projection.weight"
"""The tensor without which a checkpoint makes no soft tokens of sounds."""
MELS = 128  # features of a frame of sound
_TOWER = "audio_tower.output_proj.weight"  # the 12B has none
VISION_SCORES = 2**26
"""Bytes of attention scores at once where no kernel fuses them: queries are independent, so slices change nothing."""
_CONVOLVED, _WIDE = 8, 5  # arrays of a convolution's and of an MLP's size that are there at once, as measured
BOUNDS = ("input_min", "input_max", "output_min", "output_max")
"""Last parts of the names of numbers between which a layer is held; infinite ones hold nothing."""


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """Sizes of what makes soft tokens of a picture. `unified`: the 12B's, a projection of patches without layers.

    `patch`: pixels of a patch's side; `pooling` x `pooling` patches make a soft token.
    """

    hidden: int
    patch: int
    pooling: int
    positions: int
    eps: float
    text: int
    unified: bool
    inner: int = 0
    layers: int = 0
    heads: int = 0
    head_dim: int = 0
    theta: float = 100.0
    clipped: bool = False
    standardize: bool = False

    @property
    def side(self) -> int:
        """Pixels of a soft token's side, by which sides of resized pictures can be divided."""
        return self.patch * self.pooling


@dataclass(frozen=True, slots=True)
class AudioConfig:
    """Sizes of what makes soft tokens of a sound. `unified`: the 12B's, a projection of frames of `hidden` samples.

    `channels` of the two convolutions, `kernel` of the depthwise one. `chunk` queries at once look at themselves and
    fewer than `past` rows behind. `out`: width before the projection.
    """

    hidden: int
    eps: float
    text: int
    unified: bool
    layers: int = 0
    heads: int = 0
    channels: tuple[int, int] = (0, 0)
    kernel: int = 0
    chunk: int = 0
    past: int = 0
    cap: float = 0.0
    out: int = 0
    residual: float = 0.0
    bound: float = 0.0
    clipped: bool = False

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


def vision_config(config: ModelConfig) -> VisionConfig | None:
    """Return the `vision_config` of config.json; None without one. Raises LoadError for what no Gemma 4 has."""
    table = config.raw.get("vision_config")
    if not isinstance(table, Mapping):
        return None
    read = _Reader(table, f"vision_config of {config.folder}")
    unified = str(table.get("model_type")).startswith("gemma4_unified")
    found: dict[str, Any] = {
        "patch": read.size("patch_size", 16),
        "pooling": read.size("pooling_kernel_size", 3),
        "eps": float(table.get("rms_norm_eps") or 1e-6),
        "text": config.hidden_size,
        "unified": unified,
    }
    if unified:
        hidden, positions = read.size("mm_embed_dim"), read.size("mm_posemb_size")
        return VisionConfig(hidden=hidden, positions=positions, **found)
    heads = read.size("num_attention_heads")
    hidden = read.size("hidden_size")
    rope = table.get("rope_parameters")
    sized = VisionConfig(
        hidden=hidden,
        positions=read.size("position_embedding_size", 10240),
        inner=read.size("intermediate_size"),
        layers=read.size("num_hidden_layers"),
        heads=heads,
        head_dim=read.size("head_dim", hidden // heads),
        theta=float((rope if isinstance(rope, Mapping) else {}).get("rope_theta") or 100.0),
        clipped=bool(table.get("use_clipped_linears")),
        standardize=bool(table.get("standardize")),
        **found,
    )
    if sized.head_dim % 4 or table.get("num_key_value_heads", heads) != heads:
        raise LoadError(f"{read.name} has heads that no Gemma 4 has. Take another checkpoint.")
    return sized


def stored_vision(config: ModelConfig) -> VisionConfig | None:
    """Return the sizes of what makes soft tokens of pictures, None if the checkpoint has none. Raises LoadError."""
    vision = vision_config(config)
    if vision is None or stored_name(VISION_MARK, read_folder(config.folder)) is None:
        return None
    return vision


def stored_audio(config: ModelConfig) -> AudioConfig | None:
    """Return the sizes of what makes soft tokens of sounds, None if the checkpoint has none. Raises LoadError.

    Copies of config.json that lack `audio_config` have the published sizes.
    """
    stored = read_folder(config.folder)
    if stored_name(AUDIO_MARK, stored) is None:
        return None
    table = config.raw.get("audio_config")
    read = _Reader(table if isinstance(table, Mapping) else {}, f"audio_config of {config.folder}")
    eps = read.number("rms_norm_eps", 1e-6)
    if stored_name(_TOWER, stored) is None:
        return AudioConfig(hidden=read.size("audio_embed_dim", 640), eps=eps, text=config.hidden_size, unified=True)
    sized = AudioConfig(
        hidden=read.size("hidden_size", 1024),
        eps=eps,
        text=config.hidden_size,
        unified=False,
        layers=read.size("num_hidden_layers", 12),
        heads=read.size("num_attention_heads", 8),
        channels=read.pair("subsampling_conv_channels", (128, 32)),
        kernel=read.size("conv_kernel_size", 5),
        chunk=read.size("attention_chunk_size", 12),
        past=read.size("attention_context_left", 13) - 1,
        cap=read.number("attention_logit_cap", 50.0),
        out=read.size("output_proj_dims", 1536),
        residual=read.number("residual_weight", 0.5),
        bound=read.number("gradient_clipping", 1e10),
        clipped=bool(read.table.get("use_clipped_linears", True)),
    )
    if sized.hidden % (2 * sized.heads) or not sized.past or read.table.get("attention_context_right", 0) != 0:
        raise LoadError(f"{read.name} has attention that no Gemma 4 has. Take another checkpoint.")
    return sized


def vision_tensors(vision: VisionConfig) -> Iterator[Tensor]:
    """Yield the tensors of what makes soft tokens of pictures, by their names in MLX conversions."""
    hidden = vision.hidden
    yield Tensor(VISION_MARK, VISION, (vision.text, hidden))
    if vision.unified:
        pixels = 3 * vision.side**2
        at = "vision_embedder"
        yield Tensor(f"{at}.patch_dense.weight", VISION, (hidden, pixels))
        yield _vector(f"{at}.patch_dense.bias", hidden)
        for name, width in (("patch_ln1", pixels), ("patch_ln2", hidden), ("pos_norm", hidden)):
            yield _vector(f"{at}.{name}.weight", width)
            yield _vector(f"{at}.{name}.bias", width)
        yield Tensor(f"{at}.pos_embedding", VISION, (vision.positions, 2, hidden), quantizable=False)
        return
    at, queries = "vision_tower", vision.heads * vision.head_dim
    yield Tensor(f"{at}.patch_embedder.input_proj.weight", VISION, (hidden, 3 * vision.patch**2))
    table = (2, vision.positions, hidden)
    yield Tensor(f"{at}.patch_embedder.position_embedding_table", VISION, table, quantizable=False)
    for i in range(vision.layers):
        layer = f"{at}.encoder.layers.{i}"
        for name in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            yield _vector(f"{layer}.{name}_layernorm.weight", hidden)
        for name in ("q_norm", "k_norm"):
            yield _vector(f"{layer}.self_attn.{name}.weight", vision.head_dim)
        for name in ("q_proj", "k_proj", "v_proj"):
            yield from clippable(f"{layer}.self_attn.{name}", (queries, hidden), VISION, clipped=vision.clipped)
        yield from clippable(f"{layer}.self_attn.o_proj", (hidden, queries), VISION, clipped=vision.clipped)
        for name in ("gate_proj", "up_proj"):
            yield from clippable(f"{layer}.mlp.{name}", (vision.inner, hidden), VISION, clipped=vision.clipped)
        yield from clippable(f"{layer}.mlp.down_proj", (hidden, vision.inner), VISION, clipped=vision.clipped)
    if vision.standardize:
        yield _vector(f"{at}.std_bias", hidden)
        yield _vector(f"{at}.std_scale", hidden)


def audio_tensors(audio: AudioConfig) -> Iterator[Tensor]:
    """Yield the tensors of what makes soft tokens of sounds, by their names in MLX conversions."""
    if audio.unified:
        yield Tensor(AUDIO_MARK, AUDIO, (audio.text, audio.hidden))
        return
    at, hidden, (first, second) = "audio_tower", audio.hidden, audio.channels
    yield Tensor(AUDIO_MARK, AUDIO, (audio.text, audio.out))
    for i, (inputs, channels) in enumerate(((1, first), (first, second))):
        layer = f"{at}.subsample_conv_projection.layer{i}"
        yield Tensor(f"{layer}.conv.weight", AUDIO, (channels, 3, 3, inputs), quantizable=False)
        yield _vector(f"{layer}.norm.weight", channels)
    yield Tensor(f"{at}.subsample_conv_projection.input_proj_linear.weight", AUDIO, (hidden, MELS // 4 * second))
    for i in range(audio.layers):
        layer = f"{at}.layers.{i}"
        for name in ("norm_pre_attn", "norm_post_attn", "norm_out", "lconv1d.pre_layer_norm", "lconv1d.conv_norm"):
            yield _vector(f"{layer}.{name}.weight", hidden)
        for part in ("feed_forward1", "feed_forward2"):
            for name in ("pre_layer_norm", "post_layer_norm"):
                yield _vector(f"{layer}.{part}.{name}.weight", hidden)
            yield from clippable(f"{layer}.{part}.ffw_layer_1", (4 * hidden, hidden), AUDIO, clipped=audio.clipped)
            yield from clippable(f"{layer}.{part}.ffw_layer_2", (hidden, 4 * hidden), AUDIO, clipped=audio.clipped)
        for name in ("q_proj", "k_proj", "v_proj", "post"):
            yield from clippable(f"{layer}.self_attn.{name}", (hidden, hidden), AUDIO, clipped=audio.clipped)
        yield Tensor(f"{layer}.self_attn.relative_k_proj.weight", AUDIO, (hidden, hidden))
        yield _vector(f"{layer}.self_attn.per_dim_scale", audio.head_dim)
        yield from clippable(f"{layer}.lconv1d.linear_start", (2 * hidden, hidden), AUDIO, clipped=audio.clipped)
        yield from clippable(f"{layer}.lconv1d.linear_end", (hidden, hidden), AUDIO, clipped=audio.clipped)
        kernel = (hidden, audio.kernel, 1)
        yield Tensor(f"{layer}.lconv1d.depthwise_conv1d.weight", AUDIO, kernel, quantizable=False)
    yield Tensor(f"{at}.output_proj.weight", AUDIO, (audio.out, hidden))
    yield _vector(f"{at}.output_proj.bias", audio.out)


def vision_bytes(vision: VisionConfig, tokens: int, cpu: bool) -> int:
    """Return the bytes of a tower, as if it was not quantized, and of reading a picture of `tokens` soft tokens."""
    width = 4 if cpu else 2
    weights = sum(tensor.size for tensor in vision_tensors(vision)) * width
    if vision.unified:
        return weights + tokens * (3 * 3 * vision.side**2 + 4 * vision.hidden) * 4
    patches = tokens * vision.pooling**2
    row = 3 * vision.hidden + 6 * vision.inner  # the gated MLP is the widest place
    scores = 2 * min(VISION_SCORES, vision.heads * patches**2 * width) if cpu else 0
    return weights + patches * row * width + scores


def audio_bytes(audio: AudioConfig, tokens: int, cpu: bool) -> int:
    """Return the bytes of a tower, as if it was not quantized, and of hearing a piece of `tokens` soft tokens."""
    width = 4 if cpu else 2
    weights = sum(tensor.size for tensor in audio_tensors(audio)) * width
    if audio.unified:
        return weights + tokens * (3 * audio.hidden + audio.text) * 4
    first, _ = audio.channels
    convolved = 2 * (MELS // 2) * first  # entries of a soft token after the first convolution, the widest place
    return weights + tokens * (_CONVOLVED * convolved + _WIDE * 4 * audio.hidden) * width


def clippable(name: str, shape: tuple[int, int], kind: Kind, *, clipped: bool) -> Iterator[Tensor]:
    """Yield a matrix, and the bounds between which its input and its output are held."""
    yield Tensor(f"{name}.linear.weight", kind, shape)
    for bound in BOUNDS if clipped else ():
        yield Tensor(f"{name}.{bound}", NORM, (1,), quantizable=False)


def published(tensor: Tensor) -> Tensor:
    """Return a convolution's tensor [out, ..., in] as PyTorch orders it, [out, in, ...]; any other as it is."""
    if not tensor.name.endswith(("conv.weight", "conv1d.weight")):
        return tensor
    out, *kernel, inputs = tensor.shape
    return replace(tensor, shape=(out, inputs, *kernel))


def _vector(name: str, width: int) -> Tensor:
    return Tensor(name, NORM, (width,), quantizable=False)


class _Reader:
    """Sizes of a table of config.json."""

    def __init__(self, table: Mapping[str, Any], name: str) -> None:
        self.table, self.name = table, name

    def size(self, key: str, default: int | None = None) -> int:
        value = self.table.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 1 << 24:
            raise LoadError(f"{self.name} has {key} {value!r:.40}, which is no size. Take another checkpoint.")
        return value

    def pair(self, key: str, default: tuple[int, int]) -> tuple[int, int]:
        value = self.table.get(key, default)
        if not isinstance(value, list | tuple) or len(value) != 2:
            raise LoadError(f"{self.name} has {key} {value!r:.40}, which are no two sizes. Take another checkpoint.")
        first, second = (_Reader({key: one}, self.name).size(key) for one in value)
        return first, second

    def number(self, key: str, default: float) -> float:
        value = self.table.get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            raise LoadError(f"{self.name} has {key} {value!r:.40}, which is no number. Take another checkpoint.")
        return float(value)
