"""Random damage to a checkpoint: the right text or an MlxmtpError, never another exception, a crash or other text."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlxmtp.decode.decoder import Decoder
from mlxmtp.engine.tokenizer import Tokenizer
from mlxmtp.errors import MlxmtpError
from mlxmtp.models.chat_template import check_text, read_from
from mlxmtp.models.load import load_drafter, load_target
from tests.golden import load_golden
from tests.networks import decode
from tests.text_checkpoint import TEMPLATE, write_json, write_text_checkpoint

FAMILIES = ("e2b", "e4b", "12b", "26b", "31b")
PARTS = ("target", "drafter")
LENGTH = 5
OTHER_NETWORK = {
    "sliding_window", "rope_theta", "partial_rotary_factor", "rope_type", "top_k_experts", "num_kv_shared_layers",
    "rms_norm_eps", "layer_types", "final_logit_softcapping", "attention_k_eq_v", "use_double_wide_mlp",
    "max_position_embeddings", "tie_word_embeddings", "enable_moe_block", "rope_parameters", "num_attention_heads",
    "num_key_value_heads", "suppress_tokens", "num_global_key_value_heads", "full_attention", "sliding_attention",
    "hidden_size_per_layer_input",
}  # fmt: skip
"""Fields whose other values may describe another network, which has another text."""

VALUES: list[Any] = [
    None, True, False, -1, 0, 1, 2, 3, 2**31, 2**70, -(2**70), 0.5, 1e-300, float("nan"), float("inf"), "", "x", "7",
    "full_attention", [], [1], [[1, 106]], [None], {}, {"00": {"head_dim": 4}}, {"a": 1},
]  # fmt: skip
DTYPES = ["BF16", "F16", "F32", "F64", "I8", "U8", "I16", "I32", "U32", "I64", "F8_E4M3", "F4", "BOOL", "", None, 3]

CONTENTS = [
    b"", b"{}", b"[]", b"null", b"7", b'"x"', b"[" * 100_000, b'{"a":' * 100_000, b"<!DOCTYPE html>", b"\0" * 9, b"NaN",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", b"\xff" * 16, b"1" * 5000,
]  # fmt: skip

RUNS = int(os.environ.get("DAMAGE_RUNS", "20"))  # of each kind: 3000 take half an hour


def copy(family: str, part: str, to: str) -> dict[str, Path]:
    golden = load_golden(family)
    folders = {"target": golden.target, "drafter": golden.drafter}
    shutil.copytree(folders[part], Path(to) / part)
    return {**folders, part: Path(to) / part}


def check(family: str, folders: dict[str, Path], *, strict: bool) -> None:
    """Load the pair and decode with it: the text is the golden one (if `strict`), or an error is one of ours."""
    record, said = load_golden(family).records["short"], ""
    text = record.greedy[:LENGTH]
    try:
        target = load_target(folders["target"])
        drafter = load_drafter(folders["drafter"], target)
        text = decode(Decoder(target, drafter, compiled="never"), record.prompt, LENGTH, num_draft_tokens=2)
    except MlxmtpError as error:
        said = str(error)
    assert "\n" not in said
    assert not strict or text == record.greedy[:LENGTH]


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the place of everything in a JSON value but its root."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from leaves(item, (*path, key))


def damage_field(data: st.DataObject, table: Any, places: list[tuple[Any, ...]]) -> tuple[Any, ...]:
    """Remove or change one of some places in a JSON value, and return which."""
    *path, last = place = data.draw(st.sampled_from(sorted(places, key=str)))
    for key in path:
        table = table[key]
    change = data.draw(st.sampled_from(["remove", *VALUES]))
    if isinstance(change, str) and change == "remove":
        del table[last]
    else:
        table[last] = deepcopy(change)
    return place


def one_field_or_two(data: st.DataObject) -> None:
    family, part = data.draw(st.sampled_from(FAMILIES)), data.draw(st.sampled_from(PARTS))
    with TemporaryDirectory() as to:
        folders = copy(family, part, to)
        file = data.draw(st.sampled_from(sorted(folders[part].glob("*.json"))))
        table = json.loads(file.read_text())
        path = damage_field(data, table, list(leaves(table)))
        if data.draw(st.booleans()) and (places := list(leaves(table))):
            path += damage_field(data, table, places)
        file.write_text(json.dumps(table))
        check(family, folders, strict=not OTHER_NETWORK & {*path})


def damage_file(data: st.DataObject, file: Path) -> None:
    """Cut a file, put bytes into it or in its place, or something that is no file."""
    kind = data.draw(st.sampled_from(["lost", "cut", "inserted", "replaced", "folder", "link", "marked", "sixteen"]))
    content = file.read_bytes()
    at = data.draw(st.integers(0, len(content) - 1))
    file.unlink()
    if kind == "folder":
        file.mkdir()
    elif kind == "link":
        file.symlink_to("nothing")
    elif kind != "lost":
        whole = {
            "cut": content[:at],
            "inserted": content[:at] + data.draw(st.binary(min_size=1, max_size=16)) + content[at:],
            "replaced": data.draw(st.one_of(st.sampled_from(CONTENTS), st.binary(max_size=64))),
            "marked": b"\xef\xbb\xbf" + content,
            "sixteen": content.decode("latin-1").encode("utf-16"),
        }
        file.write_bytes(whole[kind])


def one_file(data: st.DataObject) -> None:
    family, part = data.draw(st.sampled_from(FAMILIES)), data.draw(st.sampled_from(PARTS))
    with TemporaryDirectory() as to:
        folders = copy(family, part, to)
        file = data.draw(st.sampled_from(sorted(folders[part].iterdir())))
        damage_file(data, file)
        # Another length is noticed in weights; a number in a JSON file may have become another.
        check(family, folders, strict=file.suffix == ".safetensors")


def one_header_entry(data: st.DataObject) -> None:
    family, part = data.draw(st.sampled_from(FAMILIES)), data.draw(st.sampled_from(PARTS))
    with TemporaryDirectory() as to:
        folders = copy(family, part, to)
        file = data.draw(st.sampled_from(sorted(folders[part].glob("*.safetensors"))))
        whole = file.read_bytes()
        start = 8 + int.from_bytes(whole[:8], "little")
        header = json.loads(whole[8:start])
        name = data.draw(st.sampled_from(sorted(header.keys() - {"__metadata__"})))
        entry = header[name]
        kind = data.draw(st.sampled_from(["dtype", "shape", "offsets", "name", "field", "turned"]))
        if kind == "dtype":
            entry["dtype"] = data.draw(st.sampled_from(DTYPES))
        elif kind == "shape":
            entry["shape"] = data.draw(st.one_of(st.sampled_from(VALUES), st.lists(st.integers(-2, 200), max_size=3)))
        elif kind == "offsets":
            entry["data_offsets"] = [at + data.draw(st.integers(-64, 64)) for at in entry["data_offsets"]]
        elif kind == "name":
            header[data.draw(st.text(min_size=1, max_size=20))] = header.pop(name)
        elif kind == "turned":
            entry["shape"] = entry["shape"][::-1]
        else:
            entry[data.draw(st.sampled_from(sorted(entry)))] = data.draw(st.sampled_from(VALUES))
        text = json.dumps(header).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + whole[start:])
        square = kind == "turned" and entry["shape"] == entry["shape"][::-1]
        check(family, folders, strict=kind != "shape" or square or isinstance(entry["shape"], list))


def one_tensor(data: st.DataObject) -> None:
    family, part = data.draw(st.sampled_from(FAMILIES)), data.draw(st.sampled_from(PARTS))
    with TemporaryDirectory() as to:
        folders = copy(family, part, to)
        file = data.draw(st.sampled_from(sorted(folders[part].glob("*.safetensors"))))
        tensors = mx.load(str(file))
        assert isinstance(tensors, dict)
        mx.eval(tensors)
        name = data.draw(st.sampled_from(sorted(tensors)))
        kind = data.draw(st.sampled_from(["lost", "renamed", "twice", "cut", "flat", "turned", "retyped", "nan"]))
        value = tensors.pop(name)
        if kind in ("renamed", "twice"):
            tensors[data.draw(st.sampled_from([f"{name}_scale", f"model.{name}", "x.weight", name + ".weight"]))] = (
                value
            )
        if kind == "twice":
            tensors[name] = value
        elif kind == "cut":
            tensors[name] = value[:-1]
        elif kind == "flat":
            tensors[name] = value.reshape(-1)
        elif kind == "turned":
            tensors[name] = mx.contiguous(value.T)
        elif kind == "retyped":
            kinds = [mx.float16, mx.int8, mx.uint8, mx.int32, mx.uint32, mx.int64, mx.bool_]
            tensors[name] = value.astype(data.draw(st.sampled_from(kinds)))
        elif kind == "nan":
            tensors[name] = value.astype(mx.float32) * float("nan")
        mx.save_safetensors(str(file), tensors)
        square = kind == "turned" and value.ndim == 2 and value.shape[0] == value.shape[1]
        check(family, folders, strict=not square and not (kind == "nan" and part == "target" and value.size == 1))


def one_field_of_the_text_side(data: st.DataObject) -> None:
    """A tokenizer whose files are damaged has other text; it is loaded and used, or refused, and nothing else."""
    with TemporaryDirectory() as to:
        folder = write_text_checkpoint(Path(to), template=None)
        template = [{"name": "default", "template": TEMPLATE}, {"name": "tool_use", "template": ""}]
        settings = {"bos_token": "<bos>", "eos_token": {"content": "<eos>"}, "chat_template": template}
        write_json(folder / "tokenizer_config.json", settings)
        file = folder / data.draw(st.sampled_from(["tokenizer.json", "tokenizer_config.json"]))
        if data.draw(st.integers(0, 3)):
            table = json.loads(file.read_text())
            # Of the vocabulary, which is nearly all of the file, a few entries are as good as the rest.
            places = [path for path in leaves(table) if "vocab" not in path or path[-1] in ("vocab", "t")]
            damage_field(data, table, places)
            file.write_text(json.dumps(table))
        else:
            damage_file(data, file)
        said = ""
        try:
            check_text([item.name for item in folder.iterdir()], read_from(folder), folder)
            tokenizer = Tokenizer.load(folder)
            ids = tokenizer.prompt_ids([{"role": "user", "content": "A text, \u4e2d\u00e9 <turn|>"}], think=True)
            detokenizer = tokenizer.detokenizer()
            said = "".join(map(detokenizer.add, [*ids, 10**6])) + detokenizer.flush()
            assert isinstance(said, str)
            assert tokenizer.end_ids <= set(range(500))
            said = tokenizer.token_bytes(200).decode("latin-1") * 0
        except MlxmtpError as error:
            said = str(error)
        assert "\n" not in said


DAMAGES = [one_file, one_field_or_two, one_header_entry, one_tensor, one_field_of_the_text_side]


@pytest.mark.parametrize("damage", DAMAGES)
@settings(deadline=None, max_examples=RUNS, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_damaged_checkpoint_gives_the_right_text_or_one_sentence(damage: Any, data: st.DataObject) -> None:
    damage(data)
