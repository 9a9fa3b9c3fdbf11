"""Searches seeds for a pair with clear decisions, and records what the reference computes from it.

*Clear* means that another implementation in float32 must come to the same tokens: every stored choice wins by more
than `MIN_MARGIN`, no expert or centroid is picked by less than `MIN_GAP`, and the text is not one repeated token.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors.torch import save_file

from scripts.goldens.families import GENERATION_STOP_IDS, Family, drafter_config, generation_config, target_config
from scripts.goldens.fit import fit_drafter
from scripts.goldens.reference import (
    Chain,
    Pair,
    cut,
    draft,
    generate,
    greedy,
    load_drafter,
    load_target,
    margin,
    read,
    rounds,
    sensitivity,
)
from scripts.goldens.weights import Tensors, drafter_tensors, target_tensors, write_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from transformers import PreTrainedModel

PROMPTS = {"short": 7, "long": 45}
ROWS = {"short": 7, "long": 12}  # last positions whose logits and hidden states are stored
CONTINUATION = 40
CHAIN_STEPS = 4
ROUND_STEPS = (1, 2, 4, 8)
MIN_MARGIN = 1e-3
MIN_GAP = 1e-4
MIN_DIFFERENT = 15
MAX_SENSITIVITY = 4e-5  # logits may move by forty times what the embeddings moved

KEYS = {
    "<p>.prompt": "int32 [L]; <p> is short or long",
    "<p>.logits": "float32 [n, V], softcapped, the last n positions of the prompt",
    "<p>.hidden": "float32 [n, H], after the final norm, the last n positions",
    "<p>.greedy": "int32 [40], greedy continuation, stop tokens ignored; its first token is the bonus of the chains",
    "<p>.assisted": "int32 [40], transformers' generate with assistant_model and 4 drafts a round",
    "<p>.sliding_keys, <p>.sliding_values": "float32 [1, kv, min(L, window), D]: last rows of the sliding store layer",
    "<p>.full_keys, <p>.full_values": "float32 [1, kv, L, D]: the full-attention store layer, rotated",
    "<p>.draft.tokens, .logits, .hidden": "[4], [4, V], [4, H]: chain at position L - 1 on the K/V above",
    "<p>.draft_next.*": "the same chain at position L: only the rotation of the query differs",
    "<p>.draft_native.*": "transformers unaided: position L, all K/V rows, its mask shows window + 1 sliding rows",
}


Facts = dict[str, float | int | bool]


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt [L] and its greedy continuation [40]."""

    name: str
    prompt: torch.Tensor
    greedy: torch.Tensor

    @property
    def whole(self) -> torch.Tensor:
        """Prompt and continuation, [L + 40]."""
        return torch.cat([self.prompt, self.greedy])


@contextmanager
def watch_gaps(model: PreTrainedModel) -> Iterator[list[float]]:
    """Collect, for every top-k choice inside ``model`` (experts, centroids), the distance between in and out."""
    gaps: list[float] = []

    def hook_for(k: int) -> Callable[[torch.nn.Module, object, torch.Tensor], None]:
        def hook(_module: torch.nn.Module, _inputs: object, scores: torch.Tensor) -> None:
            best = scores.detach().topk(k + 1, dim=-1).values
            gaps.append(float((best[..., k - 1] - best[..., k]).min()))

        return hook

    handles = []
    for name, module in model.named_modules():
        if name.endswith("router.proj"):
            handles.append(module.register_forward_hook(hook_for(model.config.get_text_config().top_k_experts)))
        if name.endswith("masked_embedding.centroids"):
            handles.append(module.register_forward_hook(hook_for(model.config.centroid_intermediate_top_k)))
    try:
        yield gaps
    finally:
        for handle in handles:
            handle.remove()


def _prompt(family: Family, length: int, seed: int) -> torch.Tensor:
    """Random ids behind <bos>, without the other special ids below 3 and the stop ids."""
    generator = torch.Generator().manual_seed(seed)
    allowed = torch.tensor([i for i in range(3, family.vocab) if i not in GENERATION_STOP_IDS])
    picks = torch.randint(len(allowed), (length - 1,), generator=generator)
    return torch.cat([torch.tensor([2]), allowed[picks]])


def find_target(family: Family, folder: Path) -> tuple[PreTrainedModel, list[Text], Facts]:
    """Write targets with seeds 0, 1, ... into ``folder`` until one writes clear, varied text for both prompts."""
    for seed in itertools.count():
        tensors = target_tensors(family, seed)
        write_checkpoint(folder, tensors, target_config(family), generation_config(drafter=False), shards=family.shards)
        target = load_target(folder)
        texts: list[Text] = []
        facts: Facts = {"target_seed": seed}
        with watch_gaps(target) as gaps:
            for name, length in PROMPTS.items():
                prompt = _prompt(family, length, seed)
                tokens, rows = greedy(target, prompt, CONTINUATION)
                facts[f"{name}_margin"] = margin(rows)
                facts[f"{name}_different_tokens"] = len(tokens.unique())
                texts.append(Text(name, prompt, tokens))
        if gaps:
            facts["smallest_expert_gap"] = min(gaps)
        facts["sensitivity"] = max(sensitivity(target, text.whole) for text in texts)
        clear = min(facts[f"{name}_margin"] for name in PROMPTS) > MIN_MARGIN
        varied = min(facts[f"{name}_different_tokens"] for name in PROMPTS) >= MIN_DIFFERENT
        if clear and varied and min(gaps, default=1.0) > MIN_GAP and facts["sensitivity"] < MAX_SENSITIVITY:
            return target, texts, facts
    raise AssertionError("unreachable")


def chains(pair: Pair, text: Text) -> dict[str, Chain]:
    """The three variants of the first block after the prompt; see `KEYS`."""
    state, length, bonus = read(pair.target, text.prompt[None]), len(text.prompt), int(text.greedy[0])
    variants = {"draft": (length - 1, pair.window), "draft_next": (length, pair.window), "draft_native": (length, None)}
    return {
        name: draft(pair, state, bonus, length, CHAIN_STEPS, position=position, window=window)
        for name, (position, window) in variants.items()
    }


def find_drafter(family: Family, target: PreTrainedModel, texts: list[Text], folder: Path) -> tuple[Pair, Facts]:
    """Fit drafters from seeds 0, 1, ... until every stored draft is a clear choice."""
    for seed in itertools.count():
        _write_drafter(family, drafter_tensors(family, seed), folder)
        untrained = Pair(target, load_drafter(folder), family.window)
        fitted = fit_drafter(untrained, [(text.whole, len(text.prompt)) for text in texts])
        _write_drafter(family, fitted, folder)
        pair = Pair(target, load_drafter(folder), family.window)
        with watch_gaps(pair.drafter) as gaps:
            found = [chain for text in texts for chain in chains(pair, text).values()]
            for text, steps in itertools.product(texts, ROUND_STEPS):
                found += [chain for chain, _ in rounds(pair, text.prompt, text.greedy, steps)]
        facts: Facts = {"drafter_seed": seed, "draft_margin": min(margin(chain.logits) for chain in found)}
        if gaps:
            facts["smallest_centroid_gap"] = min(gaps)
        if facts["draft_margin"] > MIN_MARGIN and min(gaps, default=1.0) > MIN_GAP:
            return pair, facts
    raise AssertionError("unreachable")


def _write_drafter(family: Family, tensors: Tensors, folder: Path) -> None:
    write_checkpoint(folder, tensors, drafter_config(family), generation_config(drafter=True))


def _tensors_of(pair: Pair, text: Text) -> dict[str, torch.Tensor]:
    """Everything stored for one prompt, without the prompt's name."""
    state, length, rows = read(pair.target, text.prompt[None]), len(text.prompt), ROWS[text.name]
    pair.drafter.generation_config.num_assistant_tokens = CHAIN_STEPS
    stored = {
        "prompt": text.prompt,
        "logits": state.logits[0, -rows:],
        "hidden": state.hidden[0, -rows:],
        "greedy": text.greedy,
        "assisted": generate(pair.target, text.prompt, CONTINUATION, pair.drafter),
    }
    for kind, (keys, values) in cut(state, length, pair.window).items():
        short = kind.removesuffix("_attention")
        stored |= {f"{short}_keys": keys, f"{short}_values": values}
    for name, chain in chains(pair, text).items():
        stored |= {f"{name}.tokens": chain.tokens, f"{name}.logits": chain.logits, f"{name}.hidden": chain.hidden}
    return stored


def record(family: Family, folder: Path) -> dict[str, Any]:
    """Make one family's folder: both checkpoints, golden.safetensors, golden.json. Returns what golden.json holds."""
    target, texts, facts = find_target(family, folder / "target")
    pair, drafter_facts = find_drafter(family, target, texts, folder / "drafter")
    stored, plays = {}, {}
    for text in texts:
        tensors = _tensors_of(pair, text)
        assert torch.equal(generate(target, text.prompt, CONTINUATION), text.greedy), "cached generate deviates"
        facts[f"{text.name}_assisted_equals_greedy"] = torch.equal(tensors["assisted"], text.greedy)
        stored |= {f"{text.name}.{key}": tensor for key, tensor in tensors.items()}
        plays[text.name] = {
            str(steps): [
                {"draft": chain.tokens.tolist(), "accepted": accepted}
                for chain, accepted in rounds(pair, text.prompt, text.greedy, steps)
            ]
            for steps in ROUND_STEPS
        }
    as_int32 = {k: v.to(torch.float32 if v.is_floating_point() else torch.int32) for k, v in stored.items()}
    save_file({key: value.contiguous() for key, value in as_int32.items()}, folder / "golden.safetensors")
    versions = {"python": sys.version.split()[0], "torch": torch.__version__, "transformers": transformers.__version__}
    summary = {"family": family.name, "versions": versions, "facts": facts | drafter_facts, "tensors": KEYS}
    lines = json.dumps(summary | {"rounds": plays}, indent=1)
    (folder / "golden.json").write_text(_compact_lists(lines) + "\n")
    return summary


def _compact_lists(text: str) -> str:
    """Put each innermost JSON list and round on one line, so that the file can be read and compared."""
    for pattern in (r"\[[^\[\]{}]*\]", r"\{\s*\"draft\"[^{}]*\}"):
        text = re.sub(pattern, lambda match: " ".join(match[0].split()), text)
    return text
