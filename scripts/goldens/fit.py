"""Fits a random drafter to the golden texts for a few seconds, so that drafts are accepted and rejected in turn.

A purely random drafter would agree with its target about once in 128 tokens, and no golden would ever see an accepted
draft. Trained in the real protocol, all positions t of a text at once: position t is constant over four chained steps,
the K/V are rows 0..t, the hidden states after the first are the drafter's own.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from scripts.goldens.reference import Pair, State, read
from scripts.goldens.weights import Tensors, coarse

DRAFT_STEPS = 4
# Enough agreement for long accepted runs, little enough for rejections at every depth.
AGREEMENT = 0.75
MAX_UPDATES = 600


def _masks(length: int, window: int) -> dict[str, torch.Tensor]:
    """Which K/V rows a query at position t sees, for all t: bool [1, 1, L, L]."""
    t, row = torch.arange(length)[:, None], torch.arange(length)
    full = row <= t
    return {"full_attention": full[None, None], "sliding_attention": (full & (row > t - window))[None, None]}


def _loss(pair: Pair, state: State, tokens: torch.Tensor, first: int) -> tuple[torch.Tensor, float]:
    """Cross entropy over four chained steps from every t >= ``first``, and the share of drafts that are right."""
    model, length = pair.drafter, tokens.shape[1] - DRAFT_STEPS - 1
    masks = _masks(length, pair.window)
    kv = {kind: (keys[:, :, :length], values[:, :, :length]) for kind, (keys, values) in state.kv.items()}
    hidden, loss, right = state.hidden[:, :length], torch.zeros(()), 0.0
    for step in range(DRAFT_STEPS):
        inputs = torch.cat([pair.embed(tokens[:, 1 + step : 1 + step + length]), hidden], dim=-1)
        normed = model.model(
            inputs_embeds=model.pre_projection(inputs),
            attention_mask=masks,
            position_ids=torch.arange(length)[None],
            shared_kv_states=kv,
            use_cache=False,
        ).last_hidden_state
        hidden = model.post_projection(normed)
        logits, wanted = model.lm_head(normed)[0, first:], tokens[0, 2 + step + first : 2 + step + length]
        loss = loss + functional.cross_entropy(logits, wanted)
        right += float((logits.argmax(-1) == wanted).float().mean())
        if model.masked_embedding is not None:
            head = model.masked_embedding
            cluster = head.token_ordering.argsort() // head.vocab_size_per_centroid
            loss = loss + functional.cross_entropy(head.centroids(normed)[0, first:], cluster[wanted])
    return loss / DRAFT_STEPS, right / DRAFT_STEPS


def fit_drafter(pair: Pair, texts: list[tuple[torch.Tensor, int]]) -> Tensors:
    """Train ``pair.drafter`` in place on (tokens [L], prompt length) and return its tensors, coarse-grained again."""
    known = [(tokens[None], read(pair.target, tokens[None]), prompt - 1) for tokens, prompt in texts]
    optimizer = torch.optim.Adam(pair.drafter.parameters(), lr=3e-3)
    for _ in range(MAX_UPDATES):
        optimizer.zero_grad()
        results = [_loss(pair, state, tokens, first) for tokens, state, first in known]
        if min(right for _, right in results) >= AGREEMENT:
            break
        sum(loss for loss, _ in results).backward()
        optimizer.step()
    return {
        name: coarse(tensor.detach()) if tensor.is_floating_point() else tensor
        for name, tensor in pair.drafter.state_dict().items()
        if name != "lm_head.weight"
    }
