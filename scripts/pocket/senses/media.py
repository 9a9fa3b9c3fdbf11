"""What the towers get of a picture or sound, through the product's own preparation."""

from __future__ import annotations

from random import Random

import numpy as np
from numpy.typing import NDArray

from mlxmtp.media.image import open_picture, target_size
from scripts.pocket.sizes import IMAGE_TOKENS
from scripts.pocket.tasks.pictures import Picture, encoded

SIDE = 48  # pixels of a soft token
_STORED = 0.25


def frames_of(samples: int) -> int:
    """Return how many frames of features that many samples have."""
    return (samples - 161) // 160 + 1


def size_of(seen: Picture) -> tuple[int, int]:
    """Return height and width of a picture's pixels."""
    return target_size(seen.height, seen.width, IMAGE_TOKENS, SIDE)


def pixels_of(seen: Picture) -> NDArray[np.uint8]:
    """Return the pixels [H, W, 3] of a picture; some become a file and are read again."""
    rng = Random(f"stored/{seen.grain}")
    image = seen.draw()
    made = open_picture(encoded(image, rng) if rng.random() < _STORED else image)
    return made.pixels(IMAGE_TOKENS, SIDE)
