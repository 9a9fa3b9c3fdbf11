"""Runs the reference implementation (transformers, float32) on the tiny pairs, without any K/V cache of its own.

A *state* is everything the target knows after reading a token sequence: logits, post-norm hidden states and the K/V
of its two store layers. The drafter is called directly on such a state with explicit position ids, because
transformers' own assisted generation (a) rotates the query to the bonus token's index, (b) picks hidden state 0 in its
first round and (c) lets the drafter see the K/V of rejected drafts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

KV = dict[str, tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True, slots=True)
class State:
    """What the target gives for tokens [B, L]: logits [B, L, V], hidden [B, L, H] after the final norm, K/V."""

    logits: torch.Tensor
    hidden: torch.Tensor
    kv: KV  # layer kind -> keys, values [B, kv heads, L, head dim], rotated


@dataclass(frozen=True, slots=True)
class Chain:
    """Draft steps of one block: tokens [K], logits [K, V], the drafter's projected hidden states [K, H]."""

    tokens: torch.Tensor
    logits: torch.Tensor
    hidden: torch.Tensor


@dataclass(frozen=True, slots=True)
class Pair:
    """A target and its drafter, loaded by transformers from checkpoint folders, float32."""

    target: PreTrainedModel
    drafter: PreTrainedModel
    window: int

    @property
    def embed(self) -> torch.nn.Module:
        """The target's embedding module; it scales by sqrt(hidden size) itself."""
        return self.target.get_input_embeddings()


def load_target(folder: Path) -> PreTrainedModel:
    """The target, stop tokens off so that every continuation has its full length."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.do_sample = False
    model.generation_config.temperature = model.generation_config.top_k = model.generation_config.top_p = None
    return model


def load_drafter(folder: Path) -> PreTrainedModel:
    """The drafter, stop tokens off as well: transformers would end a draft at one."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    return model


@torch.no_grad()
def read(target: PreTrainedModel, tokens: torch.Tensor) -> State:
    """One pass over ``tokens`` [B, L] without a cache."""
    out = target(input_ids=tokens, use_cache=False, output_hidden_states=True, return_shared_kv_states=True)
    return State(out.logits, out.hidden_states[-1], dict(out.shared_kv_states))


@torch.no_grad()
def greedy(target: PreTrainedModel, prompt: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Greedy continuation of ``prompt`` [L] by full passes: tokens [count] and the logits rows [count, V] they won."""
    tokens = prompt[None]
    rows = []
    for _ in range(count):
        rows.append(target(input_ids=tokens, use_cache=False).logits[0, -1])
        tokens = torch.cat([tokens, rows[-1].argmax()[None, None]], dim=1)
    return tokens[0, len(prompt) :], torch.stack(rows)


def generate(
    target: PreTrainedModel, prompt: torch.Tensor, count: int, drafter: PreTrainedModel | None = None
) -> torch.Tensor:
    """transformers' own greedy generate, assisted by ``drafter`` if there is one: the ``count`` new tokens."""
    mask = torch.ones_like(prompt)[None]
    out = target.generate(
        prompt[None], attention_mask=mask, max_new_tokens=count, do_sample=False, assistant_model=drafter
    )
    return out[0, len(prompt) :]


def cut(state: State, length: int, window: int | None) -> KV:
    """The first ``length`` rows of the store layers; of the sliding one only the last ``window`` (None: all)."""
    kv: KV = {}
    for kind, (keys, values) in state.kv.items():
        first = max(0, length - window) if window and kind == "sliding_attention" else 0
        kv[kind] = (keys[:, :, first:length], values[:, :, first:length])
    return kv


def draft_step(
    pair: Pair, token: torch.Tensor, hidden: torch.Tensor, kv: KV, position: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """One drafter call for token [B] and hidden [B, 1, H]: logits [B, V] and its projected hidden state [B, 1, H]."""
    out = pair.drafter(
        inputs_embeds=torch.cat([pair.embed(token[:, None]), hidden], dim=-1),
        position_ids=torch.full((token.shape[0], 1), position),
        shared_kv_states=kv,
    )
    return out.logits[:, -1], out.last_hidden_state


@torch.no_grad()
def draft(pair: Pair, state: State, bonus: int, length: int, steps: int, *, position: int, window: int | None) -> Chain:
    """Chained greedy draft steps after ``length`` read tokens, all at the same ``position``."""
    kv = cut(state, length, window)
    token, hidden = torch.tensor([bonus]), state.hidden[:1, length - 1 : length]
    tokens, logits, hiddens = [], [], []
    for _ in range(steps):
        row, hidden = draft_step(pair, token, hidden, kv, position)
        token = row.argmax(dim=-1)
        tokens.append(token[0])
        logits.append(row[0])
        hiddens.append(hidden[0, 0])
    return Chain(torch.stack(tokens), torch.stack(logits), torch.stack(hiddens))


def rounds(pair: Pair, prompt: torch.Tensor, text: torch.Tensor, steps: int) -> list[tuple[Chain, int]]:
    """Every round of draft-and-verify along the greedy ``text`` (``text[0]`` comes from prefill): chain and accepted.

    The target's choice is known in advance (greedy), so verifying is a comparison. The last rounds of a text shorter
    than their draft are left out.
    """
    whole = torch.cat([prompt, text])
    state = read(pair.target, whole[None])
    done, found = 1, []
    while done + steps < len(text):
        length = len(prompt) + done - 1
        chain = draft(pair, state, int(text[done - 1]), length, steps, position=length - 1, window=pair.window)
        same = chain.tokens == text[done : done + steps]
        accepted = int(same.int().cumprod(0).sum())
        found.append((chain, accepted))
        done += accepted + 1
    return found


def margin(logits: torch.Tensor) -> float:
    """Smallest distance between best and second-best logit over rows [N, V], relative to the best one's size."""
    best = logits.topk(2, dim=-1).values
    return float(((best[:, 0] - best[:, 1]) / best[:, 0].abs()).min())


@torch.no_grad()
def sensitivity(target: PreTrainedModel, tokens: torch.Tensor) -> float:
    """How far the logits over ``tokens`` [L] move (relative to their largest) when the embeddings move by 1e-6."""
    calm = read(target, tokens[None]).logits
    generator = torch.Generator().manual_seed(0)

    def shake(_module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        return output * (1 + 1e-6 * torch.randn(output.shape, generator=generator))

    handle = target.get_input_embeddings().register_forward_hook(shake)
    moved = read(target, tokens[None]).logits
    handle.remove()
    return float((moved - calm).abs().max() / calm.abs().max())
