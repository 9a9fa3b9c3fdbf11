"""Write hearing.* beside the goldens of pictures: audio towers, and what the reference computes from two sounds.

The prompt has a sound, a picture and another sound. Run it after ``scripts.goldens.media``, whose environment it takes:

    /tmp/reference/bin/python -m scripts.goldens.sounds
"""

from __future__ import annotations

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
from safetensors.torch import load_file, save_file
from transformers.models.gemma4 import modeling_gemma4
from transformers.models.gemma4.feature_extraction_gemma4 import Gemma4AudioFeatureExtractor
from transformers.models.gemma4_unified import modeling_gemma4_unified
from transformers.models.gemma4_unified.feature_extraction_gemma4_unified import Gemma4UnifiedAudioFeatureExtractor

from scripts.goldens.media import AUDIO, COUNT, GOLDENS, IDS, MARGIN, OUT, ROWS, SUPPRESSED, Reference, config_of
from scripts.goldens.pictures import SOUNDS, sound
from scripts.goldens.weights import coarse

COUNTED = (161, 320, 321, 480, 481, 640, 641, 800, 801, 960, 961, 1280, 1281, 2240, 16_000, 16_161, 480_000)


def tower(family: str, seed: int) -> dict[str, torch.Tensor]:
    """Return random tensors of the audio tower under their published names."""
    generator = torch.Generator().manual_seed(1000 + seed)
    made: dict[str, torch.Tensor] = {}

    def normal(name: str, *shape: int, std: float, mean: float = 0.0) -> None:
        made[f"model.{name}"] = coarse(mean + torch.randn(*shape, generator=generator) * std)

    def clipped(name: str, out: int, width: int) -> None:
        normal(f"{name}.linear.weight", out, width, std=width**-0.5)
        bounds = {"input_min": -1.5, "input_max": 1.375, "output_min": -1.25, "output_max": 1.625}
        made.update({f"model.{name}.{key}": torch.tensor(value) for key, value in bounds.items()})

    if family == "12b":
        normal("embed_audio.embedding_projection.weight", 32, 640, std=640**-0.5)
        return made
    hidden, out, (first, second) = 32, 40, (128, 4)
    normal("embed_audio.embedding_projection.weight", 32, out, std=out**-0.5)
    for i, (inputs, channels) in enumerate(((1, first), (first, second))):
        layer = f"audio_tower.subsample_conv_projection.layer{i}"
        normal(f"{layer}.conv.weight", channels, inputs, 3, 3, std=(9 * inputs) ** -0.5)
        normal(f"{layer}.norm.weight", channels, std=0.2, mean=1.0)
    width = 32 * second
    normal("audio_tower.subsample_conv_projection.input_proj_linear.weight", hidden, width, std=width**-0.5)
    for i in range(2):
        layer = f"audio_tower.layers.{i}"
        for part in ("feed_forward1", "feed_forward2"):
            for name in ("pre_layer_norm", "post_layer_norm"):
                normal(f"{layer}.{part}.{name}.weight", hidden, std=0.2, mean=1.0)
            clipped(f"{layer}.{part}.ffw_layer_1", 4 * hidden, hidden)
            clipped(f"{layer}.{part}.ffw_layer_2", hidden, 4 * hidden)
        for name in ("norm_pre_attn", "norm_post_attn", "norm_out", "lconv1d.pre_layer_norm", "lconv1d.conv_norm"):
            normal(f"{layer}.{name}.weight", hidden, std=0.2, mean=1.0)
        for name in ("q_proj", "k_proj", "v_proj", "post"):
            clipped(f"{layer}.self_attn.{name}", hidden, hidden)
        normal(f"{layer}.self_attn.relative_k_proj.weight", hidden, hidden, std=hidden**-0.5)
        normal(f"{layer}.self_attn.per_dim_scale", hidden // 4, std=0.5, mean=1.0)
        clipped(f"{layer}.lconv1d.linear_start", 2 * hidden, hidden)
        clipped(f"{layer}.lconv1d.linear_end", hidden, hidden)
        normal(f"{layer}.lconv1d.depthwise_conv1d.weight", hidden, 1, 5, std=5**-0.5)
    normal("audio_tower.output_proj.weight", out, hidden, std=hidden**-0.5)
    normal("audio_tower.output_proj.bias", out, std=0.2)
    return made


class Hearing(Reference):
    """transformers' model of one family, a picture and two sounds."""

    def __init__(self, family: str, folder: Path) -> None:
        super().__init__(family, folder, None)
        self.picture = len(self.soft()[0])
        self.images = {key: value[:1] for key, value in self.images.items()}
        extractor = Gemma4UnifiedAudioFeatureExtractor() if family == "12b" else Gemma4AudioFeatureExtractor()
        made = extractor([*SOUNDS], return_tensors="np")
        features, mask = made["input_features"], made["input_features_mask"]
        self.heard = [one[valid] for one, valid in zip(features, mask, strict=True)]
        self.sounds = {
            "input_features": torch.from_numpy(np.asarray(features, dtype=np.float32)),
            "input_features_mask": torch.from_numpy(np.asarray(mask)),
        }

    @torch.no_grad()
    def soft_sounds(self, *, behind: int = 0) -> list[torch.Tensor]:
        """Return the soft tokens [S, H] of each sound; `behind`: so many more keys are seen, which is wrong."""
        own = modeling_gemma4.sliding_window_mask_function
        modeling_gemma4.sliding_window_mask_function = lambda window: own((window[0] + behind, window[1]))
        try:
            output = self.model.model.get_audio_features(**self.sounds, return_dict=True)
        finally:
            modeling_gemma4.sliding_window_mask_function = own
        return [one[valid] for one, valid in zip(output.pooler_output, output.attention_mask, strict=True)]

    @torch.no_grad()
    def logits(self, ids: torch.Tensor, mask: str = "rule") -> torch.Tensor:
        """Return logits [L, V]; `mask`: the rule, or "blocks", where sounds see ahead as pictures do."""
        audio = ids == IDS["audio_token_id"]
        types = ((ids == IDS["image_token_id"]).long() + 3 * audio.long())[None]
        given: dict[str, Any] = {"mm_token_type_ids": types, "attention_mask": torch.ones_like(ids)[None]}
        if self.family == "12b":
            seen = types if mask == "rule" else torch.where(types == 3, 2, types)
            blocks = modeling_gemma4_unified.get_block_sequence_ids_for_mask(seen, seen.device)
            given["attention_mask"] = modeling_gemma4_unified.create_masks_for_vision_model(
                self.model.config.text_config, torch.zeros(1, len(ids), 32), torch.ones_like(ids)[None], None, None,
                block_sequence_ids=blocks,
            )  # fmt: skip
        return self.model(input_ids=ids[None], use_cache=False, **self.images, **self.sounds, **given).logits[0]


def counts() -> dict[str, int]:
    """Return the soft tokens of sounds by their samples, as E2B's processor counts them: by the mask of frames."""
    found = {}
    for count in COUNTED:
        mask = Gemma4AudioFeatureExtractor()([sound(count, 1)])["input_features_mask"][0]
        found[str(count)] = int(mask[::2][::2].sum())
    return found


def prompt_with(picture: int, sounds: list[int], seed: int) -> tuple[list[int], list[int]]:
    """Return a prompt with three placeholders, and the same with soft tokens."""
    draw = torch.Generator().manual_seed(seed)

    def text(length: int) -> list[int]:
        return torch.randint(107, 119, (length,), generator=draw).tolist()

    image = [IDS[f"{name}_token_id"] for name in ("boi", "image", "eoi")]
    audio = [IDS["boa_token_id"], IDS["audio_token_id"], IDS["eoa_token_index"]]
    short = whole = [2, *text(5)]
    for (begin, soft, end), count in ((audio, sounds[0]), (image, picture), (audio, sounds[1])):
        after = text(4)
        short = [*short, soft, *after]
        whole = [*whole, begin, *[soft] * count, end, *after]
    return short, whole


def record(family: str) -> None:
    """Write one family: audio_config into config.json, hearing.towers.safetensors, hearing.safetensors and .json."""
    dest = OUT / family
    (dest / "config.json").write_text(json.dumps(config_of(family), indent=1) + "\n")
    others = {}
    for file in (GOLDENS / family / "target").glob("*.safetensors"):
        others |= {name: one for name, one in load_file(file).items() if "language_model" in name}
    others |= {name: one.float() for name, one in load_file(dest / "towers.safetensors").items()}
    for seed in itertools.count():
        made = tower(family, seed)
        with TemporaryDirectory() as name:
            folder = Path(name)
            save_file(others | made, folder / "model.safetensors", metadata={"format": "pt"})
            shutil.copy(dest / "generation_config.json", folder)
            arrays, facts = _computed(family, folder, seed)
        if arrays is not None:
            break
    stored = {name: one.to(torch.bfloat16) for name, one in sorted(made.items())}
    save_file(stored, dest / "hearing.towers.safetensors", metadata={"format": "pt"})
    save_file(arrays, dest / "hearing.safetensors")
    table = {"seed": seed, "transformers": transformers.__version__, **facts}
    (dest / "hearing.json").write_text(json.dumps(table) + "\n")
    print(family, seed, facts)


def _computed(family: str, folder: Path, seed: int) -> tuple[dict[str, torch.Tensor] | None, dict[str, Any]]:
    """Return what the reference computes; None where two tokens are nearly as good as each other."""
    reference = Hearing(family, folder)
    heard = reference.soft_sounds()
    short, whole = prompt_with(reference.picture, [len(one) for one in heard], seed)
    ids = torch.tensor(whole)
    logits = reference.logits(ids)
    tokens: list[int] = []
    margin = math.inf
    for _ in range(COUNT):
        row = reference.logits(torch.cat([ids, torch.tensor(tokens, dtype=torch.long)]))[-1]
        two = row.index_fill(0, torch.tensor(SUPPRESSED), -1e9).topk(2)
        margin = min(margin, float(two.values[0] - two.values[1]))
        tokens.append(int(two.indices[0]))
    if margin < MARGIN or len(set(tokens)) < 10:
        return None, {}
    facts: dict[str, Any] = {"margin": margin, "different": len(set(tokens))}
    arrays = {"prompt": torch.tensor(short), "whole": ids, "greedy": torch.tensor(tokens)}
    arrays["logits"] = logits[-ROWS:].clone()
    arrays["features"] = torch.from_numpy(reference.heard[1].astype(np.float32))
    arrays |= {f"soft.{i}": one.clone() for i, one in enumerate(heard)}
    if family == "e2b":
        wrong = reference.soft_sounds(behind=1)
        arrays |= {f"behind.{i}": one.clone() for i, one in enumerate(wrong)}
        facts |= {"behind": float((wrong[0] - heard[0]).abs().max()), "counts": counts()}
    else:
        arrays["blocks"] = reference.logits(ids, "blocks")[-ROWS:].clone()
        facts["blocks"] = float((arrays["blocks"] - arrays["logits"]).abs().max())
    return arrays, facts


def main() -> None:
    """Write every family that hears."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for family in sys.argv[1:] or AUDIO:
        record(family)


if __name__ == "__main__":
    main()
