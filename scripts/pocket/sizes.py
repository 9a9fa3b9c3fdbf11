"""The shapes of target and drafter: Gemma 4 E2B's, made small."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sizes:
    """Shape of one network; the names are those of the published config.json."""

    hidden: int
    intermediate: int
    layer_types: tuple[str, ...]
    heads: int = 4
    head_dim: int = 64
    global_head_dim: int = 128
    window: int = 128
    vocab: int = 4096
    max_positions: int = 32768
    ple: int = 0
    kv_shared: int = 0
    softcap: float | None = None

    @property
    def own_kv(self) -> int:
        """Number of layers that compute keys and values."""
        return len(self.layer_types) - self.kv_shared

    def dim(self, layer: int) -> int:
        """Head size of a layer."""
        return self.head_dim if self.sliding(layer) else self.global_head_dim

    def sliding(self, layer: int) -> bool:
        """Whether a layer attends to the window only."""
        return self.layer_types[layer] == "sliding_attention"

    def mlp(self, layer: int) -> int:
        """MLP width: double in layers that share keys and values, but never in a drafter."""
        return self.intermediate * (2 if 0 < self.own_kv <= layer else 1)


_SLIDING, _FULL = "sliding_attention", "full_attention"
TARGET = Sizes(
    hidden=256,
    intermediate=640,
    layer_types=((_SLIDING,) * 4 + (_FULL,)) * 3,
    ple=32,
    kv_shared=5,
    softcap=30.0,
)
DRAFTER = Sizes(hidden=128, intermediate=512, layer_types=(_SLIDING,) * 3 + (_FULL,), kv_shared=4)
CENTROIDS = 64
CENTROID_TOP = 8


@dataclass(frozen=True, slots=True)
class VisionSizes:
    """Shape of the vision tower; patches have 16 x 16 pixels, and 3 x 3 of them make a soft token."""

    hidden: int = 64
    inner: int = 192
    layers: int = 3
    heads: int = 2
    positions: int = 896
    theta: float = 100.0


@dataclass(frozen=True, slots=True)
class HearingSizes:
    """Shape of the audio tower; a row looks at `past` rows, itself included."""

    hidden: int = 96
    layers: int = 3
    heads: int = 4
    channels: tuple[int, int] = (32, 16)
    kernel: int = 5
    past: int = 12
    out: int = 128


VISION = VisionSizes()
HEARING = HearingSizes()
MELS = 128
IMAGE_TOKENS = 70
"""At most so many soft tokens for a picture, the least of Gemma's budgets."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How much there is at a time: `budget` positions, pictures or sounds of a batch, and batches of a `pool` of items.

    `checked`: how many held-out items are tried after each checkpoint.
    """

    budget: int
    pool: int
    checked: int
