"""Batches of conversations: one row each, from <bos> at position 0, sorted by length."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, NamedTuple, Protocol

import torch
from tokenizers import Tokenizer
from torch import Tensor

from scripts.pocket.conversation import Conversation
from scripts.pocket.layout import MARKS, PAD, THOUGHT, Segment, segments
from scripts.pocket.network import Soft
from scripts.pocket.sizes import Scale
from scripts.pocket.tasks.task import Medium, Task

CUT_SHARE = 0.5
CUT_AFTER, CUT_THOUGHT = 10, 24
DRILL_AFTER, DRILL_THOUGHT = 4, 12
LONGEST = 1400


class Draws(Protocol):
    """What is learned, by number."""

    @property
    def seed(self) -> int:
        """Another one draws others."""

    @property
    def subjects(self) -> Collection[str]:
        """What answers are about."""

    def draw(self, index: int, *, held_out: bool = False) -> Conversation | Task:
        """Return a conversation; those that are `held_out` are not trained on."""


class Senses(Protocol):
    """What makes soft tokens."""

    def count(self, medium: Medium) -> int:
        """Return how many soft tokens a picture or sound has."""

    def soft(self, medium: Medium) -> Tensor:
        """Return the soft tokens [S, H] of a picture or sound."""


class Row(NamedTuple):
    """One conversation: its tokens, which of them the model writes, and the subject of each answer it writes.

    A task has no subjects. `media`: where the soft tokens of pictures and sounds begin.
    """

    ids: list[int]
    learned: list[bool]
    subjects: list[int]
    media: list[tuple[int, Medium]]
    drill: bool = False
    task: bool = False

    def starts(self) -> list[int]:
        """Where the answers begin."""
        return [i for i in range(1, len(self.ids)) if self.learned[i] and not self.learned[i - 1]]


@dataclass(frozen=True, slots=True)
class Batch:
    """ids [B, L], padded on the right; learned [B, L]: whether the token is one the model writes.

    asked [N]: flat indices of the positions where a question has been read and an answer begins; subjects [N]: of what.
    tasks [B]: whether it is a task. `media`: flat indices of the first soft tokens of pictures and sounds.
    """

    ids: Tensor
    learned: Tensor
    asked: Tensor
    subjects: Tensor
    tasks: Tensor
    media: tuple[tuple[int, Medium], ...] = ()

    @property
    def size(self) -> int:
        """Positions, padding included."""
        return self.ids.numel()

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


def encode(tokenizer: Tokenizer, conversations: Sequence[Conversation | Task], senses: Senses) -> list[Row]:
    """The rows of some conversations, encoded piece by piece."""
    pieces = [list(segments(c)) for c in conversations]
    texts = [part.text for piece in pieces for part in piece]
    encoded = iter(tokenizer.encode_batch_fast(texts, add_special_tokens=False))
    rows = []
    for conversation, piece in zip(conversations, pieces, strict=True):
        row = _empty(conversation)
        for part in piece:
            _extend(row, part, next(encoded).ids, senses)
        rows.append(row)
    return rows


def _empty(conversation: Conversation | Task) -> Row:
    if isinstance(conversation, Task):
        return Row([], [], [], [], task=True)
    subjects = [turn.subject for turn in conversation.turns][-1 if conversation.thinking else 0 :]
    return Row([], [], subjects, [], drill=conversation.drill)


def _extend(row: Row, part: Segment, ids: list[int], senses: Senses) -> None:
    if part.medium is not None:
        begin, end = MARKS[part.medium.kind]
        row.media.append((len(row.ids) + 1, part.medium))
        ids = [begin, *[PAD] * senses.count(part.medium), end]
    row.ids.extend(ids)
    row.learned.extend([part.learned] * len(ids))


def cut(rows: list[Row], rng: Random) -> list[Row]:
    """Drills, and half of the other rows, end soon after their last answer began.

    By then it is decided which answer it is; that choice is what takes longest to learn, so the time is better spent on
    more questions than on the rest of answers that are known by heart.
    """
    shorter = []
    for row in rows:
        end = len(row.ids)
        if row.drill or (not row.task and rng.random() < CUT_SHARE):
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
    asked = [i * width + start - 1 for i, row in enumerate(group) if not row.task for start in row.starts()]
    subjects = [subject for row in group for subject in row.subjects]
    media = tuple((i * width + at, medium) for i, row in enumerate(group) for at, medium in row.media)
    tasks = torch.tensor([row.task for row in group])
    return Batch(ids, learned, _whole(asked), _whole(subjects), tasks, media)


def _whole(numbers: list[int]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.long)


class Stream:
    """The training batches of one worker; `at` = (pool, batch in it) is all its state.

    `pool` makes the batches of a pool by its number, in every worker the same.
    """

    def __init__(self, pool: Callable[[int], list[Any]], rank: int, world: int) -> None:
        self._pool, self._rank, self._world = pool, rank, world

    def batches(self, at: tuple[int, int]) -> Iterator[tuple[Any, tuple[int, int]]]:
        """(batch, where to go on after it), for ever."""
        pool, position = at
        while True:
            made = self._pool(pool)
            assert len(made) >= self._world, "a pool has fewer batches than there are workers"
            for i in range(position, len(made) // self._world):
                yield made[i * self._world + self._rank], (pool, i + 1)
            pool, position = pool + 1, 0


@dataclass(frozen=True, slots=True)
class Conversations:
    """Where batches of text come from."""

    generator: Draws
    tokenizer: Tokenizer
    senses: Senses
    scale: Scale

    def pool(self, number: int, *, shorter: bool = False) -> list[Batch]:
        """Return the batches of a pool; `shorter`: cut as `cut` says."""
        rows = self._rows([self.generator.draw(number * self.scale.pool + i) for i in range(self.scale.pool)])
        rng = Random(f"{self.generator.seed}/{number}")
        made = pack(cut(rows, rng) if shorter else rows, self.scale.budget)
        rng.shuffle(made)
        return made

    def held_out(self) -> list[Batch]:
        """Return batches of conversations whose wordings, tools and media are not in the training stream."""
        drawn = [self.generator.draw(i, held_out=True) for i in range(self.scale.checked)]
        return pack(self._rows(drawn), self.scale.budget)

    def soft(self, batch: Batch) -> Soft | None:
        """Return the soft tokens of a batch: made when it is read, as a worker reads only its share of a pool."""
        if not batch.media:
            return None
        rows = [self.senses.soft(medium) for _, medium in batch.media]
        at = [start + torch.arange(len(one)) for (start, _), one in zip(batch.media, rows, strict=True)]
        return Soft(torch.cat(at), torch.cat(rows))

    def _rows(self, conversations: Sequence[Conversation | Task]) -> list[Row]:
        return encode(self.tokenizer, conversations, self.senses)
