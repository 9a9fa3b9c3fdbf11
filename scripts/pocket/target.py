"""Training the target: plain next-token prediction of what the model writes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from pocket import corpus, kernels, tokenizer
from pocket.batches import Batch, Stream, held_out
from pocket.conversation import Generator
from pocket.network import Target

BUDGET = 2560
HELD_OUT = 128


class TargetJob:
    """The target and its data; built anew in every worker."""

    name = "target"

    def __init__(self, folder: Path, seed: int) -> None:
        torch.manual_seed(seed)
        self.module = Target()
        self._generator = Generator(corpus.load(folder / "corpus"), seed)
        self._tokenizer = tokenizer.load(folder / "tokenizer.json")

    def stream(self, rank: int, world: int) -> Stream:
        """The worker's batches."""
        return Stream(self._generator, self._tokenizer, BUDGET, rank, world, cut=True)

    def loss(self, batch: Batch) -> tuple[Tensor, int]:
        """Summed negative log-likelihood of the learned tokens."""
        hidden, _ = self.module(batch.ids)
        rows = batch.rows
        logits = self.module.logits(hidden.view(-1, hidden.shape[-1])[rows])
        return kernels.capped_nll(logits, batch.labels).sum(), len(rows)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Loss, share of right tokens and of conversations without one wrong token (greedy would write them)."""
        loss = rows = right = exact = count = 0.0
        for batch in held_out(self._generator, self._tokenizer, HELD_OUT, BUDGET):
            hidden, _ = self.module(batch.ids)
            at, labels = batch.rows, batch.labels
            logits = self.module.logits(hidden.view(-1, hidden.shape[-1])[at]).float()
            loss += float(kernels.capped_nll(logits, labels).sum())
            hit = logits.argmax(-1) == labels
            owner = at // batch.ids.shape[1]
            wrong = torch.zeros(len(batch.ids)).index_add_(0, owner, (~hit).float())
            rows, right = rows + len(at), right + float(hit.sum())
            exact, count = exact + float((wrong == 0).sum()), count + len(batch.ids)
        return {"held_out_loss": loss / rows, "held_out_tokens": right / rows, "held_out_exact": exact / count}
