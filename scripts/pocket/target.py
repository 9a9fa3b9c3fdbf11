"""Training the target: next-token prediction of what the model writes, and of which subject it will be about."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.pocket import kernels, start
from scripts.pocket.batches import Batch, Conversations, Stream
from scripts.pocket.network import Target
from scripts.pocket.senses.soft import conversations
from scripts.pocket.sizes import TARGET, Scale

SUBJECT_WEIGHT = 1.0


class TargetWithSubjects(nn.Module):
    """The target and, for training only, a classifier that reads where a question ends.

    Many answers begin alike, so the next tokens alone teach late, and at many places, what a question was about. The
    target's parameters come first: a checkpoint's beginning is the target.
    """

    def __init__(self, subjects: int) -> None:
        super().__init__()
        self.target = Target()
        self.subjects = nn.Linear(TARGET.hidden, subjects)
        nn.init.zeros_(self.subjects.weight)


class TargetJob:
    """The target and its data; built anew in every worker."""

    name = "target"

    def __init__(
        self, folder: Path, seed: int, scale: Scale, make: Callable[[Path, int, Scale], Conversations] = conversations
    ) -> None:
        torch.manual_seed(seed)
        self._data = make(folder, seed, scale)
        self.module = TargetWithSubjects(len(self._data.generator.subjects))
        if start.begun(folder):
            start.load(self.module.target, folder, "target")

    def stream(self, rank: int, world: int) -> Stream:
        """The worker's batches."""
        return Stream(partial(self._data.pool, shorter=True), rank, world)

    def loss(self, batch: Batch) -> tuple[Tensor, int]:
        """Summed negative log-likelihood of the learned tokens and of the subjects; rows counts the tokens."""
        hidden = self._hidden(batch)
        rows = batch.rows
        nll = kernels.capped_nll(self.module.target.logits(hidden[rows]), batch.labels).sum()
        guess = self.module.subjects(hidden[batch.asked].float())
        return nll + SUBJECT_WEIGHT * F.cross_entropy(guess, batch.subjects, reduction="sum"), len(rows)

    def _hidden(self, batch: Batch) -> Tensor:
        """Hidden states [B * L, H]."""
        hidden, _ = self.module.target(batch.ids, self._data.soft(batch))
        return hidden.view(-1, hidden.shape[-1])

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Loss, share of right tokens, of conversations and tasks without one wrong token, of subjects
        understood."""
        loss = rows = right = exact = count = understood = asked = done = tasks = 0.0
        for batch in self._data.held_out():
            hidden = self._hidden(batch)
            at, labels = batch.rows, batch.labels
            logits = self.module.target.logits(hidden[at]).float()
            loss += float(kernels.capped_nll(logits, labels).sum())
            hit = logits.argmax(-1) == labels
            owner = at // batch.ids.shape[1]
            wrong = torch.zeros(len(batch.ids)).index_add_(0, owner, (~hit).float())
            rows, right = rows + len(at), right + float(hit.sum())
            exact, count = exact + float((wrong[~batch.tasks] == 0).sum()), count + int((~batch.tasks).sum())
            done, tasks = done + float((wrong[batch.tasks] == 0).sum()), tasks + int(batch.tasks.sum())
            guess = self.module.subjects(hidden[batch.asked].float()).argmax(-1)
            understood, asked = understood + float((guess == batch.subjects).sum()), asked + len(guess)
        return {
            "held_out_loss": loss / rows,
            "held_out_tokens": right / rows,
            "held_out_exact": exact / max(count, 1),
            "held_out_tasks": done / max(tasks, 1),
            "held_out_subjects": understood / max(asked, 1),
        }
