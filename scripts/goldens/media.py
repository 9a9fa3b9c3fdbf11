"""Write tests/goldens/media: towers for the golden targets, and what the reference computes from pictures.

The towers stand beside the targets' text networks, which are not copied. To make them again (a minute), with the
environment of ``scripts.goldens`` and Pillow:

    /tmp/reference/bin/pip install pillow==13.0.0
    /tmp/reference/bin/python -m scripts.goldens.media

Masks: the 12B's own forward pass in transformers 5.17 has those of Gemma 3, so the function that its ``generate`` takes
is called, and for 31B compared with the forward pass. Both wrong masks are recorded, too, so that tests notice them.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers.models.gemma4 import modeling_gemma4
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil
from transformers.models.gemma4_unified import modeling_gemma4_unified

from scripts.goldens.pictures import PICTURES
from scripts.goldens.reference import load_target
from scripts.goldens.weights import coarse

GOLDENS = Path(__file__).resolve().parents[2] / "tests" / "goldens"
OUT = GOLDENS / "media"
FAMILIES = ("e2b", "12b", "26b", "31b")
BUDGET = 70
IDS = {
    "boi_token_id": 120, "eoi_token_id": 121, "image_token_id": 122, "boa_token_id": 123, "eoa_token_index": 124,
    "audio_token_id": 125, "video_token_id": 126,
}  # fmt: skip
HIDDEN, POSITIONS = 32, 64
INNER = {"e2b": 48, "26b": 64, "31b": 48}
HEADS = {"e2b": (2, 16), "26b": (4, 72), "31b": (2, 16)}  # and their size
GROUP, LEVELS = 32, 16
"""The 26B's matrices are multiples of a step in each group, so that 4 bits hold them exactly: it is quantized, too."""
AUDIO = {
    "e2b": {
        "model_type": "gemma4_audio", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "hidden_act": "silu", "subsampling_conv_channels": [128, 4], "conv_kernel_size": 5, "residual_weight": 0.5,
        "attention_chunk_size": 12, "attention_context_left": 13, "attention_context_right": 0,
        "attention_logit_cap": 50.0, "attention_invalid_logits_value": -1e9, "use_clipped_linears": True,
        "rms_norm_eps": 1e-6, "gradient_clipping": 1e10, "output_proj_dims": 40,
    },
    "12b": {"model_type": "gemma4_unified_audio", "audio_embed_dim": 640, "rms_norm_eps": 1e-6},
}  # fmt: skip
SUPPRESSED = sorted(IDS.values())
COUNT, ROWS, MARGIN = 24, 12, 1e-3
DIFFERENT = {"26b": 8}  # tokens of a text, at least; the others have 10: random experts repeat themselves
WINDOWS = {"": None, "wide.": 128}  # shorter and longer than a picture


def config_of(family: str) -> dict[str, Any]:
    """Return the golden target's config.json with a tower, as published."""
    config = json.loads((GOLDENS / family / "target" / "config.json").read_text()) | IDS
    config["text_config"]["use_bidirectional_attention"] = None if family == "e2b" else "vision"
    if family in AUDIO:
        config["audio_config"] = AUDIO[family]
    if family == "12b":
        config["vision_config"] = {
            "model_type": "gemma4_unified_vision", "patch_size": 16, "pooling_kernel_size": 3, "model_patch_size": 48,
            "mm_embed_dim": 16, "mm_posemb_size": POSITIONS, "output_proj_dims": 16, "rms_norm_eps": 1e-6,
        }  # fmt: skip
    else:
        heads, dim = HEADS[family]
        config["vision_config"] = {
            "model_type": "gemma4_vision", "hidden_size": HIDDEN, "intermediate_size": INNER[family],
            "num_hidden_layers": 2, "num_attention_heads": heads, "num_key_value_heads": heads, "head_dim": dim,
            "global_head_dim": dim,
            "patch_size": 16, "pooling_kernel_size": 3, "position_embedding_size": POSITIONS, "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0}, "hidden_activation": "gelu_pytorch_tanh",
            "use_clipped_linears": family == "e2b", "standardize": family != "e2b",
        }  # fmt: skip
    return config


def towers(family: str, seed: int) -> dict[str, torch.Tensor]:
    """Return random tensors of the tower under their published names."""
    generator = torch.Generator().manual_seed(seed)
    made: dict[str, torch.Tensor] = {}

    def normal(name: str, *shape: int, std: float, mean: float = 0.0) -> None:
        if family == "26b" and len(shape) == 2:
            made[f"model.{name}"] = in_steps(shape[0], shape[1], std, generator)
        else:
            made[f"model.{name}"] = coarse(mean + torch.randn(*shape, generator=generator) * std)

    if family == "12b":
        normal("embed_vision.embedding_projection.weight", 32, 16, std=0.25)
        normal("vision_embedder.patch_dense.weight", 16, 6912, std=6912**-0.5)
        normal("vision_embedder.patch_dense.bias", 16, std=0.2)
        for name, width in (("patch_ln1", 6912), ("patch_ln2", 16), ("pos_norm", 16)):
            normal(f"vision_embedder.{name}.weight", width, std=0.2, mean=1.0)
            normal(f"vision_embedder.{name}.bias", width, std=0.2)
        normal("vision_embedder.pos_embedding", POSITIONS, 2, 16, std=0.5)
        return made
    normal("embed_vision.embedding_projection.weight", 32, HIDDEN, std=HIDDEN**-0.5)
    normal("vision_tower.patch_embedder.input_proj.weight", HIDDEN, 768, std=768**-0.5)
    normal("vision_tower.patch_embedder.position_embedding_table", 2, POSITIONS, HIDDEN, std=0.5)
    for i in range(2):
        at = f"vision_tower.encoder.layers.{i}"
        for name in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            normal(f"{at}.{name}_layernorm.weight", HIDDEN, std=0.2, mean=1.0)
        heads, dim = HEADS[family]
        for name in ("q_norm", "k_norm"):
            normal(f"{at}.self_attn.{name}.weight", dim, std=0.1, mean=0.6 if dim == 16 else 0.3)
        shapes = {f"self_attn.{part}_proj": (heads * dim, HIDDEN) for part in "qkv"}
        shapes |= {"self_attn.o_proj": (HIDDEN, heads * dim)}
        inner = INNER[family]
        shapes |= {"mlp.gate_proj": (inner, HIDDEN), "mlp.up_proj": (inner, HIDDEN), "mlp.down_proj": (HIDDEN, inner)}
        for name, (out, width) in shapes.items():
            normal(f"{at}.{name}.linear.weight", out, width, std=width**-0.5)
            bounds = {"input_min": -1.5, "input_max": 1.375, "output_min": -1.25, "output_max": 1.625}
            made |= {
                f"model.{at}.{name}.{key}": torch.tensor(value) for key, value in bounds.items() if family == "e2b"
            }
    if family != "e2b":
        normal("vision_tower.std_bias", HIDDEN, std=2.0)
        normal("vision_tower.std_scale", HIDDEN, std=0.2, mean=0.7)
    return made


def in_steps(out: int, width: int, std: float, generator: torch.Generator) -> torch.Tensor:
    """Return a random matrix that 4 bits hold exactly: from -8 to 7 steps, of which every group has both."""
    steps = torch.randint(0, LEVELS, (out, width // GROUP, GROUP), generator=generator)
    steps[..., 0], steps[..., 1] = 0, LEVELS - 1
    size = 2.0 ** round(math.log2(std / (LEVELS**2 / 12) ** 0.5))
    return ((steps - LEVELS // 2) * size).reshape(out, width)


class Reference:
    """transformers' model of one family, and prompts with the pictures."""

    def __init__(self, family: str, folder: Path, window: int | None) -> None:
        config = config_of(family)
        if window is not None:
            config["text_config"]["sliding_window"] = window
        (folder / "config.json").write_text(json.dumps(config))
        self.family, self.model = family, load_target(folder)
        processor = Gemma4ImageProcessorPil(max_soft_tokens=BUDGET)
        self.pixels = []
        self.images: dict[str, torch.Tensor] = {}
        values, places = [], []
        for picture in PICTURES:
            made = processor(images=[Image.fromarray(picture)], return_tensors="pt")
            count = int(made["num_soft_tokens_per_image"][0])
            patches, at = made["pixel_values"][0], made["image_position_ids"][0]
            self.pixels.append(_raster(patches, at, count))
            if family == "12b":
                patches, at = _patches_48(self.pixels[-1])
            values.append(patches)
            places.append(at)
        self.images = {
            "pixel_values": torch.stack(_padded(values, 0.0)),
            "image_position_ids": torch.stack(_padded(places, -1)),
        }

    @torch.no_grad()
    def soft(self) -> list[torch.Tensor]:
        """Return the soft tokens [S, H] of each picture."""
        found = []
        for i in range(len(PICTURES)):
            values, places = (self.images[key][i : i + 1] for key in ("pixel_values", "image_position_ids"))
            output = self.model.model.get_image_features(values, places, return_dict=True).pooler_output
            found.append((output[0] if isinstance(output, tuple | list) else output).reshape(-1, 32))
        return found

    @torch.no_grad()
    def logits(self, ids: torch.Tensor, mask: str = "rule") -> torch.Tensor:
        """Return logits [L, V]; `mask`: the rule, "causal" or "gemma3" (full layers and outside the window, too)."""
        types = (ids == IDS["image_token_id"]).long()[None]
        given: dict[str, Any] = {"mm_token_type_ids": types, "attention_mask": torch.ones_like(ids)[None]}
        if self.family != "e2b":
            given["attention_mask"] = self._masks(ids, types, mask)
        return self.model(input_ids=ids[None], use_cache=False, **self.images, **given).logits[0]

    def _masks(self, ids: torch.Tensor, types: torch.Tensor, mask: str) -> Any:
        module = modeling_gemma4_unified if self.family == "12b" else modeling_gemma4
        blocks = module.get_block_sequence_ids_for_mask(types, types.device)
        if mask == "causal":
            blocks = torch.full_like(blocks, -1)
        length, config = len(ids), self.model.config.text_config
        if mask == "gemma3":
            q, k = torch.arange(length)[:, None], torch.arange(length)
            same = (blocks[0][:, None] == blocks[0]) & (blocks[0] >= 0)
            full = (k <= q) | same
            near = ((k <= q) & (k > q - config.sliding_window)) | same
            return {"full_attention": full[None, None], "sliding_attention": near[None, None]}
        embeds = torch.zeros(1, length, 32)
        return module.create_masks_for_vision_model(
            config, embeds, torch.ones_like(ids)[None], None, None, block_sequence_ids=blocks
        )


def _raster(patches: torch.Tensor, at: torch.Tensor, count: int) -> np.ndarray:
    """Put patches of 16 x 16 back into pixels [H, W, 3]."""
    patches, at = patches[: 9 * count], at[: 9 * count]
    columns, rows = (int(at[:, i].max()) + 1 for i in (0, 1))
    grid = patches.reshape(rows, columns, 16, 16, 3).permute(0, 2, 1, 3, 4).reshape(rows * 16, columns * 16, 3)
    return (grid.double() * 255).round().to(torch.uint8).numpy()


def _patches_48(pixels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    rows, columns = pixels.shape[0] // 48, pixels.shape[1] // 48
    grid = torch.from_numpy(pixels.copy()).float() / 255
    patches = grid.reshape(rows, 48, columns, 48, 3).permute(0, 2, 1, 3, 4).reshape(rows * columns, 6912)
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return patches, torch.stack([x, y], -1).reshape(-1, 2)


def _padded(tensors: list[torch.Tensor], value: float) -> list[torch.Tensor]:
    longest = max(len(one) for one in tensors)
    return [
        torch.cat([one, torch.full((longest - len(one), *one.shape[1:]), value, dtype=one.dtype)]) for one in tensors
    ]


def prompt_with(counts: list[int], seed: int) -> tuple[list[int], list[int]]:
    """Return a prompt with one placeholder for each picture, and the same with soft tokens."""
    draw = torch.Generator().manual_seed(seed)

    def text(length: int) -> list[int]:
        return (torch.randint(107, 119, (length,), generator=draw)).tolist()

    first, second = counts
    parts = [[2, *text(5)], text(3), text(6)]
    image = IDS["image_token_id"]
    short = [*parts[0], image, *parts[1], image, *parts[2]]
    whole = list(parts[0])
    for count, part in ((first, parts[1]), (second, parts[2])):
        whole += [IDS["boi_token_id"], *[image] * count, IDS["eoi_token_id"], *part]
    return short, whole


def record(family: str) -> None:
    """Write one family: config.json, towers.safetensors, golden.safetensors, golden.json."""
    dest = OUT / family
    shutil.rmtree(dest, ignore_errors=True)
    dest.mkdir(parents=True)
    (dest / "config.json").write_text(json.dumps(config_of(family), indent=1) + "\n")
    generation = json.loads((GOLDENS / family / "target" / "generation_config.json").read_text())
    generation["suppress_tokens"] = SUPPRESSED
    (dest / "generation_config.json").write_text(json.dumps(generation, indent=1) + "\n")
    text = {}
    for file in (GOLDENS / family / "target").glob("*.safetensors"):
        text |= {name: one for name, one in load_file(file).items() if "language_model" in name}
    for seed in itertools.count():
        made = towers(family, seed)
        with TemporaryDirectory() as name:
            folder = Path(name)
            save_file(text | made, folder / "model.safetensors", metadata={"format": "pt"})
            shutil.copy(dest / "generation_config.json", folder)
            arrays, facts = _computed(family, folder, seed)
        if arrays is not None:
            break
    stored = {name: one.to(torch.bfloat16) for name, one in sorted(made.items())}
    save_file(stored, dest / "towers.safetensors", metadata={"format": "pt"})
    save_file(arrays, dest / "golden.safetensors")
    (dest / "golden.json").write_text(
        json.dumps({"seed": seed, "transformers": transformers.__version__, **facts}) + "\n"
    )
    print(family, seed, facts)


def _computed(family: str, folder: Path, seed: int) -> tuple[dict[str, torch.Tensor] | None, dict[str, Any]]:
    """Return what the reference computes; None where two tokens are nearly as good as each other."""
    arrays: dict[str, torch.Tensor] = {}
    facts: dict[str, Any] = {}
    for prefix, window in WINDOWS.items():
        reference = Reference(family, folder, window)
        soft = reference.soft()
        short, whole = prompt_with([len(one) for one in soft], seed)
        ids = torch.tensor(whole)
        logits = reference.logits(ids)
        tokens, rows = [], []
        for _ in range(COUNT):
            row = reference.logits(torch.cat([ids, torch.tensor(tokens, dtype=torch.long)]))[-1]
            rows.append(row.index_fill(0, torch.tensor(SUPPRESSED), -1e9))
            tokens.append(int(rows[-1].argmax()))
        two = torch.stack(rows).topk(2, -1).values
        margin, different = float((two[:, 0] - two[:, 1]).min()), len(set(tokens))
        if margin < MARGIN or different < DIFFERENT.get(family, 10):
            return None, {}
        facts |= {f"{prefix}margin": margin, f"{prefix}different": different}
        arrays |= {
            f"{prefix}logits": logits[-ROWS:].clone(),
            f"{prefix}greedy": torch.tensor(tokens),
        }
        if family != "e2b":
            for wrong in ("causal", "gemma3"):
                arrays[f"{prefix}{wrong}"] = reference.logits(ids, wrong)[-ROWS:].clone()
                facts[f"{prefix}{wrong}"] = float((arrays[f"{prefix}{wrong}"] - logits[-ROWS:]).abs().max())
        if family in ("26b", "31b"):  # the reference's own forward pass has the same masks
            types = (ids == IDS["image_token_id"]).long()[None]
            given = {"mm_token_type_ids": types, "attention_mask": torch.ones_like(ids)[None], **reference.images}
            with torch.no_grad():
                own = reference.model(input_ids=ids[None], use_cache=False, **given).logits[0]
            assert torch.allclose(own, logits, atol=1e-5)
        if not prefix:
            arrays |= {"prompt": torch.tensor(short), "whole": ids}
            arrays |= {f"soft.{i}": one.clone() for i, one in enumerate(soft)}
            facts["pixels"] = [[*one.shape, hashlib.sha256(one.tobytes()).hexdigest()] for one in reference.pixels]
    return arrays, facts


def main() -> None:
    """Write every family."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for family in sys.argv[1:] or FAMILIES:
        record(family)


if __name__ == "__main__":
    main()
