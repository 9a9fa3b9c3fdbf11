"""Checkpoints as people have them: those of other tools give the same text, what cannot be used says why."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlxmtp.app.open import load
from mlxmtp.decode.decoder import Decoder
from mlxmtp.decode.sampling import Sampling
from mlxmtp.errors import LoadError
from mlxmtp.machine.memory import need
from mlxmtp.models.checkpoint import check_folder
from mlxmtp.models.config import check_pair, read_config
from mlxmtp.models.load import load_drafter, load_target, read_weights
from tests.golden import FAMILIES, load_golden
from tests.models.test_load import save, stock
from tests.networks import decode

LENGTH = 10


def copy(family: str, part: str, to: Path) -> Path:
    shutil.copytree(getattr(load_golden(family), part), to / part)
    return to / part


def text_of(folder: Path, family: str, drafter: Path | None = None, drafts: int = 0) -> list[int]:
    target = load_target(folder)
    network = None if drafter is None else load_drafter(drafter, target)
    prompt = load_golden(family).records["long"].prompt
    return decode(Decoder(target, network, compiled="never"), prompt, LENGTH, num_draft_tokens=drafts)


def assert_same_text(folder: Path, family: str) -> None:
    assert text_of(folder, family) == load_golden(family).records["long"].greedy[:LENGTH]


def change_json(file: Path, change: Callable[[Any], object]) -> None:
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def rewrite(file: Path, change: Callable[[dict[str, mx.array]], object]) -> None:
    tensors = mx.load(str(file))
    assert isinstance(tensors, dict)
    mx.eval(tensors)
    change(tensors)
    mx.eval(tensors)
    mx.save_safetensors(str(file), tensors)


def named(tensors: dict[str, mx.array], ending: str) -> str:
    return next(name for name in tensors if name.endswith(ending))


# Which files and which tensors in them.


def test_an_index_decides_from_which_file_a_tensor_comes(tmp_path):
    folder = copy("26b", "target", tmp_path)
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    name = next(name for name in index if name.endswith("layers.0.mlp.down_proj.weight"))
    other = next(file for file in folder.glob("model-*.safetensors") if file.name != index[name])
    stale = read_weights(folder)[name] * -3
    rewrite(other, lambda tensors: tensors.update({name: stale, "optimizer.state": stale}))
    assert_same_text(folder, "26b")
    assert any("its index does not name them" in note for note in check_folder(read_config(folder)))


def rename_in_index(folder: Path) -> None:
    file = folder / "model.safetensors.index.json"
    file.write_text(file.read_text().replace("of-00002", "of-00005"))


def other_names_in_index(folder: Path) -> None:
    file = folder / "model.safetensors.index.json"
    file.write_text(file.read_text().replace("language_model", "text_model"))


@pytest.mark.parametrize("how", [rename_in_index, other_names_in_index])
def test_an_index_of_other_files_gives_way_to_a_complete_set(how, tmp_path):
    folder = copy("26b", "target", tmp_path)
    how(folder)
    assert_same_text(folder, "26b")
    assert any("so it is ignored" in note for note in check_folder(read_config(folder)))


def test_copies_and_adapters_beside_the_weights_are_not_read(tmp_path):
    folder = copy("e2b", "target", tmp_path)
    for name in ("model-ema.safetensors", "model (copy).safetensors", "adapter_model.safetensors"):
        mx.save_safetensors(str(folder / name), {"model.language_model.norm.weight": mx.zeros((32,))})
    assert_same_text(folder, "e2b")


def test_numbered_files_are_read_without_an_index_and_only_all_of_them(tmp_path):
    folder = copy("26b", "target", tmp_path)
    (folder / "model.safetensors.index.json").unlink()
    assert_same_text(folder, "26b")
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(LoadError, match="of 2 numbered files some are missing"):
        load_target(folder)


def test_two_files_that_hold_one_tensor_and_no_index_are_refused(tmp_path):
    folder = copy("26b", "target", tmp_path)
    (folder / "model.safetensors.index.json").unlink()
    first, second = sorted(folder.glob("model-*.safetensors"))
    found = mx.load(str(first))
    assert isinstance(found, dict)
    name, value = next(iter(found.items()))
    rewrite(second, lambda tensors: tensors.update({name: value}))
    with pytest.raises(LoadError, match="stands in two files"):
        load_target(folder)


# Configurations of today.


def with_per_layer_config(config: dict[str, Any]) -> None:
    """Write head sizes as transformers does from 5.15 on."""
    text = config["text_config"]
    full = {
        "head_dim": text.pop("global_head_dim", None),
        "num_key_value_heads": text.pop("num_global_key_value_heads", None),
    }
    entry = {key: value for key, value in full.items() if value}
    kinds = enumerate(text["layer_types"])
    text["per_layer_config"] = {f"{i:02}": entry for i, kind in kinds if kind == "full_attention" and entry}


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_may_stand_in_per_layer_config(family, tmp_path):
    golden = load_golden(family)
    folders = {part: copy(family, part, tmp_path) for part in ("target", "drafter")}
    for folder in folders.values():
        change_json(folder / "config.json", with_per_layer_config)
    assert text_of(folders["target"], family, folders["drafter"], 4) == golden.records["long"].greedy[:LENGTH]
    target, drafter = (read_config(folder) for folder in folders.values())
    check_pair(target, drafter)
    assert need(target, drafter, 512) == need(read_config(golden.target), read_config(golden.drafter), 512)


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ({"00": {"head_dim": 16}}, "layers of one type with different head_dim"),
        ({"00": {"intermediate_size": 4}}, "has intermediate_size in per_layer_config"),
        ({"05": {"head_dim": "wide"}}, "has head_dim 'wide'"),
        ([1], "no table of tables"),
    ],
)
def test_other_sizes_by_layer_are_refused(entries, sentence, tmp_path):
    folder = copy("31b", "target", tmp_path)
    change_json(folder / "config.json", lambda config: config["text_config"].update(per_layer_config=entries))
    with pytest.raises(LoadError, match=sentence):
        load_target(folder)


SPELLINGS: dict[str, Callable[[str], str] | None] = {
    "MLX": lambda path: path,
    "hub": lambda path: "model." + path.replace("language_model.model", "language_model"),
    "unwrapped": lambda path: path.removeprefix("language_model."),
    "of the weight": lambda path: f"{path}.weight",
    "none": None,
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("bits", [4, 8])
def test_bits_follow_from_the_shapes_whatever_the_config_says(spelling, bits, tmp_path):
    folder = copy("e2b", "target", tmp_path)
    network, spelled = stock(folder), SPELLINGS[spelling]

    def choose(path: str, module: Any) -> bool | dict[str, int]:
        if not hasattr(module, "to_quantized") or module.weight.shape[-1] % 32:
            return False
        return {"group_size": 32, "bits": 8} if "layers.0.mlp" in path else True

    nn.quantize(network, group_size=32, bits=4, class_predicate=choose)
    paths = [path for path, module in network.named_modules() if hasattr(module, "scales") and "layers.0.mlp" in path]
    own = {} if spelled is None else {spelled(path): {"group_size": 32, "bits": 8} for path in paths}
    save(folder, network, {"group_size": 32, "bits": bits, **own})
    prompt = [5, 6, 7]
    wanted = network(mx.array([prompt]))[0, -1].argmax().item()
    assert decode(Decoder(load_target(folder), compiled="never"), prompt, 1) == [wanted]


def test_a_head_may_be_stored_though_it_is_tied_or_stand_under_its_published_name(tmp_path):
    folder = copy("e2b", "target", tmp_path)
    rewrite(folder / "model.safetensors", lambda t: t.update({"lm_head.weight": t[named(t, "embed_tokens.weight")]}))
    assert_same_text(folder, "e2b")
    change_json(folder / "config.json", lambda config: config["text_config"].update(tie_word_embeddings=False))
    assert_same_text(folder, "e2b")


def test_buffers_and_scalars_as_other_tools_store_them(tmp_path):
    def store(tensors: dict[str, mx.array]) -> None:
        tensors["model.language_model.rotary_emb.full_attention_inv_freq"] = mx.ones((4,))
        tensors["model.language_model.embed_tokens.embed_scale"] = mx.array(5.0)
        for name in [name for name in tensors if name.endswith("layer_scalar")]:
            tensors[name] = tensors[name].reshape(())

    folder = copy("e2b", "target", tmp_path)
    rewrite(folder / "model.safetensors", store)
    assert_same_text(folder, "e2b")


def test_a_merged_adapter_may_have_left_its_prefix(tmp_path):
    folder = copy("e2b", "target", tmp_path)
    rewrite(
        folder / "model.safetensors",
        lambda tensors: [tensors.update({f"base_model.model.{name}": tensors.pop(name)}) for name in list(tensors)],
    )
    assert_same_text(folder, "e2b")


# What cannot be used says what it is.


def retyped(dtype: str) -> Callable[[Path], None]:
    """Store one matrix as so many bytes of another type."""

    def change(folder: Path) -> None:
        file = folder / "model.safetensors"
        data = file.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        header, values = json.loads(data[8:start]), data[start:]
        place, out = 0, []
        for name in sorted(header.keys() - {"__metadata__"}, key=lambda name: header[name]["data_offsets"]):
            entry = header[name]
            piece = values[slice(*entry["data_offsets"])]
            if name.endswith("layers.0.mlp.down_proj.weight"):
                piece, entry["dtype"] = piece[: len(piece) // 2], dtype
            entry["data_offsets"] = [place, place + len(piece)]
            place += len(piece)
            out.append(piece)
        text = json.dumps(header).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(out))

    return change


def with_tensor(name: str, value: mx.array) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder / "model.safetensors", lambda tensors: tensors.update({name: value}))


def with_method(folder: Path) -> None:
    change_json(folder / "config.json", lambda config: config.update(quantization_config={"quant_method": "gptq"}))
    with_tensor("model.language_model.layers.0.mlp.up_proj.qweight", mx.zeros((4, 4), mx.int32))(folder)


def nf4(folder: Path) -> None:
    """Store one matrix as bitsandbytes does: two numbers a byte, and tables beside them."""

    def change(tensors: dict[str, mx.array]) -> None:
        name = named(tensors, "layers.0.mlp.down_proj.weight")
        tensors[name] = mx.zeros((tensors[name].size // 2, 1), mx.uint8)
        tensors |= {f"{name}.absmax": mx.ones((16,)), f"{name}.quant_map": mx.ones((16,))}
        tensors[f"{name}.quant_state.bitsandbytes__nf4"] = mx.zeros((80,), mx.uint8)

    rewrite(folder / "model.safetensors", change)
    change_json(folder / "config.json", lambda c: c.update(quantization_config={"quant_method": "bitsandbytes"}))


def mixed(folder: Path) -> None:
    def change(tensors: dict[str, mx.array]) -> None:
        name = named(tensors, "layers.1.mlp.up_proj.weight")
        tensors[name] = tensors[name].astype(mx.float16)

    rewrite(folder / "model.safetensors", change)


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "F8": (retyped("F8_E4M3"), "weights quantized by another tool"),
    "I8": (retyped("I8"), "weights quantized by another tool"),
    "F4": (retyped("F4"), "weights quantized by another tool"),
    "NF4": (nf4, "weights quantized by bitsandbytes"),
    "U8": (retyped("U8"), "is stored as U8, which alone holds no weights"),
    "scales of another tool": (
        with_tensor("model.language_model.layers.0.mlp.up_proj.weight_scale", mx.ones((1,))), "by another tool"
    ),
    "GPTQ": (with_method, "weights quantized by gptq"),
    "an adapter": (
        with_tensor("model.language_model.layers.0.mlp.up_proj.lora_A.weight", mx.ones((2, 2))), "adapter .* not merged"
    ),
    "two kinds of 16 bits": (mixed, "mixes BF16 and F16"),
    "scales MLX does not know": (
        with_tensor("model.language_model.layers.0.mlp.up_proj.scales", mx.ones((2, 2))), "MLX does not know"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_says_what_the_checkpoint_is(case, tmp_path):
    change, sentence = REFUSED[case]
    folder = copy("e2b", "target", tmp_path)
    change(folder)
    with pytest.raises(LoadError, match=sentence) as error:
        check_folder(read_config(folder))
    assert "Download" not in str(error.value)
    with pytest.raises(LoadError, match=sentence):
        load_target(folder)


def test_an_ordering_that_names_a_token_twice_is_refused(tmp_path):
    folder = copy("e2b", "drafter", tmp_path)
    name = "masked_embedding.token_ordering"
    order = read_weights(folder)[name]
    for bad in (0, -1, 10**6):
        wrong = mx.concatenate([mx.array([bad], mx.int64), order[1:]])
        rewrite(folder / "model.safetensors", lambda tensors, wrong=wrong: tensors.update({name: wrong}))  # type: ignore[misc]
        with pytest.raises(LoadError, match="does not name every token once"):
            load_drafter(folder, load_target(load_golden("e2b").target))


# Numbers.


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temp=1.0)], ids=["greedy", "sampled"])
def test_a_network_that_computes_no_numbers_says_so_instead_of_a_text(value, sampling, tmp_path):
    folder = copy("31b", "target", tmp_path)
    rewrite(
        folder / "model.safetensors",
        lambda t: t.update({(n := named(t, "language_model.norm.weight")): t[n] * 0 + value}),
    )
    with pytest.raises(LoadError, match="computes no numbers"):
        decode(Decoder(load_target(folder), compiled="never"), [5, 6], 3, sampling=sampling)


@pytest.mark.parametrize("drafts", [0, 4])
@pytest.mark.parametrize("temp", [0.0, 1.0])
def test_suppressed_tokens_never_come(drafts, temp, tmp_path):
    golden = load_golden("12b")
    folder = copy("12b", "target", tmp_path)
    model = load(golden.target, golden.drafter)
    prompt, options = golden.records["long"].prompt, {"max_tokens": 24, "temp": temp, "seed": 3, "stop": ()}
    said = [t for round_ in model.rounds(prompt, num_draft_tokens=drafts, **options) for t in round_.tokens]
    unwanted = sorted(set(said))[:3]
    change_json(folder / "generation_config.json", lambda table: table.update(suppress_tokens=[*unwanted, 10**6]))
    model = load(folder, golden.drafter)
    without = [t for round_ in model.rounds(prompt, num_draft_tokens=drafts, **options) for t in round_.tokens]
    assert len(without) == 24
    assert not set(without) & set(unwanted)


# Values of the JSON files.

WORDS = ["hidden_size", "head_dim", "num_attention_heads", "sliding_window", "max_position_embeddings", "vocab_size"]


@pytest.mark.parametrize("key", WORDS)
@pytest.mark.parametrize("value", ["x", -1, 0, 1.5, [1], {}, True, 2**70], ids=repr)
def test_sizes_that_are_none_are_named(key, value, tmp_path):
    folder = copy("31b", "target", tmp_path)
    change_json(folder / "config.json", lambda config: config["text_config"].update({key: value}))
    with pytest.raises(LoadError, match=f"has {key} "):
        read_config(folder)


@pytest.mark.parametrize(
    "key", ["max_position_embeddings", "num_kv_shared_layers", "rms_norm_eps", "vocab_size", "rope_parameters"]
)
def test_null_means_the_default(key, tmp_path):
    folder = copy("31b", "target", tmp_path)
    change_json(folder / "config.json", lambda config: config["text_config"].update({key: None}))
    assert_same_text(folder, "31b")


@pytest.mark.parametrize(
    ("table", "used"),
    [
        ({"top_k": -1, "top_p": 0, "temperature": None}, {}),
        ({"top_k": "64", "min_p": 7, "max_new_tokens": -3, "do_sample": "yes"}, {}),
        ({"eos_token_id": [[1, 106]], "suppress_tokens": "7"}, {"eos_token_id": [1, 106], "suppress_tokens": [7]}),
        ({"eos_token_id": "106", "temperature": 0}, {"eos_token_id": [106], "temperature": 0}),
        ({"eos_token_id": ["stop"], "suppress_tokens": {"a": 1}}, {}),
    ],
)
def test_what_a_generation_config_means_is_used_and_the_rest_named(table, used, tmp_path):
    folder = copy("31b", "target", tmp_path)
    (folder / "generation_config.json").write_text(json.dumps(table))
    config = read_config(folder)
    assert config.generation == used
    ignored = {key for key, value in table.items() if value is not None} - used.keys()
    assert {note.split()[0] for note in config.notes} == ignored
