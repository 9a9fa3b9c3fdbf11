"""The memory that a model needs, from configurations alone. `tests/hub/test_fit.py` compares it with MLX's own peak."""

import os
import sys
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mlxmtp.limits import GROWN, GROWTH, MAX_DRAFT, SLACK, SNAPSHOT_BYTES, SNAPSHOTS, STEP
from mlxmtp.models.chunks import activation_bytes, head_entries
from mlxmtp.models.config import FULL, SLIDING, ModelConfig
from mlxmtp.models.tensors import Quantization, drafter_bits, kv_quantization, own_layers, quantization_of, tensors
from mlxmtp.models.towers import audio_bytes, stored_audio, vision_bytes, vision_config

_LARGE_MAC = 36 * 2**30


class Largest(NamedTuple):
    """Soft tokens of the largest picture and of the longest piece of a sound that are read; 0 without any."""

    picture: int = 0
    sound: int = 0


NO_MEDIA = Largest()


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes of memory that a model takes at its peak."""

    target: int
    drafter: int
    cache: int  # full layers hold every position of the context, sliding ones a ring of window + 64 rows
    activations: int  # of one chunk of the prompt (`models/chunks.py`), with the keys and values it dequantizes
    snapshots: int = 0  # copies of the rings, to which the next turns of a conversation rewind
    vision: int = 0  # the tower, which is loaded with the first picture, and what it computes
    audio: int = 0  # that of sounds

    @property
    def media(self) -> int:
        return self.vision + self.audio

    @property
    def total(self) -> int:
        return self.target + self.drafter + self.cache + self.snapshots + self.activations + self.media


def need(
    target: ModelConfig,
    drafter: ModelConfig | None,
    context: int,
    *,
    cpu: bool | None = None,
    turns: bool = False,
    draft_bits: int | None = None,
    kv_bits: int | None = None,
    media: Largest = NO_MEDIA,
) -> Need:
    """Return the bytes at the peak of a conversation of `context` tokens that was read as one prompt.

    `cpu`: MLX computes on the CPU, in float32 (None: as on this machine). `turns`: it came turn by turn, so with
    snapshots and with the rows by which its buffers have grown. Raises
    LoadError for a model that cannot have these `kv_bits`.
    """
    vision = vision_config(target) if media.picture else None
    audio = stored_audio(target) if media.sound else None
    on_cpu = computes_on_cpu() if cpu is None else cpu
    width = 4 if on_cpu else 2
    context = min(context, target.max_positions)
    rows = context + min(int(GROWTH * context), GROWN) if turns else context  # it has grown from turn to turn
    return Need(
        weight_bytes(target, on_cpu),
        0 if drafter is None else weight_bytes(drafter, on_cpu, draft_bits),
        cache_bytes(target, rows, width, kv_bits),
        # With the keys and values of one layer that a chunk dequantizes: at most both are there at once.
        activation_bytes(target, context, width, 0 if vision is None else media.picture)
        + (_entries(target, FULL) * context * width if kv_bits else 0),
        snapshot_bytes(target, context, width) if turns else 0,
        0 if vision is None else vision_bytes(vision, media.picture, on_cpu),
        0 if audio is None else audio_bytes(audio, media.sound, on_cpu),
    )


def most_tokens(
    target: ModelConfig,
    drafter: ModelConfig | None,
    usable: int,
    least: int,
    *,
    draft_bits: int | None,
    kv_bits: int | None,
) -> int:
    """Return how long a conversation `usable` bytes hold, in tokens: at least `least`, at most the context."""

    def exceeds(tokens: int) -> bool:
        return need(target, drafter, tokens, turns=True, draft_bits=draft_bits, kv_bits=kv_bits).total > usable

    if least >= target.max_positions or not exceeds(target.max_positions):
        return target.max_positions
    lengths = range(least, target.max_positions, 1024)
    return lengths[max(bisect_left(lengths, True, key=exceeds) - 1, 0)]


def weight_bytes(config: ModelConfig, cpu: bool, draft_bits: int | None = None) -> int:
    """Return the bytes of a loaded network; a drafter's with `draft_bits` (None: by its size)."""
    plain = 4 if cpu else 2
    bits = drafter_bits(config, draft_bits, cpu=cpu) if config.is_drafter else None
    total = 0
    for tensor in tensors(config):
        if tensor.name.endswith(("q_norm.weight", "k_norm.weight")):
            continue  # held once for every head: the entries below
        packed = quantization_of(tensor, config.quantization)
        if packed is None and bits is not None and tensor.quantizable:
            packed = Quantization(bits, 64).fitting(tensor)
        size = config.hidden_size if tensor.name.endswith("layer_scalar") else tensor.size  # held as a vector
        wide = 4 if tensor.name.endswith("token_ordering") else plain
        total += size * wide if packed is None else packed.nbytes(tensor, plain)
    return total + sum(head_entries(config, i) * 4 for i in range(len(config.layer_types)))


def cache_bytes(config: ModelConfig, context: int, width: int, kv_bits: int | None = None) -> int:
    """Return the bytes of keys and values at `context` positions, `width` bytes a value; `kv_bits` in full layers."""
    capacity = _capacity(context)
    rows = {FULL: capacity, SLIDING: min(capacity, config.window + SLACK)}
    row = {kind: _entries(config, kind) * width for kind in rows}
    how = kv_quantization(config, kv_bits)
    if how is not None:
        entries = _entries(config, FULL)
        row[FULL] = entries * how.bits // 8 + 2 * width * entries // how.group_size
    return sum(row[kind] * rows[kind] for kind in config.layer_types[: own_layers(config)])


def snapshot_bytes(config: ModelConfig, context: int, width: int) -> int:
    """Return the bytes of the snapshots of a conversation of `context` positions (`decode/snapshots.py`)."""
    rings = config.layer_types[: own_layers(config)].count(SLIDING)
    one = rings * _entries(config, SLIDING) * min(_capacity(context), config.window + SLACK) * width
    return one * max(1, min(SNAPSHOTS, SNAPSHOT_BYTES // one)) if one else 0


def _capacity(context: int) -> int:
    in_flight = 2 * (MAX_DRAFT + 1)  # two rounds, as `decode/decoder.py` has on a GPU
    return -(-(context + in_flight) // STEP) * STEP


def _entries(config: ModelConfig, kind: str) -> int:
    """Return the key and value entries of a row of a layer of `kind`."""
    return 2 * config.kv_heads(kind) * config.head_dim(kind)


def computes_on_cpu() -> bool:
    """Return True if MLX has no GPU to compute on: everywhere but on a Mac, unless the CUDA build is installed."""
    if sys.platform == "darwin":
        return False
    from importlib.util import find_spec

    spec = find_spec("mlx")
    places = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    return not any(any(place.parent.glob("mlx_cuda*.dist-info")) for place in places)


def machine_memory() -> int:
    """Return the bytes of physical memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def held_bytes(memory: int) -> int:
    """Return the bytes that keys and values of several conversations may take, where they are kept for their return."""
    return memory // 8


def usable(memory: int) -> int:
    """Return the bytes that a model may take: Metal's recommended working set, 2/3 of a Mac below 36 GiB, else 3/4."""
    return memory * 2 // 3 if sys.platform == "darwin" and memory < _LARGE_MAC else memory * 3 // 4
