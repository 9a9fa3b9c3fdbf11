"""Writes target and drafter in the layout of Google's checkpoints, in bfloat16."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from scripts.pocket import start
from scripts.pocket.layout import (
    AUDIO,
    AUDIO_CLOSE,
    AUDIO_OPEN,
    BOS,
    EOS,
    IMAGE,
    IMAGE_CLOSE,
    IMAGE_OPEN,
    PAD,
    TOOL_RESPONSE,
    TURN_END,
)  # fmt: skip
from scripts.pocket.network import Drafter, Target
from scripts.pocket.senses.hearing import Hearing
from scripts.pocket.senses.vision import Clippable, Vision
from scripts.pocket.sizes import (
    CENTROID_TOP,
    CENTROIDS,
    DRAFTER,
    HEARING,
    IMAGE_TOKENS,
    TARGET,
    VISION,
    Sizes,
)  # fmt: skip

LIMIT_BYTES = 40_000_000
_WIDE = 1e4
"""Bounds of the towers' clipped products: so far away that nothing is clipped."""
_TEMPLATE = Path(__file__).parent / "chat_template.jinja"


def publish(work: Path, assets: Path) -> None:
    """Write assets/{target,drafter} from the checkpoints in `work`, what is not trained there from `start`."""
    target = start.trained(Target(), work, "target")
    folder = assets / "target"
    folder.mkdir(parents=True, exist_ok=True)
    tensors = _tensors(target, "model.language_model.")
    for tower, name in ((Vision(), "vision"), (Hearing(), "hearing")):
        tensors |= _tensors(start.trained(tower, work, name), "model.")
    _save(tensors, folder)
    _json(folder / "config.json", target_config())
    _json(folder / "generation_config.json", _GENERATION)
    _json(folder / "tokenizer_config.json", _TOKENIZER_CONFIG)
    shutil.copyfile(work / "tokenizer.json", folder / "tokenizer.json")
    shutil.copyfile(_TEMPLATE, folder / "chat_template.jinja")
    if (work / "drafter.pt").exists() or start.has(work, "drafter"):
        _publish_drafter(work, assets / "drafter")
    size = sum(path.stat().st_size for path in assets.rglob("*") if path.is_file())
    print(f"{assets}: {size:,} bytes")
    if size > LIMIT_BYTES:
        raise SystemExit(f"{assets} is larger than {LIMIT_BYTES:,} bytes")


def _publish_drafter(work: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    drafter = start.trained(Drafter(), work, "drafter")
    if (work / "ordering.pt").exists():
        drafter.masked_embedding.token_ordering.copy_(torch.load(work / "ordering.pt"))
    _save(_tensors(drafter, ""), folder)
    _json(folder / "config.json", drafter_config())
    _json(folder / "generation_config.json", {"num_assistant_tokens": 6, "num_assistant_tokens_schedule": "constant"})


def _tensors(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Return the tensors by their published names, the bounds of clipped products included."""
    found = {prefix + name: tensor for name, tensor in module.state_dict().items()}
    for name, inner in module.named_modules():
        for bound in ("input_min", "input_max", "output_min", "output_max") if isinstance(inner, Clippable) else ():
            found[f"{prefix}{name}.{bound}"] = torch.tensor(-_WIDE if bound.endswith("min") else _WIDE)
    return found


def _save(tensors: dict[str, Tensor], folder: Path) -> None:
    published = {
        name: (one if one.dtype == torch.int64 else one.bfloat16()).clone().contiguous()
        for name, one in tensors.items()
    }
    save_file(published, folder / "model.safetensors", metadata={"format": "pt"})


def _json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _text_config(sizes: Sizes, *, double_wide: bool) -> dict[str, Any]:
    return {
        "model_type": "gemma4_text",
        "hidden_size": sizes.hidden,
        "num_hidden_layers": len(sizes.layer_types),
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": 1,
        "num_global_key_value_heads": None,
        "head_dim": sizes.head_dim,
        "global_head_dim": sizes.global_head_dim,
        "attention_k_eq_v": False,
        "sliding_window": sizes.window,
        "layer_types": list(sizes.layer_types),
        "num_kv_shared_layers": sizes.kv_shared,
        "use_double_wide_mlp": double_wide,
        "intermediate_size": sizes.intermediate,
        "hidden_size_per_layer_input": sizes.ple,
        "vocab_size": sizes.vocab,
        "vocab_size_per_layer_input": sizes.vocab if sizes.ple else 0,
        "max_position_embeddings": sizes.max_positions,
        "final_logit_softcapping": sizes.softcap,
        "rope_parameters": {
            "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1000000.0, "rope_type": "proportional"},
            "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
        },
        "rms_norm_eps": 1e-06,
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "enable_moe_block": False,
        "num_experts": None,
        "top_k_experts": None,
        "moe_intermediate_size": None,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "dtype": "bfloat16",
        "use_cache": True,
    }


def target_config() -> dict[str, Any]:
    """config.json of the target. `vocab_size` stands at the top, too: mlx-lm reads it there."""
    return {
        "model_type": "gemma4",
        "architectures": ["Gemma4ForConditionalGeneration"],
        "vocab_size": TARGET.vocab,
        "text_config": _text_config(TARGET, double_wide=True),
        "vision_config": _vision_config(),
        "audio_config": _audio_config(),
        "vision_soft_tokens_per_image": IMAGE_TOKENS,
        "image_token_id": IMAGE,
        "boi_token_id": IMAGE_OPEN,
        "eoi_token_id": IMAGE_CLOSE,
        "audio_token_id": AUDIO,
        "boa_token_id": AUDIO_OPEN,
        "eoa_token_index": AUDIO_CLOSE,
        "tie_word_embeddings": True,
        "eos_token_id": [EOS, TURN_END],
        "dtype": "bfloat16",
    }


def _vision_config() -> dict[str, Any]:
    return {
        "model_type": "gemma4_vision",
        "hidden_size": VISION.hidden,
        "intermediate_size": VISION.inner,
        "num_hidden_layers": VISION.layers,
        "num_attention_heads": VISION.heads,
        "num_key_value_heads": VISION.heads,
        "head_dim": VISION.hidden // VISION.heads,
        "patch_size": 16,
        "pooling_kernel_size": 3,
        "position_embedding_size": VISION.positions,
        "rope_parameters": {"rope_theta": VISION.theta, "rope_type": "default"},
        "rms_norm_eps": 1e-06,
        "hidden_activation": "gelu_pytorch_tanh",
        "use_clipped_linears": True,
        "standardize": False,
        "dtype": "bfloat16",
    }


def _audio_config() -> dict[str, Any]:
    return {
        "model_type": "gemma4_audio",
        "hidden_size": HEARING.hidden,
        "num_hidden_layers": HEARING.layers,
        "num_attention_heads": HEARING.heads,
        "subsampling_conv_channels": list(HEARING.channels),
        "conv_kernel_size": HEARING.kernel,
        "attention_chunk_size": HEARING.past,
        "attention_context_left": HEARING.past + 1,
        "attention_context_right": 0,
        "attention_logit_cap": 50.0,
        "output_proj_dims": HEARING.out,
        "residual_weight": 0.5,
        "gradient_clipping": 1e10,
        "rms_norm_eps": 1e-06,
        "hidden_act": "silu",
        "use_clipped_linears": True,
        "dtype": "bfloat16",
    }


def drafter_config() -> dict[str, Any]:
    """config.json of the drafter."""
    return {
        "model_type": "gemma4_assistant",
        "architectures": ["Gemma4AssistantForCausalLM"],
        "backbone_hidden_size": TARGET.hidden,
        "use_ordered_embeddings": True,
        "num_centroids": CENTROIDS,
        "centroid_intermediate_top_k": CENTROID_TOP,
        "tie_word_embeddings": True,
        "text_config": _text_config(DRAFTER, double_wide=False),
        "dtype": "bfloat16",
    }


_GENERATION = {
    "bos_token_id": BOS,
    "do_sample": True,
    "eos_token_id": [EOS, TURN_END, TOOL_RESPONSE],
    "pad_token_id": PAD,
    "temperature": 1.0,
    "top_k": 64,
    "top_p": 0.95,
}
_TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "add_bos_token": True,
    "clean_up_tokenization_spaces": False,
    "model_max_length": TARGET.max_positions,
    "padding_side": "left",
}
