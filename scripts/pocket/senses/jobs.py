"""Training the towers alone, each with a classifier that is thrown away.

A picture says what stands where: the soft token at a thing's centre is to tell thing and colour, all others that
there is nothing. Where a centre is so close to an edge that two soft tokens, or four, could tell, the one that tells it
best is to: else a thing would be told twice or not at all. A sound is to tell its words in order (CTC). So the target
finds soft tokens that it only has to read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlxmtp.media.sound import mel_features
from scripts.pocket import start
from scripts.pocket.batches import Stream
from scripts.pocket.senses.hearing import Hearing, rows_of
from scripts.pocket.senses.media import SIDE, frames_of, pixels_of, size_of
from scripts.pocket.senses.vision import Vision, patches
from scripts.pocket.sizes import MELS, TARGET, Scale
from scripts.pocket.tasks.pictures import COLOURS, THINGS, Picture, crowded, picture
from scripts.pocket.tasks.sounds import WORDS, Sounds
from scripts.pocket.tasks.task import Medium

_NOTHING = 0.5
"""Weight of places where nothing is: they are fifty times as many."""
_EDGE = 0.12
"""As near to the edge of a soft token, in parts of its side, another one may tell a thing."""
_APART = 10**9
"""Between the numbers of two seeds' pictures: a tower that is trained on with another seed sees other ones."""
_COLOURS = tuple(COLOURS)


@dataclass(frozen=True, slots=True)
class Pictures:
    """Pictures of one grid of soft tokens: they are drawn by the worker that reads them."""

    seen: tuple[Picture, ...]
    grid: tuple[int, int]

    @property
    def size(self) -> int:
        """Soft tokens."""
        return len(self.seen) * self.grid[0] * self.grid[1]


class Seen(NamedTuple):
    """Patches [B, P, 768] of pictures, and what is in them: what [B, T], 0 for nothing; colour [B, T]; the soft tokens
    that may tell it, places [B, T, 4], some of them twice."""

    pieces: Tensor
    what: Tensor
    colour: Tensor
    places: Tensor


@dataclass(frozen=True, slots=True)
class Clips:
    """Sounds of about one length, by their numbers: the worker that hears them makes their features."""

    media: tuple[Medium, ...]
    size: int
    """Soft tokens, without what fills up the shorter ones."""


class Heard(NamedTuple):
    """Sounds: mel [B, T, 128], frames [B] of each; words [B, W], filled up with 0, and how many each has."""

    mel: Tensor
    frames: Tensor
    words: Tensor
    many: Tensor


class VisionWithHeads(nn.Module):
    """The tower and, for training only, classifiers of its soft tokens. The tower's parameters come first."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = Vision()
        self.heads_what = nn.Linear(TARGET.hidden, 1 + len(THINGS))
        self.heads_colour = nn.Linear(TARGET.hidden, len(_COLOURS))

    def forward(self, pieces: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return logits of things [B, S, 1 + T] and of colours [B, S, C]."""
        soft = self.tower(pieces, 3 * grid[0], 3 * grid[1])
        return self.heads_what(soft), self.heads_colour(soft)


class VisionJob:
    """The vision tower and pictures."""

    name = "vision"

    def __init__(self, folder: Path, seed: int, scale: Scale) -> None:
        torch.manual_seed(seed)
        self._seed, self._scale = seed, scale
        self.module = VisionWithHeads()
        if start.has(folder, self.name):
            start.load(self.module.tower, folder, self.name)

    def stream(self, rank: int, world: int) -> Stream:
        """The worker's batches."""
        return Stream(self._pool, rank, world)

    def _pool(self, number: int) -> list[Pictures]:
        first = self._seed * _APART + number * self._scale.pool
        numbers = range(first, first + self._scale.pool)
        made = list(self._batches([crowded(i) if i % 2 else picture(Medium("image", i)) for i in numbers]))
        Random(f"{self._seed}/vision/{number}").shuffle(made)
        return made

    def _batches(self, pictures: list[Picture]) -> Iterator[Pictures]:
        """Yield batches of pictures with the same grid."""
        grids: dict[tuple[int, int], list[Picture]] = {}
        for seen in pictures:
            height, width = size_of(seen)
            grids.setdefault((height // SIDE, width // SIDE), []).append(seen)
        for grid, all_of in grids.items():
            yield from (Pictures(tuple(some), grid) for some in _groups(all_of, self._scale.budget))

    def _seen(self, batch: Pictures) -> Seen:
        most = max(len(seen.things) for seen in batch.seen)
        drawn = [(patches(pixels_of(seen)), *things(seen, batch.grid, most)) for seen in batch.seen]
        return Seen(*(torch.stack(column) for column in zip(*drawn, strict=True)))

    def loss(self, batch: Pictures) -> tuple[Tensor, int]:
        """Summed negative log-likelihood of things and colours; rows counts the things."""
        seen = self._seen(batch)
        logits, colours = self.module(seen.pieces, batch.grid)
        what, colour = told(seen, logits)
        there = what > 0
        nll = F.cross_entropy(logits.flatten(0, 1), what.flatten(), reduction="none")
        nll = (nll * torch.where(there.flatten(), 1.0, _NOTHING)).sum()
        return nll + F.cross_entropy(colours[there], colour[there], reduction="sum"), int(there.sum())

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return the share of unseen pictures of which everything was told, once, and at its place."""
        right = count = 0
        checked = [picture(Medium("image", i, held_out=True)) for i in range(self._scale.checked)]
        for batch in self._batches(checked):
            seen = self._seen(batch)
            logits, colours = self.module(seen.pieces, batch.grid)
            what, colour = told(seen, logits)
            same = (logits.argmax(-1) == what) & ((colours.argmax(-1) == colour) | (what == 0))
            right, count = right + int(same.all(1).sum()), count + len(same)
        return {"held_out_exact": right / count}


def things(seen: Picture, grid: tuple[int, int], most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return what is in a picture, from 1 on, of which colour, and where it may be told: [most], [most], [most, 4]."""
    what, colour = torch.zeros(most, dtype=torch.long), torch.zeros(most, dtype=torch.long)
    places = torch.zeros(most, 4, dtype=torch.long)
    for i, thing in enumerate(seen.things):
        row = thing.y * seen.width / seen.height * grid[0]
        rows, columns = _near(row, grid[0]), _near(thing.x * grid[1], grid[1])
        places[i] = torch.tensor([r * grid[1] + c for r in rows for c in columns])
        what[i], colour[i] = 1 + THINGS.index(thing.what), _COLOURS.index(thing.colour)
    return what, colour, places


def _near(at: float, count: int) -> tuple[int, int]:
    """Return the soft token at a place along one side, and the one beside it if that is near, else itself again."""
    own = min(count - 1, int(at))
    beside = min(max(int(at + _EDGE), own), count - 1) if at - own > 0.5 else max(int(at - _EDGE), 0)
    return own, beside


@torch.no_grad()
def told(seen: Seen, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return what each soft token is to tell [B, S] and of which colour: a thing where it stands out most by now."""
    stands_out = logits.log_softmax(-1)
    what, colour = torch.zeros(logits.shape[:2], dtype=torch.long), torch.zeros(logits.shape[:2], dtype=torch.long)
    pictures = torch.arange(len(logits))[:, None]
    scores = stands_out[pictures[..., None], seen.places, seen.what[..., None]]  # [B, T, 4]
    best = seen.places.gather(2, scores.argmax(-1, keepdim=True))[..., 0]
    there = seen.what > 0
    at = pictures.expand_as(best)[there], best[there]
    what[at], colour[at] = seen.what[there], seen.colour[there]
    return what, colour


class HearingWithHead(nn.Module):
    """The tower and, for training only, a classifier of its soft tokens. The tower's parameters come first."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = Hearing()
        self.heads_words = nn.Linear(TARGET.hidden, 1 + len(WORDS))

    def forward(self, heard: Heard) -> Tensor:
        """Return log-probabilities [B, S, 1 + W]; the first is nothing."""
        return F.log_softmax(self.heads_words(self.tower(heard.mel, heard.frames)), -1)


class HearingJob:
    """The audio tower and sounds."""

    name = "hearing"

    def __init__(self, folder: Path, seed: int, scale: Scale) -> None:
        torch.manual_seed(seed)
        self._seed, self._scale, self._sounds = seed, scale, Sounds(folder / "sounds")
        self.module = HearingWithHead()
        if start.has(folder, self.name):
            start.load(self.module.tower, folder, self.name)

    def stream(self, rank: int, world: int) -> Stream:
        """The worker's batches."""
        return Stream(self._pool, rank, world)

    def _pool(self, number: int) -> list[Clips]:
        made = list(self._batches([Medium("audio", number * self._scale.pool + i) for i in range(self._scale.pool)]))
        Random(f"{self._seed}/hearing/{number}").shuffle(made)
        return made

    def _batches(self, media: list[Medium]) -> Iterator[Clips]:
        """Yield batches of sounds of about the same length."""
        for some in _groups(sorted(media, key=self._sounds.length), self._scale.budget):
            yield Clips(tuple(some), sum(rows_of(frames_of(self._sounds.length(medium))) for medium in some))

    def _heard(self, batch: Clips) -> Heard:
        mels = [torch.from_numpy(mel_features(self._sounds.samples(medium))) for medium in batch.media]
        said = [[1 + WORDS.index(word) for word in self._sounds.text(medium).words] for medium in batch.media]
        mel = torch.zeros(len(mels), -(-max(map(len, mels)) // 16) * 16, MELS)
        words = torch.zeros(len(said), max(map(len, said)), dtype=torch.long)
        for i, (features, numbers) in enumerate(zip(mels, said, strict=True)):
            mel[i, : len(features)] = features
            words[i, : len(numbers)] = torch.tensor(numbers)
        return Heard(mel, torch.tensor([*map(len, mels)]), words, torch.tensor([*map(len, said)]))

    def loss(self, batch: Clips) -> tuple[Tensor, int]:
        """Summed negative log-likelihood of the words; rows counts them."""
        heard = self._heard(batch)
        logs = self.module(heard).transpose(0, 1)
        lengths = torch.tensor([rows_of(int(one)) for one in heard.frames])
        nll = F.ctc_loss(logs, heard.words, lengths, heard.many, reduction="sum", zero_infinity=True)
        return nll, int(heard.many.sum())

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return the share of sounds by voices never heard of which every word was told."""
        right = count = 0
        for batch in self._batches([Medium("audio", i, held_out=True) for i in range(self._scale.checked)]):
            heard = self._heard(batch)
            told = self.module(heard).argmax(-1)
            for row, frames, words, many in zip(told, heard.frames, heard.words, heard.many, strict=True):
                kept = torch.unique_consecutive(row[: rows_of(int(frames))])
                right += kept[kept > 0].tolist() == words[:many].tolist()
                count += 1
        return {"held_out_exact": right / count}


def _groups(items: list[Any], size: int) -> Iterator[list[Any]]:
    return (items[at : at + size] for at in range(0, len(items), size))
