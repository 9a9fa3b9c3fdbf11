"""What the towers get of a picture or sound, through the product's own preparation."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray

from mlxmtp.media.image import open_picture, target_size
from mlxmtp.media.sound import mel_features
from scripts.pocket.sizes import IMAGE_TOKENS
from scripts.pocket.tasks.pictures import encoded, picture
from scripts.pocket.tasks.sounds import Sounds
from scripts.pocket.tasks.task import Medium

SIDE = 48  # pixels of a soft token
_STORED = 0.25  # share of pictures that become a file and are read again


def frames_of(samples: int) -> int:
    """Return how many frames of features that many samples have."""
    return (samples - 161) // 160 + 1


class Source:
    """Pictures and sounds of a training folder by their numbers."""

    def __init__(self, folder: Path) -> None:
        self.sounds = Sounds(folder / "sounds")

    def size(self, medium: Medium) -> tuple[int, int]:
        """Return height and width of a picture's pixels."""
        seen = picture(medium)
        return target_size(seen.height, seen.width, IMAGE_TOKENS, SIDE)

    def pixels(self, medium: Medium) -> NDArray[np.uint8]:
        """Return the pixels [H, W, 3] of a picture."""
        rng = Random(f"stored/{medium.index}")
        image = picture(medium).draw()
        made = open_picture(encoded(image, rng) if rng.random() < _STORED else image)
        return made.pixels(IMAGE_TOKENS, SIDE)

    def mel(self, medium: Medium) -> NDArray[np.float32]:
        """Return the features [frames, 128] of a sound."""
        return mel_features(self.sounds.samples(medium))
