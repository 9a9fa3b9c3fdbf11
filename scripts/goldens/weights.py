"""Random weights under the published tensor names, and the checkpoint folders they go into.

Scales are chosen so that every sublayer matters: unit-variance sublayer outputs, attention scores of a few units,
logits that reach into the softcap. Values keep four significant bits (exact in bfloat16): the files then compress
well in git, which random bfloat16 does not.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

if TYPE_CHECKING:
    from pathlib import Path

    from scripts.goldens.families import Family

Tensors = dict[str, torch.Tensor]
SIGNIFICANT_BITS = 4


def coarse(x: torch.Tensor) -> torch.Tensor:
    """``x`` rounded to `SIGNIFICANT_BITS` bits of mantissa, float32."""
    mantissa, exponent = torch.frexp(x.float())
    step = 2.0**SIGNIFICANT_BITS
    return torch.ldexp(torch.round(mantissa * step) / step, exponent)


class _Draw:
    """Named random tensors from one seed, in the order they are asked for."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.tensors: Tensors = {}

    def normal(self, name: str, *shape: int, std: float) -> None:
        self.tensors[name] = coarse(torch.randn(*shape, generator=self.generator) * std)

    def linear(self, name: str, out: int, width: int, gain: float = 1.0) -> None:
        self.normal(f"{name}.weight", out, width, std=gain * width**-0.5)

    def norm(self, name: str, width: int, center: float = 1.0) -> None:
        noise = torch.randn(width, generator=self.generator) * 0.2
        self.tensors[name] = coarse(center * (1.0 + noise))

    def uniform(self, name: str, width: int, low: float, high: float) -> None:
        self.tensors[name] = coarse(low + (high - low) * torch.rand(width, generator=self.generator))

    def mlp(self, name: str, hidden: int, width: int) -> None:
        self.linear(f"{name}.gate_proj", width, hidden)
        self.linear(f"{name}.up_proj", width, hidden)
        self.linear(f"{name}.down_proj", hidden, width)

    def layer_norms(self, name: str, hidden: int) -> None:
        for norm in ("input_layernorm", "post_attention_layernorm"):
            self.norm(f"{name}.{norm}.weight", hidden)
        for norm in ("pre_feedforward_layernorm", "post_feedforward_layernorm"):
            self.norm(f"{name}.{norm}.weight", hidden)
        self.uniform(f"{name}.layer_scalar", 1, 0.5, 1.0)


def _attention(draw: _Draw, name: str, family: Family, *, full: bool, heads: int, own_kv: bool) -> None:
    head_dim = family.global_head_dim if full else family.head_dim
    draw.linear(f"{name}.q_proj", heads * head_dim, family.hidden)
    draw.norm(f"{name}.q_norm.weight", head_dim, family.attention_norm)
    draw.linear(f"{name}.o_proj", family.hidden, heads * head_dim)
    if not own_kv:
        return
    k_eq_v = family.k_eq_v and full
    kv_heads = (family.global_kv_heads or family.kv_heads) if k_eq_v else family.kv_heads
    draw.linear(f"{name}.k_proj", kv_heads * head_dim, family.hidden)
    draw.norm(f"{name}.k_norm.weight", head_dim, family.attention_norm)
    if not k_eq_v:
        draw.linear(f"{name}.v_proj", kv_heads * head_dim, family.hidden)


def _experts(draw: _Draw, name: str, family: Family, count: int) -> None:
    hidden, width = family.hidden, family.intermediate
    draw.linear(f"{name}.router.proj", count, hidden, gain=1.5 * hidden**0.5)
    draw.norm(f"{name}.router.scale", hidden)
    draw.uniform(f"{name}.router.per_expert_scale", count, 0.5, 1.5)
    draw.normal(f"{name}.experts.gate_up_proj", count, 2 * width, hidden, std=hidden**-0.5)
    draw.normal(f"{name}.experts.down_proj", count, hidden, width, std=width**-0.5)
    for norm in ("post_feedforward_layernorm_1", "post_feedforward_layernorm_2", "pre_feedforward_layernorm_2"):
        draw.norm(f"{name}.{norm}.weight", hidden)


def _towers(draw: _Draw, family: Family) -> None:
    """Stand-ins for the vision and audio parts of a published file: a loader of the text model must skip them."""
    for tower in family.towers:
        draw.linear(f"model.{tower}.encoder.layers.0.self_attn.q_proj.linear", 4, 8)
        draw.uniform(f"model.{tower}.encoder.layers.0.input_max", 1, 1.0, 2.0)


def target_tensors(family: Family, seed: int) -> Tensors:
    """All tensors of a published target, the never-used K/V projections of K/V-sharing layers included."""
    draw, hidden, root = _Draw(seed), family.hidden, "model.language_model"
    draw.linear(f"{root}.embed_tokens", family.vocab, hidden)
    # A final norm around 3 gives logits of about +-10, where the softcap at 30 can be seen.
    draw.norm(f"{root}.norm.weight", hidden, 3.0)
    if family.ple:
        packed = family.layers * family.ple
        draw.linear(f"{root}.embed_tokens_per_layer", family.vocab, packed, gain=(packed / family.ple) ** 0.5)
        draw.linear(f"{root}.per_layer_model_projection", packed, hidden, gain=hidden**0.5)
        draw.norm(f"{root}.per_layer_projection_norm.weight", family.ple)
    for i, kind in enumerate(family.layer_types):
        name, full = f"{root}.layers.{i}", kind == "full_attention"
        _attention(draw, f"{name}.self_attn", family, full=full, heads=family.heads, own_kv=True)
        wide = family.double_wide and i >= family.first_shared
        draw.mlp(f"{name}.mlp", hidden, family.intermediate * (2 if wide else 1))
        draw.layer_norms(name, hidden)
        if family.ple:
            draw.linear(f"{name}.per_layer_input_gate", family.ple, hidden)
            draw.linear(f"{name}.per_layer_projection", hidden, family.ple)
            draw.norm(f"{name}.post_per_layer_input_norm.weight", hidden)
        if family.experts:
            _experts(draw, name, family, family.experts)
    _towers(draw, family)
    return draw.tensors


def drafter_tensors(family: Family, seed: int) -> Tensors:
    """All tensors of a published drafter; for the sparse head with a random assignment of tokens to centroids."""
    draw, hidden = _Draw(seed), family.hidden
    draw.linear("pre_projection", hidden, 2 * hidden)
    draw.linear("post_projection", hidden, hidden)
    draw.linear("model.embed_tokens", family.vocab, hidden)
    draw.norm("model.norm.weight", hidden)
    for i in range(4):
        name = f"model.layers.{i}"
        _attention(draw, f"{name}.self_attn", family, full=i == 3, heads=family.drafter_heads, own_kv=False)
        draw.mlp(f"{name}.mlp", hidden, family.intermediate)
        draw.layer_norms(name, hidden)
    if family.has_centroids:
        draw.linear("masked_embedding.centroids", family.centroids, hidden)
        order = torch.randperm(family.vocab, generator=draw.generator)
        draw.tensors["masked_embedding.token_ordering"] = order
    return draw.tensors


def write_checkpoint(
    folder: Path, tensors: Tensors, config: dict[str, Any], generation: dict[str, Any], *, shards: int = 1
) -> None:
    """Write a checkpoint folder: config.json, generation_config.json and bfloat16 weights in one file or ``shards``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=1) + "\n")
    stored = {
        name: tensor.to(torch.bfloat16).contiguous() if tensor.is_floating_point() else tensor
        for name, tensor in sorted(tensors.items())
    }
    if shards == 1:
        save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(stored)
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        part = names[len(names) * shard // shards : len(names) * (shard + 1) // shards]
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        save_file({name: stored[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.numel() * tensor.element_size() for tensor in stored.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
