"""From the tensors of a published checkpoint to those of its conversion, in slices of rows; no value is read."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mlxmtp.convert.recipe import DTYPES, Recipe
from mlxmtp.errors import LoadError
from mlxmtp.models.checkpoint import match
from mlxmtp.models.config import ModelConfig
from mlxmtp.models.config_check import SIZES_BY_KIND
from mlxmtp.models.safetensors import WIDTHS, Layout, Stored
from mlxmtp.models.tensors import Piece, Quantization, Tensor, tower

SLICE = 16 << 20  # bytes of a source tensor in memory; on a CPU the floating-point modes take twenty times as much
_FLOATS = ("BF16", "F16", "F32")


@dataclass(frozen=True, slots=True)
class Task:
    """One tensor of the source, or a part of each of its blocks, and the tensors written from it.

    Rows are taken from each of ``blocks`` equal runs of rows: ``length`` of them from ``offset`` on. ``parts`` are the
    values, or quantized values, scales and (affine) biases. ``order`` turns a convolution's axes.
    """

    source: Stored
    parts: tuple[Layout, ...]
    quantization: Quantization | None = None
    blocks: int = 1
    offset: int = 0
    length: int = 0
    order: tuple[int, ...] | None = None

    @property
    def rows(self) -> int:
        return self.blocks * self.length

    def spans(self, first: int, count: int) -> Iterator[tuple[int, int]]:
        """Yield where written rows ``first`` … come from: runs of (row of the source, number)."""
        block_rows = self.source.layout.rows // self.blocks
        while count:
            block, row = divmod(first, self.length)
            run = min(count, self.length - row)
            yield block * block_rows + self.offset + row, run
            first, count = first + run, count - run


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows ``first`` to ``first + count`` of a task's tensors: the step of a conversion."""

    task: Task
    first: int
    count: int

    @property
    def nbytes(self) -> int:
        return sum(self.bytes_of(part)[1] for part in self.task.parts)

    def bytes_of(self, part: Layout) -> tuple[int, int]:
        """Return the place of its bytes in a part, and their number."""
        row = part.nbytes // self.task.rows
        return self.first * row, self.count * row


def slices(task: Task) -> Iterator[Slice]:
    """Cut a task into steps of at most ``SLICE`` bytes read (at least one row; a convolution is turned as a whole)."""
    step = task.rows if task.order else max(1, SLICE // max(1, task.source.layout.row_bytes))
    for first in range(0, task.rows, step):
        yield Slice(task, first, min(step, task.rows - first))


def make_tasks(config: ModelConfig, source: Mapping[str, Stored], recipe: Recipe) -> tuple[list[Task], list[str]]:
    """Return the tasks of a conversion, and the names in the source that it leaves out. Raises LoadError."""
    sources = match(config, {name: stored.layout for name, stored in source.items()}, config.folder)
    refuse_quantized(config, source, config.folder)
    # In the network's order, towers last: what belongs together is together in the files.
    tasks = [_task(config, source[one.names[0]], Piece(tensor, one.half), recipe) for tensor, one in sources.items()]
    used = {one.names[0] for one in sources.values()}
    for name, stored in source.items():
        if not (config.is_drafter or recipe.text_only) and (found := tower(name)) is not None:
            tasks.append(_tower(found[1], stored, recipe, published=found[1] != name))
            used.add(name)
    return tasks, [name for name in source if name not in used]


def refuse_quantized(config: ModelConfig, source: Mapping[str, Stored], origin: object) -> None:
    """Raise LoadError, which names `origin`, for quantized weights: what rounding has taken away is gone."""
    named = config.raw.get("quantization") or config.raw.get("quantization_config")
    odd = next((name for name, stored in source.items() if stored.layout.dtype.startswith(("F8", "U"))), None)
    if named or odd or any(name.endswith(".scales") for name in source):
        raise LoadError(
            f"{origin} is already quantized and cannot be converted again. Convert the 16-bit weights it was made of."
        )


def _task(config: ModelConfig, stored: Stored, piece: Piece, recipe: Recipe) -> Task:
    """Return the task for a tensor of the network: a whole one of the source, or half of every expert's rows."""
    tensor, half = piece
    blocks, length = (1, stored.layout.rows) if half is None else (tensor.shape[0], tensor.shape[1])
    how, dtype = recipe.quantization(tensor, drafter=config.is_drafter), _dtype(stored.layout.dtype, recipe)
    return Task(stored, _parts(tensor, how, dtype), how, blocks, (half or 0) * length, length)


def _parts(tensor: Tensor, how: Quantization | None, dtype: str) -> tuple[Layout, ...]:
    """Return the tensors written for one of the network."""
    if how is None:
        return (Layout(tensor.name, dtype, tensor.shape),)
    *rows, width = tensor.shape
    groups = (*rows, width // how.group_size)
    added = {"scales": dtype, "biases": dtype} if how.mode == "affine" else {"scales": "U8"}
    values = Layout(tensor.name, "U32", (*rows, width * how.bits // 32))
    return (values, *(Layout(f"{tensor.module}.{name}", kind, groups) for name, kind in added.items()))


def _tower(name: str, stored: Stored, recipe: Recipe, *, published: bool) -> Task:
    """Return the task for a tensor of a tower, never quantized; published convolutions get their channels last."""
    shape, dtype = stored.layout.shape, _dtype(stored.layout.dtype, recipe)
    if dtype not in WIDTHS:
        raise LoadError(
            f"Tensor {stored.layout.name} in {stored.file} is stored as {dtype}. Leave it out: --text-only."
        )
    convolution = {4: "conv.weight", 3: "conv1d.weight"}.get(len(shape))
    order = (0, *range(2, len(shape)), 1) if published and convolution and name.endswith(convolution) else None
    turned = shape if order is None else tuple(shape[axis] for axis in order)
    part = replace(stored.layout, name=name, dtype=dtype, shape=turned)
    return Task(stored, (part,), length=stored.layout.rows, order=order)


def _dtype(stored: str, recipe: Recipe) -> str:
    return DTYPES[recipe.dtype] if recipe.dtype is not None and stored in _FLOATS else stored


def output_config(config: ModelConfig, recipe: Recipe) -> dict[str, Any]:
    """Return config.json of the conversion: the source's, with what has changed."""
    raw: dict[str, Any] = dict(config.raw)
    if raw.get("text_config") is None:  # text alone: as the text part of the whole model, which every loader knows
        text = config.text
        top = {key: text[key] for key in ("eos_token_id", "tie_word_embeddings", "dtype") if key in text}
        raw = {"model_type": config.model_type.removesuffix("_text"), "text_config": text, **top}
    raw["text_config"] = dict(raw["text_config"])
    if raw["text_config"].pop("per_layer_config", None):  # the older names, which every loader knows
        raw["text_config"] |= {key: config.text[key] for key in SIZES_BY_KIND if key in config.text}
    raw["vocab_size"] = config.vocab_size  # mlx-lm looks for it here
    if recipe.dtype is not None:
        for table in (raw, raw["text_config"]):
            table.pop("torch_dtype", None)
            table["dtype"] = recipe.dtype
    if (block := recipe.block(config)) is not None:
        raw["quantization"] = block
    return raw
