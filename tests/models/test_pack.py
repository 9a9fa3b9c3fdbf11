"""Slices of a conversion against whole tensors, files laid out by us against MLX's own reader, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlxmtp.convert import slices as pack_module
from mlxmtp.convert import tasks as tasks_module
from mlxmtp.convert.recipe import Recipe, make_recipe
from mlxmtp.convert.slices import as_array, as_bytes, check_values, convert_slice
from mlxmtp.convert.tasks import Task, make_tasks, slices
from mlxmtp.errors import LoadError
from mlxmtp.models.config import read_config
from mlxmtp.models.safetensors import Layout, Stored, lay_out, read_bytes, read_folder, write_bytes
from mlxmtp.models.tensors import Names, Tensor, tower
from tests.golden import FOLDER

AFFINE = [{"bits": bits, "group_size": group} for bits in (4, 5, 6, 8) for group in (32, 64, 128)]
MODES = [*AFFINE, {"mode": "mxfp4"}, {"mode": "mxfp8"}, {"mode": "nvfp4"}]


def write(folder: Path, tensors: dict[str, mx.array]) -> dict[str, Stored]:
    folder.mkdir(exist_ok=True)
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    return read_folder(folder)


def load(file: Path) -> tuple[dict[str, mx.array], dict[str, str]]:
    """Tensors and metadata by MLX's own reader."""
    found: Any = mx.load(str(file), return_metadata=True)
    return found


def random(*shape: int, dtype: mx.Dtype = mx.bfloat16) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(sum(shape))).astype(dtype)


def run(task: Task) -> dict[str, mx.array]:
    """Everything that a task writes, put together from its slices."""
    pieces = [convert_slice(step) for step in slices(task)]
    assert all(check_values(step, data) for step, data in zip(slices(task), pieces, strict=True))
    joined = [b"".join(part) for part in zip(*pieces, strict=True)]
    return {
        layout.name: as_array(data, layout.dtype, layout.shape) for layout, data in zip(task.parts, joined, strict=True)
    }


def equal(a: mx.array, b: mx.array) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and as_bytes(a) == as_bytes(b)


def golden_tasks(family: str, recipe: Recipe, part: str = "target") -> dict[str, Task]:
    config = read_config(FOLDER / family / part)
    tasks, _ = make_tasks(config, read_folder(config.folder), recipe)
    return {task.parts[0].name: task for task in tasks}


@pytest.mark.parametrize("flags", MODES, ids=str)
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16, mx.float32], ids=str)
def test_slices_put_together_are_bit_for_bit_the_whole(flags, dtype, tmp_path, monkeypatch):
    recipe = make_recipe(flags)
    stored = write(tmp_path, {"w": random(37, 256, dtype=dtype)})["w"]
    whole = mx.quantize(
        load(tmp_path / "model.safetensors")[0]["w"],
        group_size=recipe.group_size,
        bits=recipe.bits,
        mode=recipe.mode,
    )
    packing = recipe.quantization(Tensor("w.weight", "mlp", (37, 256)), drafter=False)
    assert packing is not None
    parts = tasks_module._parts(Tensor("w.weight", "mlp", (37, 256)), packing, stored.layout.dtype)
    task = Task(stored, parts, packing, length=37)
    for rows in (1, 5, 37, 1000):
        monkeypatch.setattr(tasks_module, "SLICE", rows * stored.layout.row_bytes)
        assert len(list(slices(task))) == -(-37 // rows)
        got = run(task)
        assert [name.rpartition(".")[2] for name in got] == ["weight", "scales", "biases"][: len(whole)]
        assert all(equal(ours, theirs) for ours, theirs in zip(got.values(), whole, strict=True))


@pytest.mark.parametrize("flags", [{"bits": 16}, {"bits": 8}, {"mode": "mxfp4"}], ids=str)
def test_the_joined_projections_of_experts_are_separated(flags, monkeypatch):
    """Slices that end inside of an expert and slices that span several."""
    tensors, _ = load(FOLDER / "26b" / "target" / "model-00001-of-00002.safetensors")
    base = "model.language_model.layers.0.experts."
    halves = dict(zip(("gate", "up"), mx.split(tensors[f"{base}gate_up_proj"], 2, axis=-2), strict=True))
    tasks = golden_tasks("26b", make_recipe(flags))
    for rows in (7, 48, 1000):
        monkeypatch.setattr(tasks_module, "SLICE", rows * 64)
        for half, wanted in halves.items():
            task = tasks[f"language_model.model.layers.0.experts.switch_glu.{half}_proj.weight"]
            got = list(run(task).values())
            packing = task.quantization
            if packing is None:
                assert equal(got[0], mx.contiguous(wanted))
                continue
            whole = mx.quantize(wanted, group_size=packing.group_size, bits=packing.bits, mode=packing.mode)
            assert all(equal(ours, theirs) for ours, theirs in zip(got, whole, strict=True))


def test_towers_are_carried_over_with_channels_last(tmp_path):
    """Only published files have convolutions the other way round; nothing of a tower is packed."""
    config = read_config(FOLDER / "e2b" / "target")
    conv2d, conv1d, plain = random(6, 2, 3, 5), random(6, 1, 5), random(4, 64)
    turned = {"subsample_conv_projection.layer0.conv.weight": conv2d, "lconv1d.depthwise_conv1d.weight": conv1d}
    named = {**turned, "layers.0.q_proj.linear.weight": plain}
    for prefix, published in (("model.audio_tower.", True), ("audio_tower.", False)):
        stored = write(tmp_path, {f"{prefix}{name}": value for name, value in named.items()})
        whole = read_folder(FOLDER / "e2b" / "target")
        tasks, _ = make_tasks(config, {**whole, **stored}, Recipe())
        got: dict[str, mx.array] = {}
        for task in tasks:
            if task.source.layout.name in stored:
                got |= run(task)
        wanted = dict(named)
        if published:
            wanted["subsample_conv_projection.layer0.conv.weight"] = mx.contiguous(conv2d.transpose(0, 2, 3, 1))
            wanted["lconv1d.depthwise_conv1d.weight"] = mx.contiguous(conv1d.transpose(0, 2, 1))
        assert {name.removeprefix("audio_tower.") for name in got} == set(wanted)
        assert all(equal(got[f"audio_tower.{name}"], value) for name, value in wanted.items())


def test_dtype_is_that_of_everything_that_is_not_packed():
    for name, task in golden_tasks("e2b", make_recipe({"dtype": "float16"})).items():
        dtypes = {part.dtype for part in task.parts}
        assert dtypes <= {"U32", "F16"}, name
    values = run(golden_tasks("e2b", make_recipe({"dtype": "float32"}))["language_model.model.norm.weight"])
    source = load(FOLDER / "e2b" / "target" / "model.safetensors")[0]["model.language_model.norm.weight"]
    assert equal(values["language_model.model.norm.weight"], source.astype(mx.float32))


def test_integers_of_a_drafter_are_carried_over():
    task = golden_tasks("e2b", Recipe(draft_bits=4), "drafter")["masked_embedding.token_ordering"]
    source = load(FOLDER / "e2b" / "drafter" / "model.safetensors")[0]["masked_embedding.token_ordering"]
    assert equal(run(task)["masked_embedding.token_ordering"], source)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_no_numbers_are_named(bad, tmp_path):
    values = random(8, 64)
    values[5, 7] = bad
    stored = write(tmp_path, {"w": values})["w"]
    with pytest.raises(LoadError, match=r"Tensor w in .* no finite BF16 numbers"):
        run(Task(stored, (Layout("w.weight", "BF16", (8, 64)),), length=8))


@pytest.mark.parametrize("bound", ["input_min", "input_max", "output_min", "output_max"])
def test_bounds_of_a_tower_may_be_infinite(bound, tmp_path):
    """So transformers initializes them."""
    value = mx.array([-float("inf") if bound.endswith("min") else float("inf")], mx.bfloat16)
    name = f"vision_tower.encoder.layers.0.self_attn.q_proj.{bound}"
    stored = write(tmp_path, {f"model.{name}": value})[f"model.{name}"]
    assert equal(run(Task(stored, (Layout(name, "BF16", (1,)),), length=1))[name], value)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16, mx.float32], ids=str)
def test_the_largest_numbers_are_still_numbers(dtype):
    largest = mx.finfo(dtype).max
    assert pack_module._is_finite(mx.array([largest, -largest, 0.0, -0.0], dtype))
    for bad in (float("inf"), -float("inf"), float("nan"), -float("nan")):
        assert not pack_module._is_finite(mx.array([1.0, bad, largest], dtype))


@pytest.mark.parametrize("flags", [{}, {"mode": "mxfp4"}, {"mode": "mxfp8"}, {"mode": "nvfp4"}], ids=str)
def test_scales_that_are_no_numbers_are_seen(flags):
    task = golden_tasks("31b", make_recipe(flags))["language_model.model.layers.0.mlp.up_proj.weight"]
    (step,) = slices(task)
    weight, scales, *biases = convert_slice(step)
    assert check_values(step, [weight, scales, *biases])
    code = b"\xc0\x7f" if task.parts[1].dtype == "BF16" else b"\x7f" if flags == {"mode": "nvfp4"} else b"\xff"
    assert not check_values(step, [weight, code + scales[len(code) :], *biases])
    if biases:
        assert not check_values(step, [weight, scales, biases[0][:-2] + b"\x80\x7f"])


def test_values_too_large_for_a_smaller_dtype_are_named(tmp_path):
    stored = write(tmp_path, {"w": mx.full((2, 32), 1e6, dtype=mx.bfloat16)})["w"]
    with pytest.raises(LoadError, match=r"no finite F16 numbers.*another --dtype"):
        run(Task(stored, (Layout("w.weight", "F16", (2, 32)),), length=2))


def test_files_laid_out_here_are_read_by_mlx(tmp_path):
    tensors = {
        "scalar": random(1), "wide": mx.arange(12, dtype=mx.uint32).reshape(3, 4),
        "bytes": mx.arange(7, dtype=mx.uint8), "order": mx.arange(5, dtype=mx.int64), "half": random(3, 3),
    }  # fmt: skip
    kinds = {mx.bfloat16: "BF16", mx.uint32: "U32", mx.uint8: "U8", mx.int64: "I64"}
    file = tmp_path / "model.safetensors"
    layouts = [Layout(name, kinds[value.dtype], tuple(value.shape)) for name, value in tensors.items()]
    header, places = lay_out(file, layouts, {"format": "mlx"})
    with file.open("wb") as stream:
        for place in reversed(places):
            write_bytes(stream.fileno(), as_bytes(tensors[place.layout.name]), place.start)
        write_bytes(stream.fileno(), header, 0)
    assert all(place.start % {"I64": 8, "U32": 4, "BF16": 2, "U8": 1}[place.layout.dtype] == 0 for place in places)
    read, metadata = load(file)
    assert metadata == {"format": "mlx"}
    assert read.keys() == tensors.keys()
    assert all(equal(read[name], value) for name, value in tensors.items())
    found = read_folder(tmp_path)
    assert bytes(read_bytes(found["order"], 8, 16)) == as_bytes(tensors["order"])[8:24]


def test_a_file_that_shrinks_while_it_is_read_is_told(tmp_path):
    stored = write(tmp_path, {"w": random(64, 64)})["w"]
    with stored.file.open("r+b") as stream:
        stream.truncate(stored.start + 100)
    with pytest.raises(LoadError, match=r"ends in the middle of w\. Download the model again"):
        read_bytes(stored, 0, stored.layout.nbytes)


@pytest.mark.parametrize(
    ("published", "wanted"),
    [
        ("model.language_model.layers.0.mlp.up_proj.weight", "language_model.model.layers.0.mlp.up_proj.weight"),
        ("language_model.model.norm.weight", "language_model.model.norm.weight"),
        ("model.language_model.model.norm.weight", "language_model.model.norm.weight"),
        ("model.norm.weight", "language_model.model.norm.weight"),
        ("model.layers.0.self_attn.k_proj.weight", "language_model.model.layers.0.self_attn.k_proj.weight"),
        ("model.vision_tower.x", "vision_tower.x"),
        ("embed_audio.x", "embed_audio.x"),
        ("base_model.model.model.vision_tower.x", "vision_tower.x"),
        ("base_model.model.model.language_model.norm.weight", "language_model.model.norm.weight"),
    ],
)
def test_names(published, wanted):
    names = Names(read_config(FOLDER / "e2b" / "target"))
    pieces, found = names.find(published), tower(published)
    assert pieces is not None
    assert names.kind(published) == (found[0] if found else pieces[0].tensor.kind)
    assert [piece.tensor.name for piece in pieces if piece.tensor.loaded] == ([] if found else [wanted])
    assert found is None or found[1] == wanted
