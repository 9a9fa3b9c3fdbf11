"""Reads one family of `tests/goldens`: folders of the tiny pair, and what the reference computed from it.

Needs mlx only (`safetensors` files are read by ``mx.load``), so tests run without torch or transformers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import mlx.core as mx

FOLDER = Path(__file__).parent / "goldens"
FAMILIES = ("e2b", "e4b", "12b", "26b", "31b")
PROMPTS = ("short", "long")

Variant = Literal["draft", "draft_next", "draft_native"]


@dataclass(frozen=True, slots=True)
class Chain:
    """Four chained greedy draft steps: tokens, logits [4, V] and projected hidden states [4, H]."""

    tokens: list[int]
    logits: mx.array
    hidden: mx.array


@dataclass(frozen=True, slots=True)
class PlayedRound:
    """One round along the greedy text: what the drafter proposed and how many of it the target would have said."""

    draft: list[int]
    accepted: int


@dataclass(frozen=True, slots=True)
class Record:
    """What the reference computed for one prompt of L tokens. Arrays are float32.

    ``logits`` [n, V] and ``hidden`` [n, H] belong to the last n positions of the prompt. ``sliding`` and ``full`` are
    keys and values [1, kv heads, rows, head dim] of the target's store layers after the prompt: of the sliding one the
    last min(L, window) rows, of the full one all L.
    """

    prompt: list[int]
    logits: mx.array
    hidden: mx.array
    greedy: list[int]
    assisted: list[int]
    sliding: tuple[mx.array, mx.array]
    full: tuple[mx.array, mx.array]
    chains: dict[Variant, Chain]
    rounds: dict[int, list[PlayedRound]]

    @property
    def bonus(self) -> int:
        """The token that the target adds to the prompt; the first draft step starts from it."""
        return self.greedy[0]


@dataclass(frozen=True, slots=True)
class Golden:
    """One family: checkpoint folders in the published layout, and a record per prompt (`PROMPTS`)."""

    family: str
    target: Path
    drafter: Path
    records: dict[str, Record]


def load_golden(family: str) -> Golden:
    """Read one of `FAMILIES`. The weights in the checkpoint folders are left to the loader under test."""
    folder = FOLDER / family
    arrays = mx.load(str(folder / "golden.safetensors"))
    assert isinstance(arrays, dict)
    rounds = json.loads((folder / "golden.json").read_text())["rounds"]
    records = {name: _record(name, arrays, rounds[name]) for name in PROMPTS}
    return Golden(family, folder / "target", folder / "drafter", records)


def relative_error(got: mx.array, wanted: mx.array) -> float:
    """Largest difference of two arrays of one shape, relative to the largest magnitude wanted."""
    assert got.shape == wanted.shape, f"{got.shape} != {wanted.shape}"
    return float(mx.abs(got.astype(mx.float32) - wanted).max() / mx.abs(wanted).max())


def _record(name: str, arrays: dict[str, mx.array], rounds: dict[str, list[dict]]) -> Record:
    variants: tuple[Variant, ...] = ("draft", "draft_next", "draft_native")
    return Record(
        prompt=_ids(arrays[f"{name}.prompt"]),
        logits=arrays[f"{name}.logits"],
        hidden=arrays[f"{name}.hidden"],
        greedy=_ids(arrays[f"{name}.greedy"]),
        assisted=_ids(arrays[f"{name}.assisted"]),
        sliding=(arrays[f"{name}.sliding_keys"], arrays[f"{name}.sliding_values"]),
        full=(arrays[f"{name}.full_keys"], arrays[f"{name}.full_values"]),
        chains={
            variant: Chain(
                tokens=_ids(arrays[f"{name}.{variant}.tokens"]),
                logits=arrays[f"{name}.{variant}.logits"],
                hidden=arrays[f"{name}.{variant}.hidden"],
            )
            for variant in variants
        },
        rounds={int(steps): [PlayedRound(**played) for played in all_] for steps, all_ in rounds.items()},
    )


def _ids(array: mx.array) -> list[int]:
    return cast("list[int]", array.tolist())
