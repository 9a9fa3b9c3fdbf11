"""Pictures and sounds that goldens were recorded from, by formula: gradients, edges and a little noise of integers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def picture(width: int, height: int, seed: int) -> NDArray[np.uint8]:
    """Return pixels [height, width, 3]."""
    y, x = np.mgrid[:height, :width].astype(np.int64)
    noise = (x * 7919 + y * 104729 + seed * 15485863) * 2654435761 >> 7
    red = 255 * x // width + (noise % 16)
    green = 255 * ((x // 20 + y // 15 + seed) % 2) // 2 + (noise // 16 % 32)
    blue = 255 * y // height * ((x + seed) % 3 > 0) + (noise // 512 % 8)
    pixels: NDArray[np.uint8] = np.clip(np.stack([red, green, blue], -1), 0, 255).astype(np.uint8)
    return pixels


PICTURES = [picture(120, 200, 1), picture(300, 90, 2)]
SIZES = [(1, 1), (3, 2), (1, 700), (640, 480), (300, 90), (1170, 2532), (97, 1013), (768, 768), (50, 30)]
"""Width and height of pictures whose pixels are recorded at every budget."""
