"""Write tests/goldens/converted: golden targets with a vision tower as mlx-vlm's converter of today writes them.

Needs mlx-vlm, which brings more than this project wants to install; the tests read the stored folders, and write them
anew where it is installed. To make them again (seconds):

    python3.11 -m venv /tmp/converters
    /tmp/converters/bin/pip install mlx-vlm==0.7.10
    /tmp/converters/bin/python -m scripts.goldens.converted
"""

from __future__ import annotations

import importlib
import json
import shutil
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import mlx.core as mx

GOLDENS = Path(__file__).resolve().parents[2] / "tests" / "goldens"
OUT = GOLDENS / "converted"
FAMILIES = ("e2b", "26b")
LENGTH = 10
_VISION = {
    "model_type": "gemma4_vision", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "global_head_dim": 16, "patch_size": 4,
    "position_embedding_size": 16, "default_output_length": 4, "pooling_kernel_size": 2,
}  # fmt: skip


def write(family: str, dest: Path) -> None:
    """Convert a golden target to 4 bits, and record greedy text that mlx-vlm's network computes from the result."""
    converter = importlib.import_module("mlx_vlm.convert")  # the package has a function of that name
    utils = importlib.import_module("mlx_vlm.utils")
    with TemporaryDirectory() as source, patch.object(utils, "load_processor", lambda *_, **__: object()):
        _write_source(family, Path(source), utils)
        converter.convert(source, str(dest), quantize=True, q_bits=4, q_group_size=32)
    (dest / "README.md").unlink(missing_ok=True)
    network = utils.load_model(dest).language_model
    network.set_dtype(mx.float32)
    recorded: Any = mx.load(str(GOLDENS / family / "golden.safetensors"))
    prompt = recorded["long.prompt"].tolist()
    text: list[int] = []
    for _ in range(LENGTH):
        row = network(mx.array([[*prompt, *text]])).logits[0, -1]
        two: Any = mx.sort(row)[-2:].tolist()
        second, best = two
        assert best - second > 1e-3, "two tokens are as good as each other: another rounding would choose otherwise"
        text.append(int(row.argmax().item()))
    told = {"mlx_vlm": version("mlx-vlm"), "prompt": prompt, "greedy": text}
    (dest / "recorded.json").write_text(json.dumps(told) + "\n")


def _write_source(family: str, folder: Path, utils: Any) -> None:
    """Write the published layout: the golden's text network, and a tower with mlx-vlm's own first weights."""
    golden = GOLDENS / family / "target"
    config = json.loads((golden / "config.json").read_text()) | {"vision_config": _VISION}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    shutil.copy(golden / "generation_config.json", folder)
    tensors: dict[str, mx.array] = {}
    for file in golden.glob("*.safetensors"):
        stored: Any = mx.load(str(file))
        tensors |= {name: value for name, value in stored.items() if "language_model" in name}
    mx.random.seed(0)
    module, _ = utils.get_model_and_args(config=config)
    settings = module.ModelConfig.from_dict(config)
    settings.vision_config = module.VisionConfig.from_dict(_VISION)
    settings.text_config = module.TextConfig.from_dict(config["text_config"])
    from mlx.utils import tree_flatten

    leaves: Any = tree_flatten(module.Model(settings).parameters())
    for name, value in leaves:
        if name.startswith(("vision_tower", "embed_vision")):
            tensors[f"model.{name}"] = value.astype(mx.bfloat16)
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, metadata={"format": "pt"})


def main() -> None:
    """Write every folder."""
    for family in FAMILIES:
        shutil.rmtree(OUT / family, ignore_errors=True)
        write(family, OUT / family)


if __name__ == "__main__":
    main()
