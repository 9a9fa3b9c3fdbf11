"""From the tensors of a published checkpoint to those of its conversion, in slices of rows.

Names become those of MLX conversions (``language_model.model.…``, towers without ``model.``), the joined gate and up
projections of the experts are separated, keys and values that no layer reads are dropped, and convolutions of the
towers are turned to MLX's order. Everything here follows from headers and configuration: no value is read.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mlxmtp.convert.recipe import DTYPES, Recipe
from mlxmtp.errors import LoadError
from mlxmtp.models.config import ModelConfig
from mlxmtp.models.safetensors import Layout, Stored
from mlxmtp.models.tensors import Packing, Tensor, own_layers, tensors

SLICE = 16 << 20
"""Bytes of a source tensor in memory at a time. On a CPU the floating-point modes take twenty times as much."""

TOWERS = ("vision_tower", "audio_tower", "embed_vision", "embed_audio", "vision_embedder", "multi_modal_projector")

_FLOATS = ("BF16", "F16", "F32")
_UNUSED = ("rotary_emb", "input_max", "input_min", "output_max", "output_min")
_OF_LAYER = re.compile(r"\.layers\.(\d+)\.self_attn\.([kv]_(?:proj|norm))\.")


@dataclass(frozen=True, slots=True)
class Task:
    """One tensor of the source, or a part of each of its blocks, and what becomes of it.

    Rows are taken from each of ``blocks`` equal runs of rows: ``length`` of them from ``offset`` on. ``parts`` are the
    tensors written: the values, or packed values, scales and (affine) biases. ``order`` turns a convolution's axes.
    """

    source: Stored
    parts: tuple[Layout, ...]
    packing: Packing | None = None
    blocks: int = 1
    offset: int = 0
    length: int = 0
    order: tuple[int, ...] | None = None

    @property
    def rows(self) -> int:
        """Rows that are written."""
        return self.blocks * self.length

    def spans(self, first: int, count: int) -> Iterator[tuple[int, int]]:
        """Where written rows ``first`` … come from: runs of (row of the source, number)."""
        block_rows = self.source.layout.rows // self.blocks
        while count:
            block, row = divmod(first, self.length)
            run = min(count, self.length - row)
            yield block * block_rows + self.offset + row, run
            first, count = first + run, count - run


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows ``first`` to ``first + count`` of what a task writes: the step of a conversion."""

    task: Task
    first: int
    count: int

    @property
    def nbytes(self) -> int:
        """Bytes that it writes."""
        return sum(self.bytes_of(part)[1] for part in self.task.parts)

    def bytes_of(self, part: Layout) -> tuple[int, int]:
        """Where in a part its bytes begin, and their number."""
        row = part.nbytes // self.task.rows
        return self.first * row, self.count * row


def slices(task: Task) -> Iterator[Slice]:
    """A task in steps that read at most ``SLICE`` bytes each (one row at least; a convolution is turned as a whole)."""
    step = task.rows if task.order else max(1, SLICE // max(1, task.source.layout.row_bytes))
    for first in range(0, task.rows, step):
        yield Slice(task, first, min(step, task.rows - first))


def make_tasks(config: ModelConfig, source: Mapping[str, Stored], recipe: Recipe) -> tuple[list[Task], list[str]]:
    """What a conversion writes, and the names in the source that it leaves out.

    Raises LoadError if the source is quantized already, lacks a tensor or has one that no Gemma 4 has.
    """
    refuse_quantized(config, source, config.folder)
    wanted = {tensor.name: tensor for tensor in tensors(config)}
    tasks: dict[str, Task] = {}
    left_out: list[str] = []
    for name, stored in source.items():
        made = _task(config, name, stored, wanted, recipe)
        tasks |= made
        if not made:
            left_out.append(name)
    missing = wanted.keys() - tasks.keys()
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise LoadError(
            f"The checkpoint in {config.folder} lacks tensor {min(missing)}{more}. Download the model again."
        )
    # In the network's order, towers last: what belongs together is together in the files.
    places = {name: at for at, name in enumerate(wanted)}
    return [tasks[name] for name in sorted(tasks, key=lambda name: places.get(name, len(places)))], left_out


def refuse_quantized(config: ModelConfig, source: Mapping[str, Stored], origin: object) -> None:
    """Raise LoadError, which names `origin`, for quantized weights: what rounding has taken away is gone."""
    named = config.raw.get("quantization") or config.raw.get("quantization_config")
    odd = next((name for name, stored in source.items() if stored.layout.dtype.startswith(("F8", "U"))), None)
    if named or odd or any(name.endswith(".scales") for name in source):
        raise LoadError(
            f"{origin} is already quantized and cannot be converted again. Convert the 16-bit weights it was made of."
        )


def converted_name(name: str) -> str:
    """The name of a target's tensor in MLX conversions: ``language_model.model.…``; towers lose ``model.``."""
    rest = name.removeprefix("model.")
    if rest.startswith(TOWERS) or rest.startswith(("language_model.model.", "language_model.lm_head.")):
        return rest
    if rest.startswith("lm_head."):
        return f"language_model.{rest}"
    return f"language_model.model.{rest.removeprefix('language_model.')}"


def _task(
    config: ModelConfig, name: str, stored: Stored, wanted: Mapping[str, Tensor], recipe: Recipe
) -> dict[str, Task]:
    """What becomes of one tensor of the source, by name; nothing if it is not needed."""
    if config.is_drafter:
        new = name.removeprefix("language_model.")
    else:
        new = converted_name(name)
        if new.startswith(TOWERS):
            return {} if recipe.text_only else {new: _tower(new, stored, recipe, published=new != name)}
    if new.endswith(".experts.gate_up_proj"):
        base = new.removesuffix("gate_up_proj")
        return {
            f"{base}switch_glu.{half}_proj.weight": _half(
                config, stored, wanted.get(f"{base}switch_glu.{half}_proj.weight"), recipe, at
            )
            for at, half in enumerate(("gate", "up"))
        }
    if new.endswith(".experts.down_proj"):
        new = f"{new.removesuffix('down_proj')}switch_glu.down_proj.weight"
    if new in wanted:
        return {new: _whole(config, stored, wanted[new], recipe)}
    if _is_unused(config, new):
        return {}
    raise LoadError(f"The checkpoint in {config.folder} has the unknown tensor {name}: it is no Gemma 4 as published.")


def _is_unused(config: ModelConfig, name: str) -> bool:
    """Tensors that published checkpoints hold and no network reads."""
    found = _OF_LAYER.search(name)
    if found is not None:
        return int(found[1]) >= own_layers(config)
    return name.endswith("lm_head.weight") or any(word in name for word in _UNUSED)


def _whole(config: ModelConfig, stored: Stored, tensor: Tensor, recipe: Recipe) -> Task:
    _check_shape(config, stored, tensor, stored.layout.shape)
    parts, packing = _parts(config, stored, tensor, recipe)
    return Task(stored, parts, packing, length=stored.layout.rows)


def _half(config: ModelConfig, stored: Stored, tensor: Tensor | None, recipe: Recipe, at: int) -> Task:
    """One of the two halves of every expert's rows."""
    if tensor is None:
        raise LoadError(f"The checkpoint in {config.folder} has experts, its config.json has none.")
    experts, both, width = stored.layout.shape if len(stored.layout.shape) == 3 else (0, 0, 0)
    _check_shape(config, stored, tensor, (experts, both // 2, width))
    parts, packing = _parts(config, stored, tensor, recipe)
    return Task(stored, parts, packing, blocks=experts, offset=at * (both // 2), length=both // 2)


def _check_shape(config: ModelConfig, stored: Stored, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if shape != tensor.shape:
        where = f"Tensor {stored.layout.name} in {config.folder}"
        raise LoadError(f"{where} is {shape} and should be {tensor.shape}. Download the model again.")


def _parts(
    config: ModelConfig, stored: Stored, tensor: Tensor, recipe: Recipe
) -> tuple[tuple[Layout, ...], Packing | None]:
    """The tensors written for one of the network."""
    packing = recipe.packing(tensor, drafter=config.is_drafter)
    dtype = _dtype(stored.layout.dtype, recipe)
    if packing is None:
        return (Layout(tensor.name, dtype, tensor.shape),), None
    if dtype not in _FLOATS:
        raise LoadError(f"Tensor {stored.layout.name} in {config.folder} has dtype {dtype}, which cannot be quantized.")
    *rows, width = tensor.shape
    module = tensor.name.removesuffix(".weight")
    groups = (*rows, width // packing.group_size)
    values = Layout(tensor.name, "U32", (*rows, width * packing.bits // 32))
    if packing.mode != "affine":
        return (values, Layout(f"{module}.scales", "U8", groups)), packing
    return (values, Layout(f"{module}.scales", dtype, groups), Layout(f"{module}.biases", dtype, groups)), packing


def _tower(name: str, stored: Stored, recipe: Recipe, *, published: bool) -> Task:
    """A tensor of a tower, never packed; convolutions of published files get their channels last."""
    shape = stored.layout.shape
    order: tuple[int, ...] | None = None
    if published and name.endswith("conv.weight") and len(shape) == 4:
        order = (0, 2, 3, 1)
    if published and name.endswith("conv1d.weight") and len(shape) == 3:
        order = (0, 2, 1)
    part = replace(
        stored.layout,
        name=name,
        dtype=_dtype(stored.layout.dtype, recipe),
        shape=shape if order is None else tuple(shape[axis] for axis in order),
    )
    return Task(stored, (part,), length=stored.layout.rows, order=order)


def _dtype(stored: str, recipe: Recipe) -> str:
    return DTYPES[recipe.dtype] if recipe.dtype is not None and stored in _FLOATS else stored


def output_config(config: ModelConfig, recipe: Recipe) -> dict[str, Any]:
    """config.json of the conversion: the source's, with what has changed."""
    raw: dict[str, Any] = dict(config.raw)
    if raw.get("text_config") is None:  # text alone: as the text part of the whole model, which every loader knows
        text = dict(config.text)
        kept: dict[str, Any] = {
            key: text[key] for key in ("eos_token_id", "tie_word_embeddings", "dtype") if key in text
        }
        raw = {"model_type": config.model_type.removesuffix("_text"), "text_config": text, **kept}
    raw["text_config"] = dict(raw["text_config"])
    raw["vocab_size"] = config.vocab_size  # mlx-lm looks for it here
    if recipe.dtype is not None:
        for table in (raw, raw["text_config"]):
            table.pop("torch_dtype", None)
            table["dtype"] = recipe.dtype
    block = recipe.block(config)
    if block is not None:
        raw["quantization"] = block
    return raw


def expected_layouts(tasks: list[Task]) -> dict[str, Layout]:
    """Every tensor that the finished files must hold."""
    return {part.name: part for task in tasks for part in task.parts}
