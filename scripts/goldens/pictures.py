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


def sound(count: int, seed: int) -> NDArray[np.float32]:
    """Return samples [count] at 16 kHz: a rising tone of triangles, and noise that comes and goes."""
    n = np.arange(count, dtype=np.int64)
    phase = n * (300 + 40 * seed) + n * n * seed // 16
    tone = np.abs(phase % 32768 - 16384) - 8192
    noise = ((n * 7919 + seed * 15485863) * 2654435761 >> 7) % 8192 - 4096
    samples: NDArray[np.float32] = ((tone + noise * (n // 1600 % 2)) / 32768).astype(np.float32)
    return samples


SOUNDS = [sound(13_333, 1), sound(5_000, 2)]
PICTURES = [picture(120, 200, 1), picture(300, 90, 2)]
SIZES = [(1, 1), (3, 2), (1, 700), (640, 480), (300, 90), (1170, 2532), (97, 1013), (768, 768), (50, 30)]
"""Width and height of pictures whose pixels are recorded at every budget."""
