"""Every layout that is in circulation loads, and every way a checkpoint can be broken is one sentence."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlxmtp.decode.decoder import Decoder
from mlxmtp.errors import LoadError
from mlxmtp.models import device
from mlxmtp.models.config import read_config
from mlxmtp.models.kv_cache import KVCache, PromptView
from mlxmtp.models.load import load_drafter, load_target, read_weights
from mlxmtp.models.tensors import MODES
from tests.golden import load_golden, relative_error
from tests.networks import decode
from tests.oracle import DrafterWeights, build_target, parameters

PROMPT = load_golden("e2b").records["long"].prompt


def copy(family: str, part: str, to: Path) -> Path:
    shutil.copytree(getattr(load_golden(family), part), to / part)
    return to / part


def stock(folder: Path) -> Any:
    """mlx-lm's own network with the checkpoint's weights in float32."""
    network = build_target(read_config(folder))
    weights = {name: value.astype(mx.float32) for name, value in network.sanitize(read_weights(folder)).items()}
    network.load_weights(list(weights.items()))
    return network


def logits(folder: Path) -> mx.array:
    """Logits [1, V] after PROMPT, by our own way of reading and running ``folder``."""
    target = load_target(folder)
    cache = KVCache(target.cache_spec, target.dtype)
    cache.reserve(64)
    return target.logits(
        target.hidden(mx.array(PROMPT), PromptView(target.cache_spec, cache.buffers, 0, len(PROMPT)))[-1:]
    )


def save(folder: Path, network: nn.Module, quantization: dict | None = None) -> None:
    """Writes ``network`` the way MLX converters do: MLX names, one file, the quantization in config.json."""
    mx.eval(network.parameters())
    tensors = dict(parameters(network))
    for file in folder.glob("model*"):
        file.unlink()
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    if quantization is not None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"quantization": quantization}))


@pytest.mark.parametrize("family", ["e2b", "12b", "26b"])
def test_an_mlx_conversion_reads_like_the_published_files(family, tmp_path):
    golden = load_golden(family)
    folder = copy(family, "target", tmp_path)
    wanted = logits(folder)
    save(folder, stock(golden.target))
    names = mx.load(str(folder / "model.safetensors"))
    assert isinstance(names, dict)
    assert all(name.startswith("language_model.model.") for name in names)
    assert relative_error(logits(folder), wanted) < 1e-6


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
def test_weights_may_be_stored_in_any_float_type(dtype, tmp_path):
    folder = copy("31b", "target", tmp_path)
    wanted = logits(folder)
    weights = {name: value.astype(dtype) for name, value in read_weights(folder).items()}
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    assert relative_error(logits(folder), wanted) < 2e-3  # exact but for float16's range; the goldens have few bits


@pytest.mark.parametrize(
    "mode", ["affine-2", "affine-3", "affine-4", "affine-5", "affine-6", "affine-8", "mxfp4", "mxfp8", "nvfp4"]
)
@pytest.mark.parametrize("family", ["e2b", "26b"])
def test_quantized_targets_compute_what_mlx_lm_computes(family, mode, tmp_path, monkeypatch):
    """All of MLX's formats; the joined projections and the packed tables must not change a thing."""
    embed = nn.QuantizedEmbedding.__call__  # of floating-point modes in bfloat16, in a network of float32
    monkeypatch.setattr(nn.QuantizedEmbedding, "__call__", lambda self, ids: embed(self, ids).astype(mx.float32))
    folder = copy(family, "target", tmp_path)
    network = stock(folder)
    name, _, bits = mode.partition("-")
    how = {"affine": (32, int(bits or 0)), "mxfp4": (32, 4), "mxfp8": (32, 8), "nvfp4": (16, 4)}[name]
    quantization: dict = {"group_size": how[0], "bits": how[1], "mode": name}
    own = {
        "language_model.model.layers.0.mlp.down_proj": {"group_size": 32, "bits": 8},
        "language_model.model.layers.0.self_attn.k_proj": {"group_size": 32, "bits": 8},
    }

    def choose(path: str, module: Any) -> bool | dict:
        fits = hasattr(module, "to_quantized") and module.weight.shape[-1] % 32 == 0
        return fits and own.get(path, True)

    nn.quantize(network, group_size=how[0], bits=how[1], mode=name, class_predicate=choose)
    save(folder, network, quantization | own)
    wanted = network(mx.array([PROMPT]))[:, -1]
    assert relative_error(logits(folder), wanted) < 1e-4


@pytest.mark.parametrize("mode", MODES)
def test_packed_embeddings_have_the_dtype_of_the_network(mode, tmp_path):
    folder = copy("31b", "target", tmp_path)
    network = stock(folder)
    group, bits = MODES[mode]
    group = min(group, 32)

    def choose(path: str, _: Any) -> bool:
        return path.endswith("embed_tokens")

    nn.quantize(network, group_size=group, bits=bits, mode=mode, class_predicate=choose)
    save(folder, network, {"group_size": group, "bits": bits, "mode": mode})
    target = load_target(folder)
    assert target.embed(mx.array(PROMPT)).dtype == target.dtype == mx.float32


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
def test_a_drafter_computes_in_its_targets_16_bits(dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(device, "compute_dtype", lambda stored: stored)  # as on a GPU
    folder = copy("31b", "target", tmp_path)
    weights = {name: value.astype(dtype) for name, value in read_weights(folder).items()}
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    target = load_target(folder)
    drafter = load_drafter(load_golden("31b").drafter, target)
    cache = KVCache(target.cache_spec, target.dtype)
    cache.reserve(64)
    view = PromptView(target.cache_spec, cache.buffers, 0, len(PROMPT))
    hidden, token = target.hidden(mx.array(PROMPT), view)[-1:], target.embed(mx.array(PROMPT[:1]))
    place = mx.array([len(PROMPT)], mx.int32)
    _, following = drafter.step(token, hidden, place, view.buffers, drafter.context(view.buffers, place))
    assert hidden.dtype == following.dtype == dtype


@pytest.mark.few(2)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("family", ["e2b", "31b"])
def test_a_quantized_drafter_drafts_like_its_unpacked_self(family, bits, tmp_path):
    """Packed in the file, or packed at load: the drafts are those of the dequantized weights, whatever the head."""
    golden = load_golden(family)
    target = load_target(golden.target)
    folder = copy(family, "drafter", tmp_path)
    network = DrafterWeights(read_config(folder))
    network.load_weights(
        [(n, v.astype(mx.float32) if v.dtype == mx.bfloat16 else v) for n, v in read_weights(folder).items()]
    )

    quantization: dict = {"group_size": 64, "bits": bits}

    def how(path: str, module: Any) -> bool | dict:
        if not isinstance(module, nn.Linear | nn.Embedding) or module.weight.shape[-1] % 32:
            return False
        if module.weight.shape[-1] % 64:
            quantization[path] = {"group_size": 32, "bits": bits}
        return quantization.get(path, True)

    nn.quantize(network, group_size=64, bits=bits, class_predicate=how)
    packed = copy(family, "drafter", tmp_path / "packed")
    save(packed, network, quantization)
    for path, module in network.named_modules():
        if hasattr(module, "scales"):
            values = mx.dequantize(module.weight, module.scales, module.biases, group_size=module.group_size, bits=bits)
            kind: Any = nn.Embedding if isinstance(module, nn.QuantizedEmbedding) else nn.Linear
            plain = kind(1, 1)
            plain.weight = values
            plain.pop("bias", None)
            network.update_modules(_nested(path, plain))
    save(folder, network)

    def drafts(path: Path, at_load: int | None = None) -> list:
        drafter = load_drafter(path, target, bits=at_load)
        rounds = list(
            Decoder(target, drafter, compiled="never").rounds(
                golden.records["long"].prompt, max_tokens=40, num_draft_tokens=4
            )
        )
        assert [t for r in rounds for t in r.tokens] == golden.records["long"].greedy
        return [r.draft for r in rounds]

    assert drafts(packed) == drafts(folder)
    assert drafts(golden.drafter, at_load=bits) == drafts(folder)


def _nested(path: str, module: nn.Module) -> dict:
    """{"a": {"b": [{}, module]}} for the path a.b.1, as update_modules wants it."""
    tree: object = module
    for key in reversed(path.split(".")):
        tree = [{}] * int(key) + [tree] if key.isdigit() else {key: tree}
    assert isinstance(tree, dict)
    return tree


def break_weights(folder: Path, change: str) -> None:
    weights = read_weights(folder)
    mx.eval(weights)
    name = next(n for n in weights if n.endswith("layers.0.mlp.up_proj.weight"))
    if change == "missing":
        del weights[name]
    elif change == "extra":
        weights[name.replace("up_proj", "side_proj")] = weights[name]
    else:
        weights[name] = weights[name][:-1]
    mx.save_safetensors(str(folder / "model.safetensors"), weights)


@pytest.mark.parametrize("part", ["target", "drafter"])
@pytest.mark.parametrize(
    ("change", "message"),
    [("missing", "lacks tensor .*up_proj"), ("extra", "unknown tensor .*side_proj"), ("shape", "up_proj.* should be")],
)
def test_wrong_tensors_are_named(part, change, message, tmp_path):
    folder = copy("e2b", part, tmp_path)
    break_weights(folder, change)
    with pytest.raises(LoadError, match=message):
        load_target(folder) if part == "target" else load_drafter(folder, load_target(load_golden("e2b").target))


def change_config(folder: Path, **fields: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def change_text(folder: Path, **fields: object) -> None:
    text = json.loads((folder / "config.json").read_text())["text_config"] | fields
    change_config(folder, text_config={key: value for key, value in text.items() if value is not ...})


def rewrite(folder: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    (folder / name).write_bytes(change((folder / name).read_bytes()))


CONFIG, WEIGHTS = "config.json", "model.safetensors"
DAMAGES: dict[str, Callable[[Path], object]] = {
    "no config": lambda folder: (folder / CONFIG).unlink(),
    "config cut off": lambda folder: rewrite(folder, CONFIG, lambda data: data[:100]),
    "config no object": lambda folder: rewrite(folder, CONFIG, lambda _: b"[]"),
    "config not utf-8": lambda folder: rewrite(folder, CONFIG, lambda _: b"\xff\xfe\x00"),
    "no text_config": lambda folder: change_config(folder, text_config=None),
    "field missing": lambda folder: change_text(folder, head_dim=...),
    "layers do not match": lambda folder: change_text(folder, num_hidden_layers=3),
    "unknown rotation": lambda folder: change_text(folder, rope_parameters={"full_attention": {"rope_type": "yarn"}}),
    "other model": lambda folder: change_config(folder, model_type="llama"),
    "no weights": lambda folder: (folder / WEIGHTS).unlink(),
    "weights cut off": lambda folder: rewrite(folder, WEIGHTS, lambda data: data[:-10]),
    "header cut off": lambda folder: rewrite(folder, WEIGHTS, lambda data: data[:20]),
    "header damaged": lambda folder: rewrite(folder, WEIGHTS, lambda data: data[:8] + b"x" + data[9:]),
    "empty file": lambda folder: rewrite(folder, WEIGHTS, lambda _: b""),
    "text file": lambda folder: rewrite(folder, WEIGHTS, lambda _: b"not weights at all, but a page that says so"),
}


@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_folders_are_told_in_one_sentence(how, tmp_path):
    folder = copy("31b", "target", tmp_path)
    DAMAGES[how](folder)
    with pytest.raises(LoadError) as error:
        load_target(folder)
    message = str(error.value)
    assert str(folder) in message
    assert "\n" not in message
    assert message.endswith(".")


def test_a_missing_shard_is_named(tmp_path):
    folder = copy("26b", "target", tmp_path)
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(LoadError, match=shard.name):
        load_target(folder)


def test_target_and_drafter_cannot_be_exchanged():
    golden = load_golden("e2b")
    with pytest.raises(LoadError, match="is a drafter"):
        load_target(golden.drafter)
    with pytest.raises(LoadError, match="not a Gemma 4 drafter"):
        load_drafter(golden.target, load_target(golden.target))
    with pytest.raises(LoadError, match="does not fit this target"):
        load_drafter(load_golden("e4b").drafter, load_target(golden.target))
    with pytest.raises(LoadError, match="not a folder"):
        load_target(golden.target / "nowhere")


def test_stop_tokens_are_those_of_both_files():
    config = read_config(load_golden("e2b").target)
    assert config.raw["eos_token_id"] == [1, 106]
    assert config.stop_ids == {1, 50, 106}


def test_loading_keeps_one_copy_of_the_weights():
    """The joined products replace their parts."""
    folder = load_golden("31b").target
    load_target(folder)
    mx.clear_cache()
    before = mx.get_active_memory()
    target = load_target(folder)
    text = sum(value.size for name, value in read_weights(folder).items() if "language_model" in name)
    assert mx.get_active_memory() - before < 1.1 * 4 * text
    assert decode(Decoder(target, compiled="never"), [5, 6], 2)
