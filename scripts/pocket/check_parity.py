"""Compare the training networks with others on the published files.

Run in the training environment (with transformers==5.17.0 and mlx installed): `python -m scripts.pocket.check_parity
[FOLDER]`. The target's hidden states and a chain of drafts at one position must agree with transformers' classes to
float32 rounding, soft tokens of a picture and of two sounds with the program's towers, which tests hold to
transformers'.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from scripts.pocket.network import Drafter, Target
from scripts.pocket.sizes import TARGET

_ROOT = Path(__file__).parents[2]
POCKET = Path(sys.argv[1]) if len(sys.argv) > 1 else _ROOT / "assets/pocket"
LENGTH, AT, STEPS = 300, 280, 4
TOLERANCE = 2e-3


def _text_weights() -> dict[str, Tensor]:
    prefix = "model.language_model."
    weights = load_file(POCKET / "target/model.safetensors")
    return {name.removeprefix(prefix): one.float() for name, one in weights.items() if name.startswith(prefix)}


def _senses() -> list[float]:
    """Return the largest differences of soft tokens: of a picture, of a short and of a long sound in one batch."""
    import mlx.core as mx
    import numpy as np

    from mlxmtp.models.config import read_config
    from mlxmtp.models.load import load_audio, load_vision
    from scripts.pocket.senses.hearing import Hearing, rows_of
    from scripts.pocket.senses.vision import Vision, patches

    mx.set_default_device(mx.cpu)
    config = read_config(POCKET / "target")
    weights = {name: one.float() for name, one in load_file(POCKET / "target/model.safetensors").items()}
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (96, 144, 3), dtype=np.uint8)
    mel = generator.normal(-3, 2, (2, 160, 128)).astype(np.float32)
    vision, hearing = Vision(), Hearing()
    for module in (vision, hearing):
        module.load_state_dict({name: weights[f"model.{name}"] for name in module.state_dict()})
    see, hear = load_vision(config), load_audio(config)
    found = [float(np.abs(np.array(see(mx.array(pixels))) - vision(patches(pixels)[None], 6, 9)[0].numpy()).max())]
    frames = torch.tensor([67, 160])
    ours = hearing(torch.from_numpy(mel), frames)
    for row, count in zip(ours, frames.tolist(), strict=True):
        theirs = np.array(hear(mx.array(mel[len(found) - 1, :count])))
        found.append(float(np.abs(theirs - row[: rows_of(count)].numpy()).max()))
    return found


def _reference(ids: Tensor) -> tuple[Tensor, list[Tensor]]:
    """transformers' hidden states [L, H] and, per draft step, the projected state at AT [H]."""
    from transformers import Gemma4AssistantConfig, Gemma4AssistantForCausalLM, Gemma4ForCausalLM, Gemma4TextConfig

    text = json.loads((POCKET / "target/config.json").read_text())["text_config"]
    target = Gemma4ForCausalLM(Gemma4TextConfig(**text)).eval().float()
    target.model.load_state_dict(_text_weights())
    drafter = (
        Gemma4AssistantForCausalLM(Gemma4AssistantConfig(**json.loads((POCKET / "drafter/config.json").read_text())))
        .eval()
        .float()
    )
    missing = drafter.load_state_dict(load_file(POCKET / "drafter/model.safetensors"), strict=False)
    assert not missing.unexpected_keys
    drafter.tie_weights()
    output = target.model(input_ids=ids, return_shared_kv_states=True)
    shared = {k: (v[0][:, :, : AT + 1], v[1][:, :, : AT + 1]) for k, v in output.shared_kv_states.items()}
    window = TARGET.window
    shared["sliding_attention"] = tuple(x[:, :, -window:] for x in shared["sliding_attention"])
    hidden, steps = output.last_hidden_state[:, AT : AT + 1], []
    for step in range(STEPS):
        embedded = target.model.embed_tokens(ids[:, AT + 1 + step : AT + 2 + step])
        made = drafter(
            inputs_embeds=torch.cat((embedded, hidden), -1),
            position_ids=torch.tensor([[AT]]),
            shared_kv_states=shared,
        )
        hidden = made.last_hidden_state
        steps.append(hidden[0, 0])
    return output.last_hidden_state[0], steps


def _ours(ids: Tensor) -> tuple[Tensor, list[Tensor]]:
    target, drafter = Target(dtype=torch.float32), Drafter()
    target.load_state_dict(_text_weights())
    drafter.load_state_dict(load_file(POCKET / "drafter/model.safetensors"))
    first, shared = target(ids)
    hidden, steps = first, []
    for step in range(STEPS):
        ahead = torch.nn.functional.pad(ids[:, 1 + step :], (0, 1 + step))
        _, hidden = drafter(target.embed(ahead), hidden, shared)
        steps.append(hidden[0, AT])
    return first[0], steps


@torch.no_grad()
def main() -> int:
    """Print the largest differences; exit 1 if one is more than rounding."""
    ids = torch.randint(363, TARGET.vocab, (1, LENGTH), generator=torch.Generator().manual_seed(0))
    theirs, ours = _reference(ids), _ours(ids)
    differences = [float((theirs[0] - ours[0]).abs().max())]
    differences += [float((a - b).abs().max()) for a, b in zip(theirs[1], ours[1], strict=True)]
    print("target and draft steps, largest difference:", *(f"{d:.1e}" for d in differences))
    differences += (senses := _senses())
    print("picture, short and long sound, largest difference:", *(f"{d:.1e}" for d in senses))
    return int(max(differences) > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
