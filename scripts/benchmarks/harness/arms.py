"""Who is compared, and on what."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

One = TypeVar("One")

WHOLE = 256
"""New tokens at most; and exactly, where a text has no natural end."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to decode. `every`: measured in every n-th repetition only (1: all); `keyed` and `blind` see
    `Job`.
    """

    key: str
    label: str
    engine: str
    draft: int | str = 0
    sampled: bool = True
    random_words: bool = True
    every: int = 1
    keyed: bool = False
    blind: bool = False


ARMS = (
    Arm("ours", "mlxmtp plain", "ours"),
    Arm("ours-mtp", "mlxmtp MTP, auto", "ours", "auto"),
    Arm("ours-3", "mlxmtp MTP, 3 drafts", "ours", 3),
    Arm("ours-blind", "mlxmtp MTP, auto, untrained drafter", "ours", "auto", sampled=False, every=2, blind=True),
    Arm("lm", "mlx-lm plain", "mlx_lm", random_words=False),
    Arm("vlm", "mlx-vlm plain", "mlx_vlm"),
    Arm("vlm-mtp", "mlx-vlm MTP, its default", "mlx_vlm", "auto"),
    Arm("vlm-best", "mlx-vlm MTP, best setting", "mlx_vlm", 3, random_words=False),
    Arm("hf", "transformers plain", "transformers", sampled=False, random_words=False, every=3),
    Arm("hf-mtp", "transformers assisted", "transformers", "auto", sampled=False, random_words=False, every=3),
)
DEFAULT_ARMS = tuple(arm.key for arm in ARMS if arm.key != "ours-3")
KINDS = ("code", "chat", "list", "random")
MIXED = ("code", "chat", "list")
PER_REPETITION = {"code": 1, "chat": 2, "list": 1, "random": 1}
"""Prompts of a kind in one repetition; the next repetition takes the next ones."""

TEXTS = {
    "code": (
        "Show me a Python example that uses mlxmtp.",
        "Write a Python script that streams an answer.",
        "Write a bash script that benchmarks several models.",
        "Write me a small chat program in Python.",
        "Show me a Python program that counts accepted draft tokens.",
    ),
    "chat": (
        "What is multi-token prediction?",
        "Does drafting change the text?",
        "What is a drafter?",
        "Why is mlxmtp fast?",
        "What does the auto setting do?",
        "What is quantization?",
        "Who was Marie Curie?",
        "What is the KV cache?",
        "How do I turn off the drafter?",
        "What is speculative decoding?",
    ),
    "list": (
        "List the flags of mlxmtp ask.",
        "List all the commands.",
        "List the flags of mlxmtp bench.",
        "List all slash commands.",
        "Show me a table of all Gemma 4 models.",
    ),
}
_WORDS = """anvil basket cedar dolphin ember falcon gravel harbor island jacket kettle lantern marble needle orchard
pepper quarry ribbon saddle timber umbrella velvet walnut yellow zipper autumn bridge candle desert engine feather
garden hammer insect jungle kitchen ladder mirror nickel oyster planet rabbit silver tunnel violin window bottle carpet
drawer elbow forest glacier hollow ivory jigsaw knuckle lemon magnet nephew onion pillow rocket spider turtle""".split()


def random_words(index: int) -> tuple[str, str]:
    """Two runs of random words: what the user says, and how the answer is made to begin."""
    numbers = random.Random(index)
    said, begun = (" ".join(numbers.choices(_WORDS, k=count)) for count in (30, 20))
    return said, begun


def rotated(these: Sequence[One], by: int) -> list[One]:
    """Each begins once, and nobody is always the one after the most expensive."""
    at = by % len(these)
    return [*these[at:], *these[:at]]
