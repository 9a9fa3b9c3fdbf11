"""Soft tokens of the trained towers, as the target reads them while it is trained."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from mlxmtp.media.sound import mel_features
from scripts.pocket import start, tokenizer
from scripts.pocket.batches import Conversations
from scripts.pocket.senses.hearing import Hearing, rows_of
from scripts.pocket.senses.media import SIDE, frames_of, pixels_of, size_of
from scripts.pocket.senses.vision import Vision, patches
from scripts.pocket.sizes import Scale
from scripts.pocket.tasks.pictures import picture
from scripts.pocket.tasks.sounds import Sounds
from scripts.pocket.tasks.task import Medium


class TrainedSenses:
    """The towers of a training folder, with their numbers as they will be published, in bfloat16."""

    def __init__(self, folder: Path) -> None:
        self._sounds = Sounds(folder / "sounds")
        self._vision = start.trained(Vision(), folder, "vision")
        self._hearing = start.trained(Hearing(), folder, "hearing")
        for parameter in (*self._vision.parameters(), *self._hearing.parameters()):
            parameter.data = parameter.data.bfloat16().float()

    @property
    def clips(self) -> int:
        """How many sounds there are to train with."""
        return self._sounds.count

    def count(self, medium: Medium) -> int:
        """Return how many soft tokens a picture or sound has."""
        if medium.kind == "image":
            rows, columns = size_of(picture(medium))
            return rows * columns // SIDE**2
        return rows_of(frames_of(len(self._sounds.samples(medium))))

    @torch.no_grad()
    def soft(self, medium: Medium) -> Tensor:
        """Return the soft tokens [S, H] of a picture or sound."""
        if medium.kind == "image":
            pixels = pixels_of(picture(medium))
            rows, columns = pixels.shape[0] // SIDE, pixels.shape[1] // SIDE
            return self._vision(patches(pixels)[None], 3 * rows, 3 * columns)[0]
        mel = torch.from_numpy(mel_features(self._sounds.samples(medium)))
        return self._hearing(mel[None], torch.tensor([len(mel)]))[0]


def conversations(folder: Path, seed: int, scale: Scale) -> Conversations:
    """Return the conversations and tasks that a training folder is for."""
    senses = TrainedSenses(folder)
    generator = start.generator(folder, seed, senses.clips)
    return Conversations(generator, tokenizer.load(folder / "tokenizer.json"), senses, scale)
