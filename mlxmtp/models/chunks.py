"""How many rows of a prompt are read at once, and the memory that takes; knows configurations only, not mlx.

A chunk of more rows keeps the products busy. Its price are the scores: heads times rows times all keys before, which no
fused kernel takes over at Gemma's head sizes (for 512 rows at 128k tokens of the 31B more than 4 GB). So chunks get
shorter as the context grows. `decode/prefill.py` reads by this, `hub/fit.py` computes with it.
"""

from typing import NamedTuple

from mlxmtp.models.config import FULL, ModelConfig
from mlxmtp.models.shapes import own_layers

ROWS = (512, 384, 256, 192, 128, 96, 64, 32)
"""Lengths of a chunk, longest first: a few, because every length is a shape of its own for the kernels."""

BUDGET = 2**30
"""Bytes that a chunk's activations may take; the shortest chunk is read even where it takes more."""

_SHORT_WINDOW = 256
"""Rows that are read at once even if the window is shorter: on a CPU pocket (128) takes 15 % more time with 512."""

_ATTENTION, _MLP, _PER_LAYER = 3, 13, 2.5
"""Values a row needs at once for each of its query, key and value entries, its MLP's entries, and its per-layer inputs
(one layer runs while the next is sent, so one's MLP may stand beside the other's scores). Measured on a CPU; they vary
by a third with what else the machine does."""


class _Costs(NamedTuple):
    """Bytes of activations: a row's while it attends, each of its scores, its MLP's, and what it keeps all the way."""

    attention: int
    score: int
    mlp: int
    kept: int
    keys: int  # at most so many are seen besides a chunk's own rows
    longest: int

    def total(self, rows: int, start: int) -> int:
        """Bytes for ``rows`` rows from position ``start`` on."""
        scores = (min(start, self.keys) + rows) * self.score
        return rows * (max(self.attention, self.mlp) + scores + self.kept)

    def rows(self, start: int) -> int:
        """Rows of the chunk at ``start``."""
        fitting = (rows for rows in ROWS if rows <= self.longest and self.total(rows, start) <= BUDGET)
        return next(fitting, ROWS[-1])


def chunk_rows(config: ModelConfig, start: int, width: int) -> int:
    """Rows to read at once from position ``start`` on; ``width`` bytes a value."""
    return _costs(config, width).rows(start)


def activation_bytes(config: ModelConfig, context: int, width: int) -> int:
    """Bytes that come and go while a prompt of ``context`` tokens is read, ``width`` bytes a value."""
    costs = _costs(config, width)
    peak = start = 0
    while start < context:
        rows = min(costs.rows(start), context - start)
        peak = max(peak, costs.total(rows, start))
        start += rows
    return peak + 3 * config.vocab_size * 4  # the last row's logits


def head_entries(config: ModelConfig, i: int) -> int:
    """Query, key and value entries of one row in layer i; layers with shared K/V have queries only."""
    kind = config.layer_types[i]
    own = not config.is_drafter and i < own_layers(config)
    heads = int(config.text["num_attention_heads"]) + (2 * config.kv_heads(kind) if own else 0)
    return heads * config.head_dim(kind)


def _costs(config: ModelConfig, width: int) -> _Costs:
    text = config.text
    heads, layers = int(text["num_attention_heads"]), len(config.layer_types)
    extra = layers * int(text.get("hidden_size_per_layer_input") or 0)
    return _Costs(
        attention=_ATTENTION * max(head_entries(config, i) for i in range(layers)) * width,
        score=heads * width + 2,
        mlp=_MLP * int(text["intermediate_size"]) * width,
        kept=int(2 * config.hidden_size + _PER_LAYER * extra) * width,
        keys=config.max_positions if FULL in config.layer_types else config.window,
        # A sliding layer scores all rows of a chunk against each other, and what lies outside the window for nothing.
        longest=max(_SHORT_WINDOW, config.window),
    )
