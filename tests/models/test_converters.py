"""Folders that the converters of mlx-lm and mlx-vlm write give the text that those programs compute from them."""

from __future__ import annotations

import json
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlxmtp.decode.decoder import Decoder
from mlxmtp.models.config import read_config
from mlxmtp.models.load import load_target
from tests.golden import FOLDER, load_golden
from tests.networks import decode
from tests.packable import random_weights

CONVERTED = FOLDER / "converted"


@pytest.mark.parametrize("family", ["e2b", "26b"])
def test_a_conversion_by_mlx_vlm_itself(family: str, tmp_path: Path) -> None:
    """With a vision tower, a router of its own width and towers that are not quantized; stored, or made now."""
    folder = CONVERTED / family
    if find_spec("mlx_vlm") is not None:
        from scripts.goldens.converted import write

        folder = tmp_path / "made"
        write(family, folder)
    recorded = json.loads((folder / "recorded.json").read_text())
    wanted = recorded["greedy"]
    decoder = Decoder(load_target(folder), compiled="never")
    assert decode(decoder, recorded["prompt"], len(wanted)) == wanted


@pytest.mark.parametrize(
    ("family", "recipe"), [("e2b", None), ("e2b", "mixed_4_6"), ("26b", None), ("26b", "mixed_3_6")]
)
def test_text_alone_converted_by_mlx_lm_itself(family, recipe, tmp_path, monkeypatch):
    """A text-only save through the converter of mlx-lm: its default (the router at 8 bits), or one of its recipes."""
    converter = import_module("mlx_lm.convert")  # the package has a function of that name
    source, dest = tmp_path / "source", tmp_path / "made"
    _write_text_alone(family, source)
    monkeypatch.setattr(converter, "load", _loaded)
    monkeypatch.setattr(converter, "save", _saved)
    predicate = {} if recipe is None else {"quant_predicate": recipe}
    converter.convert(str(source), str(dest), quantize=True, q_group_size=32, q_bits=4, **predicate)
    network, _ = _network(dest)
    network.set_dtype(mx.float32)  # as ours computes on a CPU
    prompt = load_golden(family).records["short"].prompt
    wanted = network(mx.array([prompt]))[0, -1].argmax().item()
    assert decode(Decoder(load_target(dest), compiled="never"), prompt, 1) == [wanted]


def _write_text_alone(family: str, folder: Path) -> None:
    """Write a text-only checkpoint of a golden's configuration, 64 wide as mlx-lm's group of the router demands."""
    text = json.loads((FOLDER / family / "target" / "config.json").read_text())["text_config"]
    text |= {"model_type": "gemma4_text", "hidden_size": 64}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(text))
    weights = random_weights(read_config(folder)).items()
    tensors = {name.removeprefix("language_model."): value.astype(mx.bfloat16) for name, value in weights}
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)


def _network(folder: Path) -> tuple[Any, dict[str, Any]]:
    from mlx_lm.utils import load_model

    return load_model(folder)


def _loaded(path: str, **_: Any) -> tuple[Any, Any, Any]:
    """Load as mlx-lm does, without the tokenizer, which the goldens do not have."""
    network, config = _network(Path(path))
    return network, None, config


def _saved(dest: Path, source: Path, network: Any, tokenizer: Any, config: dict[str, Any], *_: Any, **__: Any) -> None:
    from mlx_lm.utils import save_config, save_model

    save_model(dest, network, donate_model=True)
    save_config(config, config_path=dest / "config.json")
