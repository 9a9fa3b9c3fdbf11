"""Batches of conversations: one row each, from <bos> at position 0, sorted by length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import torch
from tokenizers import Tokenizer
from torch import Tensor

from pocket.conversation import Conversation, Generator
from pocket.layout import PAD, THOUGHT, segments

POOL = 1024
CUT_SHARE, CUT_AFTER, CUT_THOUGHT = 0.65, 14, 30
LONGEST = 1400


@dataclass(frozen=True, slots=True)
class Batch:
    """ids [B, L], padded on the right; learned [B, L]: whether the token is one the model writes."""

    ids: Tensor
    learned: Tensor

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


def encode(tokenizer: Tokenizer, conversations: list[Conversation]) -> list[tuple[list[int], list[bool]]]:
    """(ids, learned) of each conversation, encoded piece by piece."""
    pieces = [list(segments(c)) for c in conversations]
    flat = tokenizer.encode_batch_fast([text for piece in pieces for text, _ in piece], add_special_tokens=False)
    at = 0
    rows = []
    for piece in pieces:
        ids: list[int] = []
        learned: list[bool] = []
        for _, flag in piece:
            new = flat[at].ids
            ids += new
            learned += [flag] * len(new)
            at += 1
        rows.append((ids, learned))
    return rows


def cut(rows: list[tuple[list[int], list[bool]]], rng: Random) -> list[tuple[list[int], list[bool]]]:
    """Most rows end soon after their last answer began.

    By then it is decided which answer it is; that choice is what takes longest to learn, so the time is better spent on
    more questions than on the rest of answers that are known by heart.
    """
    shorter = []
    for ids, learned in rows:
        end = len(ids)
        if rng.random() < CUT_SHARE:
            start = end - 1
            while start and learned[start - 1]:
                start -= 1
            end = start + (CUT_THOUGHT if ids[start] == THOUGHT else CUT_AFTER)
        shorter.append((ids[:end], learned[:end]))
    return shorter


def pack(rows: list[tuple[list[int], list[bool]]], budget: int) -> list[Batch]:
    """Batches of at most `budget` positions, padding included, of rows of like length."""
    rows = sorted((row for row in rows if len(row[0]) <= LONGEST), key=lambda row: len(row[0]))
    groups: list[list[tuple[list[int], list[bool]]]] = [[]]
    for row in rows:
        if groups[-1] and _width(row) * (len(groups[-1]) + 1) > budget:
            groups.append([])
        groups[-1].append(row)
    return [_batch(group) for group in groups if group]


def _width(row: tuple[list[int], list[bool]]) -> int:
    return -(-len(row[0]) // 8) * 8


def _batch(group: list[tuple[list[int], list[bool]]]) -> Batch:
    ids = torch.full((len(group), _width(group[-1])), PAD)
    learned = torch.zeros(ids.shape, dtype=torch.bool)
    for i, (row, flags) in enumerate(group):
        ids[i, : len(row)] = torch.tensor(row)
        learned[i, : len(row)] = torch.tensor(flags)
    return Batch(ids, learned)


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
