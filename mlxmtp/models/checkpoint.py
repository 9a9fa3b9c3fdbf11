"""From the tensors of a checkpoint to those of the network: one check for loading, downloads, conversions and lists.

All of it follows from names, dtypes and shapes, so it is known before a value is read. Imports no MLX.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from mlxmtp.errors import LoadError
from mlxmtp.models.config import ModelConfig
from mlxmtp.models.safetensors import Layout, read_with_notes
from mlxmtp.models.tensors import MODES, Names, Quantization, Tensor, stored_name, tensors
from mlxmtp.models.towers import published

_FLOATS = ("BF16", "F16", "F32")
_ORDERS = ("I64", "I32", "U32")
_PARTS = ("weight", "scales", "biases")
_AFFINE_BITS, _AFFINE_GROUPS = (2, 3, 4, 5, 6, 8), (32, 64, 128)
_OTHER_TOOLS = (
    "weight_scale", "weight_scale_inv", "weight_packed", "weight_shape", "input_scale", "qweight", "qzeros", "g_idx",
    "absmax", "quant_map", "SCB",
)  # fmt: skip
_ADVICE = "Take another checkpoint, or convert the original weights with mlxmtp convert."


class Source(NamedTuple):
    """The place of a network's tensor in a checkpoint: names of its values, or of quantized values, scales and biases.

    ``half`` 0 or 1: that half of every expert's rows.
    """

    names: tuple[str, ...]
    half: int | None
    quantization: Quantization | None


def check_target(config: ModelConfig, name: object) -> list[str]:
    """Return what `check_folder` does of a target. Raises LoadError, which gives a drafter's ``name``, for others."""
    if config.is_drafter:
        raise LoadError(f"{name} is a drafter: it answers nothing on its own. Give it as the draft model.")
    return check_folder(config)


def check_folder(config: ModelConfig) -> list[str]:
    """Return sentences on what is ignored in a folder. Raises LoadError unless its weights are those of ``config``."""
    stored, notes = read_with_notes(config.folder)
    match(config, {name: one.layout for name, one in stored.items()}, config.folder)
    return [*config.notes, *notes]


def match(config: ModelConfig, layouts: Mapping[str, Layout], origin: object) -> dict[Tensor, Source]:
    """Return where every tensor of the network stands; bits and groups follow from shapes, whatever config.json says.

    Raises LoadError, which names ``origin``, for a tensor too few, too many, twice, of another shape, or of a type that
    holds no weights.
    """
    found, unknown = _found(config, layouts, origin)
    sources: dict[Tensor, Source] = {}
    missing, problem = [], ""
    for tensor in tensors(config):
        parts = found.get(tensor, {})
        if "weight" not in parts:
            missing.append(tensor.name)
            continue
        names, half = tuple(parts[part][0] for part in _PARTS if part in parts), parts["weight"][1]
        stored = [_of_half(layouts[name], half) for name in names]
        how = _quantization(tensor, stored) if len(stored) > 1 else None
        if how is None and not problem and (said := _problem(tensor, stored)):
            problem = f"Tensor {names[0]} in {origin} {said}."
        sources[tensor] = Source(names, half, how)
    for complaint, listed in (("has the unknown", unknown), ("lacks", missing)):
        if listed:
            more = f" and {len(listed) - 1} more" if len(listed) > 1 else ""
            problem = f"The checkpoint in {origin} {complaint} tensor {min(listed)}{more}."
    types = {layouts[name].dtype for source in sources.values() for name in source.names}
    if not problem and {"BF16", "F16"} <= types:
        problem = f"The checkpoint in {origin} mixes BF16 and F16, which no tool writes."
    if problem:
        raise LoadError(_other_tool(config, layouts, origin) or f"{problem} {_ADVICE}")
    return sources


def match_tower(wanted: Iterable[Tensor], layouts: Mapping[str, Layout], origin: object) -> dict[Tensor, Source]:
    """Return where every tensor of a tower stands; convolutions may have PyTorch's order of dimensions.

    Raises LoadError, which names ``origin``, for one that is missing or has another shape or type.
    """
    sources = {}
    for tensor in wanted:
        name = stored_name(tensor.name, layouts)
        if name is None:
            raise LoadError(f"The checkpoint in {origin} lacks {tensor.name} of its {tensor.kind}. {_ADVICE}")
        stem = name.removesuffix(".weight")
        names = (name, *(f"{stem}.{part}" for part in _PARTS[1:] if name != stem and f"{stem}.{part}" in layouts))
        stored = [layouts[one] for one in names]
        how = _quantization(tensor, stored) if len(stored) > 1 else None
        if how is None and (said := _problem(tensor, stored)) and _problem(published(tensor), stored):
            raise LoadError(f"Tensor {name} in {origin} {said}. {_ADVICE}")
        sources[tensor] = Source(names, None, how)
    return sources


def _found(
    config: ModelConfig, layouts: Mapping[str, Layout], origin: object
) -> tuple[dict[Tensor, dict[str, tuple[str, int | None]]], list[str]]:
    """Return names and halves by tensor of the network and part, and the names that no Gemma 4 has."""
    names = Names(config)
    found: dict[Tensor, dict[str, tuple[str, int | None]]] = {}
    unknown: list[str] = []
    for name in layouts:
        stem, _, leaf = name.rpartition(".")
        part = leaf if leaf in _PARTS else "weight"
        pieces = names.find(name if part == "weight" else f"{stem}.weight")
        if pieces is None:
            unknown.append(name)
        for tensor, half in pieces or ():
            parts = found.setdefault(tensor, {})
            if part in parts:
                raise LoadError(f"{origin} holds tensor {tensor.name} twice: {parts[part][0]} and {name}. {_ADVICE}")
            parts[part] = name, half
            if part != "weight" and not tensor.quantizable:
                unknown.append(name)
    return found, unknown


def _of_half(layout: Layout, half: int | None) -> Layout:
    """Return the layout of one half of every expert's rows; its shape fits nothing where there are no halves."""
    if half is None:
        return layout
    *first, rows, width = layout.shape if len(layout.shape) > 1 else (0, 1, 0)
    return Layout(layout.name, layout.dtype, (*first, rows // 2 if rows % 2 == 0 else -1, width))


def _quantization(tensor: Tensor, stored: list[Layout]) -> Quantization | None:
    """Return how a tensor is quantized, from the shapes of its parts; None for what MLX does not make."""
    (values, scales, *biases), (*rows, width) = stored, tensor.shape
    if values.dtype != "U32" or any(list(one.shape[:-1]) != rows for one in stored) or not scales.columns:
        return None
    bits, odd_bits = divmod(values.columns * 32, width)
    group, odd_group = divmod(width, scales.columns)
    if odd_bits or odd_group:
        return None
    if biases:
        alike = biases[0].shape == scales.shape and biases[0].dtype == scales.dtype in _FLOATS
        return Quantization(bits, group) if alike and bits in _AFFINE_BITS and group in _AFFINE_GROUPS else None
    modes = {how: mode for mode, how in MODES.items() if mode != "affine"}
    mode = modes.get((group, bits)) if scales.dtype == "U8" else None
    return None if mode is None else Quantization(bits, group, mode)


def _problem(tensor: Tensor, stored: list[Layout]) -> str | None:
    """Return what is wrong with a tensor that is not quantized as MLX does it, as the end of a sentence."""
    values = stored[0]
    if len(stored) > 1:
        shapes = " and ".join(f"{one.dtype} {one.shape}" for one in stored)
        return f"is quantized in a way that MLX does not know ({shapes} for {tensor.shape})"
    allowed = _ORDERS if tensor.name.endswith("token_ordering") else _FLOATS
    if values.dtype not in allowed:
        return f"is stored as {values.dtype}, which alone holds no weights"
    if values.shape != tensor.shape and not (values.shape == () and tensor.size == 1):
        return f"is {values.shape} and should be {tensor.shape}"
    return None


def _other_tool(config: ModelConfig, layouts: Mapping[str, Layout], origin: object) -> str | None:
    """Return the sentence for weights that another tool has quantized, or adapters that are not merged; else None."""
    if any(".lora_" in name or ".base_layer." in name for name in layouts):
        return f"{origin} holds an adapter (LoRA) that is not merged. Merge it into its model, and save that."
    block = config.raw.get("quantization_config")
    method = block.get("quant_method") if isinstance(block, Mapping) else None
    if method is None and not any(
        name.rpartition(".")[2] in _OTHER_TOOLS or one.dtype.startswith(("F8", "F4", "F6")) or one.dtype == "I8"
        for name, one in layouts.items()
    ):
        return None
    by = f"by {method}" if method else "by another tool"
    return (
        f"{origin} holds weights quantized {by}, which MLX does not read. Take an MLX conversion of the model, or its "
        "16-bit weights (mlxmtp convert makes 4 bits of them)."
    )
