"""Training the drafter in the protocol it is used in, target frozen.

All positions t of a conversation at once. Step d reads the scaled target embedding of token
t+1+d and a hidden state (the target's at t for d = 0, then the drafter's own projected one),
attends to the target's stored keys and values 0..t at position t, whatever d is, and learns the
target's distribution of the token after t+1+d.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from scripts.pocket import kernels, start
from scripts.pocket.batches import Batch, Conversations, Stream
from scripts.pocket.network import Drafter, Target
from scripts.pocket.senses.soft import conversations
from scripts.pocket.sizes import CENTROID_TOP, CENTROIDS, DRAFTER, Scale

STEPS = 5


@torch.no_grad()
def ordering(table: Tensor, rounds: int = 12) -> Tensor:
    """Token ids in CENTROIDS blocks of equal size, like rows of the table [V, H] together."""
    table = F.normalize(table - table.mean(0), dim=-1)
    size = len(table) // CENTROIDS
    generator = torch.Generator().manual_seed(0)
    centres = table[torch.randperm(len(table), generator=generator)[:CENTROIDS]]
    owner = torch.zeros(len(table), dtype=torch.long)
    for _ in range(rounds):
        owner = _balanced(table @ centres.T, size)
        centres = F.normalize(torch.zeros_like(centres).index_add_(0, owner, table), dim=-1)
    return torch.argsort(owner, stable=True)


def _balanced(likeness: Tensor, size: int) -> Tensor:
    """Owner of each row: best pairs first, every centre takes `size` rows."""
    owner = [-1] * len(likeness)
    room = [size] * likeness.shape[1]
    for pair in likeness.flatten().argsort(descending=True, stable=True).tolist():
        row, centre = divmod(pair, likeness.shape[1])
        if owner[row] < 0 and room[centre]:
            owner[row] = centre
            room[centre] -= 1
    return torch.tensor(owner)


def reduced(table: Tensor) -> Tensor:
    """The target's table [V, B] in the drafter's width: its strongest directions, a head start for the drafter's."""
    _, _, directions = torch.linalg.svd(table - table.mean(0), full_matrices=False)
    narrow = table @ directions[: DRAFTER.hidden].T
    return narrow * (0.04 / narrow.std())


def _begun(folder: Path, target: Target) -> Drafter:
    """Return the drafter as it is before training, and write the order of its tokens, once, into the folder."""
    drafter, saved = Drafter(), folder / "ordering.pt"
    order = drafter.masked_embedding.token_ordering
    if start.begun(folder):
        start.load(drafter, folder, "drafter")
    else:
        with torch.no_grad():
            drafter.model.embed_tokens.weight.copy_(reduced(target.embed_tokens.weight))
        order.copy_(torch.load(saved) if saved.exists() else ordering(target.embed_tokens.weight))
    if not saved.exists():
        torch.save(order, saved)
    return drafter


class DrafterJob:
    """The drafter, the frozen target it reads, and the data."""

    name = "drafter"

    def __init__(
        self, folder: Path, seed: int, scale: Scale, make: Callable[[Path, int, Scale], Conversations] = conversations
    ) -> None:
        torch.manual_seed(seed)
        self._target = start.trained(Target(), folder, "target")
        self.module = _begun(folder, self._target)
        self._data = make(folder, seed + 1, scale)

    def stream(self, rank: int, world: int) -> Stream:
        """The worker's batches."""
        return Stream(self._data.pool, rank, world)

    def _read(self, batch: Batch) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]], Tensor]:
        """The target's hidden states, stored keys and values, and distributions of `batch.rows`."""
        with torch.no_grad():
            hidden, shared = self._target(batch.ids, self._data.soft(batch))
            logits = self._target.logits(hidden.view(-1, hidden.shape[-1])[batch.rows]).float()
            return hidden, shared, torch.softmax(torch.tanh(logits / 30.0) * 30.0, -1)

    def _chain(
        self, batch: Batch, hidden: Tensor, shared: dict[str, tuple[Tensor, Tensor]]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Per step: states before the head [N, H], and the row of the wanted distribution of each."""
        rows = batch.rows
        place = torch.full((batch.ids.numel() + STEPS + 2,), -1)
        place[rows] = torch.arange(len(rows))
        for step in range(STEPS):
            ahead = F.pad(batch.ids[:, 1 + step :], (0, min(1 + step, batch.ids.shape[1])))
            states, hidden = self.module(self._target.embed(ahead), hidden, shared)
            wanted = place[rows + 1 + step]
            known = wanted >= 0
            yield states.view(-1, states.shape[-1])[rows[known]], wanted[known]

    def loss(self, batch: Batch) -> tuple[Tensor, int]:
        """Summed cross-entropy against the target's distributions, for tokens and for centroids."""
        hidden, shared, wanted = self._read(batch)
        head = self.module.masked_embedding
        grouped = wanted[:, head.token_ordering].view(len(wanted), CENTROIDS, -1).sum(-1)
        total, rows = torch.zeros(()), 0
        for states, at in self._chain(batch, hidden, shared):
            logits = F.linear(states, self.module.model.embed_tokens.weight.to(states.dtype))
            scores = F.linear(states, head.centroids.weight.to(states.dtype))
            total = total + kernels.soft_nll(logits, wanted[at]).sum()
            total = total + 0.3 * kernels.soft_nll(scores, grouped[at]).sum()
            rows += len(at)
        return total, rows

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Share of positions where the drafts up to the n-th are all the target's choice, greedy."""
        agreed = torch.zeros(STEPS)
        count = torch.zeros(STEPS)
        for batch in self._data.held_out():
            hidden, shared, wanted = self._read(batch)
            choice = wanted.argmax(-1)
            streak = torch.ones(len(choice), dtype=torch.bool)
            for step, (states, at) in enumerate(self._chain(batch, hidden, shared)):
                anchors = _anchors(batch, step)
                hit = torch.zeros(len(choice), dtype=torch.bool)
                hit[anchors] = self.propose(states) == choice[at]
                streak = streak & hit
                agreed[step] += streak.sum()
                count[step] += len(anchors)
        return {f"accepted_{i + 1}": float(agreed[i] / count[i]) for i in range(STEPS)}

    def propose(self, states: Tensor) -> Tensor:
        """The draft tokens of states [N, H] through the centroid head."""
        head = self.module.masked_embedding
        scores = F.linear(states, head.centroids.weight.to(states.dtype)).float()
        best = scores.topk(CENTROID_TOP, -1).indices
        allowed = torch.zeros(scores.shape, dtype=torch.bool).scatter_(1, best, True)
        by_token = torch.empty_like(head.token_ordering)
        by_token[head.token_ordering] = torch.arange(len(by_token)) // (len(by_token) // CENTROIDS)
        logits = F.linear(states, self.module.model.embed_tokens.weight.to(states.dtype)).float()
        return logits.masked_fill(~allowed[:, by_token], float("-inf")).argmax(-1)


def _anchors(batch: Batch, step: int) -> Tensor:
    """Indices into `batch.rows` of the positions that have a wanted distribution at this step."""
    rows = batch.rows
    present = torch.zeros(batch.ids.numel() + STEPS + 2, dtype=torch.bool)
    present[rows] = True
    return present[rows + 1 + step].nonzero()[:, 0]
