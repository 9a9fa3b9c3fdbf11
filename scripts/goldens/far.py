"""What the reference computes at positions near the end of a published context, without the 262,144 tokens before.

A few tokens stand at real positions far apart; masks are given by position. The reference computes a rotation's angle,
position times speed, in float32, so at position 262,143 it is off by up to 1/64 of a radian. Hidden states are
therefore recorded twice: as they are (`float32`), and with angles, and nothing else, in double precision (`exact`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from scripts.goldens.reference import load_target

if TYPE_CHECKING:
    from pathlib import Path

    from scripts.goldens.families import Family

FAMILIES = ("e2b", "31b")
POSITIONS = [0, 1, 2, *range(131062, 131073), *range(262140, 262144)]


def _exact_angles(rotary: Any, x: torch.Tensor, position_ids: torch.Tensor, kind: str) -> tuple[torch.Tensor, ...]:
    """cos and sin [1, L, D] as the reference's rotary embedding gives them, from angles in double precision."""
    rope = rotary.config.rope_parameters[kind]
    still = rotary._buffers[f"{kind}_inv_freq"] == 0
    pairs = len(still)
    speeds = torch.tensor([math.pow(rope["rope_theta"], -i / pairs) for i in range(pairs)], dtype=torch.float64)
    angles = position_ids[:, :, None].double() * speeds.masked_fill(still, 0.0)
    both = torch.cat((angles, angles), dim=-1)
    return both.cos().to(x.dtype), both.sin().to(x.dtype)


@torch.no_grad()
def _read(model: Any, tokens: torch.Tensor, positions: torch.Tensor, window: int) -> dict[str, torch.Tensor]:
    """Hidden states [L, H] and rotated keys of both store layers [kv heads, L, D]."""
    query, key = positions[:, None], positions
    seen = key <= query
    masks = {"full_attention": seen[None, None], "sliding_attention": (seen & (key > query - window))[None, None]}
    out = model.model.language_model(
        input_ids=tokens[None],
        position_ids=positions[None],
        attention_mask=masks,
        use_cache=False,
        return_shared_kv_states=True,
    )
    kv = dict(out.shared_kv_states)
    return {
        "hidden": out.last_hidden_state[0],
        "sliding_keys": kv["sliding_attention"][0][0],
        "full_keys": kv["full_attention"][0][0],
    }


def record_far(family: Family, folder: Path) -> dict[str, float]:
    """Write `far.safetensors` beside the family's checkpoint; returns how far float32 angles move each tensor."""
    model = load_target(folder / "target")
    positions = torch.tensor(POSITIONS)
    tokens = torch.randint(4, family.vocab, positions.shape, generator=torch.Generator().manual_seed(11))
    kind = type(model.model.language_model.rotary_emb)
    as_is = _read(model, tokens, positions, family.window)
    original, kind.forward = kind.forward, _exact_angles
    try:
        exact = _read(model, tokens, positions, family.window)
    finally:
        kind.forward = original
    stored = {"float32.hidden": as_is["hidden"]} | {f"exact.{name}": tensor for name, tensor in exact.items()}
    stored |= {"tokens": tokens.to(torch.int32), "positions": positions.to(torch.int32)}
    save_file({name: tensor.contiguous() for name, tensor in stored.items()}, folder / "far.safetensors")
    return {name: float((as_is[name] - exact[name]).abs().max() / exact[name].abs().max()) for name in exact}
