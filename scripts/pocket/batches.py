"""Batches of conversations: one row each, from <bos> at position 0, sorted by length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor

from scripts.pocket.conversation import Conversation, Generator
from scripts.pocket.layout import PAD, THOUGHT, segments

POOL = 1024
CUT_SHARE = 0.5
CUT_AFTER, CUT_THOUGHT = 10, 24
DRILL_AFTER, DRILL_THOUGHT = 4, 12
LONGEST = 1400


class Row(NamedTuple):
    """One conversation: its tokens, which of them the model writes, and the subject of each answer it writes."""

    ids: list[int]
    learned: list[bool]
    subjects: list[int]
    drill: bool

    def starts(self) -> list[int]:
        """Where the answers begin."""
        return [i for i in range(1, len(self.ids)) if self.learned[i] and not self.learned[i - 1]]


@dataclass(frozen=True, slots=True)
class Batch:
    """ids [B, L], padded on the right; learned [B, L]: whether the token is one the model writes.

    asked [N]: flat indices of the positions where a question has been read and an answer begins; subjects [N]: of what.
    """

    ids: Tensor
    learned: Tensor
    asked: Tensor
    subjects: Tensor

    @property
    def rows(self) -> Tensor:
        """Flat indices of the positions that predict a learned token."""
        ahead = torch.zeros_like(self.learned)
        ahead[:, :-1] = self.learned[:, 1:]
        return ahead.view(-1).nonzero()[:, 0]

    @property
    def labels(self) -> Tensor:
        """The token after each of `rows`."""
        return self.ids.view(-1)[self.rows + 1]


def encode(tokenizer: Tokenizer, conversations: list[Conversation]) -> list[Row]:
    """The rows of some conversations, encoded piece by piece."""
    pieces = [list(segments(c)) for c in conversations]
    flat = tokenizer.encode_batch_fast([text for piece in pieces for text, _ in piece], add_special_tokens=False)
    at = 0
    rows = []
    for conversation, piece in zip(conversations, pieces, strict=True):
        subjects = [turn.subject for turn in conversation.turns][-1 if conversation.thinking else 0 :]
        row = Row([], [], subjects, conversation.drill)
        for _, flag in piece:
            new = flat[at].ids
            row.ids.extend(new)
            row.learned.extend([flag] * len(new))
            at += 1
        rows.append(row)
    return rows


def cut(rows: list[Row], rng: Random) -> list[Row]:
    """Drills, and half of the other rows, end soon after their last answer began.

    By then it is decided which answer it is; that choice is what takes longest to learn, so the time is better spent on
    more questions than on the rest of answers that are known by heart.
    """
    shorter = []
    for row in rows:
        end = len(row.ids)
        if row.drill or rng.random() < CUT_SHARE:
            start = row.starts()[-1]
            after = (DRILL_AFTER, DRILL_THOUGHT) if row.drill else (CUT_AFTER, CUT_THOUGHT)
            end = start + after[row.ids[start] == THOUGHT]
        shorter.append(row._replace(ids=row.ids[:end], learned=row.learned[:end]))
    return shorter


def pack(rows: list[Row], budget: int) -> list[Batch]:
    """Batches of at most `budget` positions, padding included, of rows of like length."""
    rows = sorted((row for row in rows if len(row.ids) <= LONGEST), key=lambda row: len(row.ids))
    groups: list[list[Row]] = [[]]
    for row in rows:
        if groups[-1] and _width(row) * (len(groups[-1]) + 1) > budget:
            groups.append([])
        groups[-1].append(row)
    return [_batch(group) for group in groups if group]


def _width(row: Row) -> int:
    return -(-len(row.ids) // 8) * 8


def _batch(group: list[Row]) -> Batch:
    width = _width(group[-1])
    ids = torch.full((len(group), width), PAD)
    learned = torch.zeros(ids.shape, dtype=torch.bool)
    for i, row in enumerate(group):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
        learned[i, : len(row.ids)] = torch.tensor(row.learned)
    asked = [i * width + start - 1 for i, row in enumerate(group) for start in row.starts()]
    return Batch(ids, learned, torch.tensor(asked), torch.tensor([s for row in group for s in row.subjects]))


class Stream:
    """The training batches of one worker; `at` = (pool, batch in it) is all its state."""

    def __init__(
        self, generator: Generator, tokenizer: Tokenizer, budget: int, rank: int, world: int, *, cut: bool = False
    ) -> None:
        self._cut = cut
        self._generator, self._tokenizer, self._budget = generator, tokenizer, budget
        self._rank, self._world = rank, world

    def batches(self, at: tuple[int, int]) -> Iterator[tuple[Batch, tuple[int, int]]]:
        """(batch, where to go on after it), for ever."""
        pool, position = at
        while True:
            made = self._pool(pool)
            for i in range(position, len(made) // self._world):
                yield made[i * self._world + self._rank], (pool, i + 1)
            pool, position = pool + 1, 0

    def _pool(self, pool: int) -> list[Batch]:
        conversations = [self._generator.draw(pool * POOL + i) for i in range(POOL)]
        rng = Random(f"{self._generator.seed}/{pool}")
        rows = encode(self._tokenizer, conversations)
        made = pack(cut(rows, rng) if self._cut else rows, self._budget)
        rng.shuffle(made)
        return made


def held_out(generator: Generator, tokenizer: Tokenizer, count: int, budget: int) -> list[Batch]:
    """Batches of conversations whose wordings are not in the training stream."""
    return pack(encode(tokenizer, [generator.draw(i, held_out=True) for i in range(count)]), budget)
