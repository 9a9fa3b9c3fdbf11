"""Chunked prefill: rows of a prompt that are read at once, and the memory that takes; imports no MLX.

`decode/prefill.py` reads by this, `machine/memory.py` computes with it.
"""

from typing import NamedTuple

from mlxmtp.models.config import FULL, ModelConfig
from mlxmtp.models.metal import BLOCKED_ROWS, route
from mlxmtp.models.tensors import own_layers

ROWS = (BLOCKED_ROWS, 512, 384, 256, 192, 128, 96, 64, 32)
"""Lengths of a chunk, longest first, the first on a GPU only; few, because each is a shape of its own for kernels."""

BUDGET = 2**30
"""Bytes that a chunk's activations may take; the shortest chunk is read even where it takes more."""

_SHORT_WINDOW = 256
"""Rows that are read at once even if the window is shorter: on a CPU pocket (128) takes 15 % more time with 512."""

_ON_GPU = 2
"""Bytes of a value that a GPU computes with: a CPU's are wider."""

_TURN = 2 * 4
"""Bytes of a row's rotation for one entry of queries, keys and values: cosine and sine, float32 in every dtype."""


class _Costs(NamedTuple):
    """Bytes of activations of a row: by kind of layer at its peak and beside its experts, of a score, of experts.

    The scores are heads times rows times all keys before (for 512 rows at 128k tokens of the 31B more than 4 GB). So
    chunks get shorter as the context grows, unless a kernel ``blocked`` of full layers keeps no scores: on a GPU, from
    BLOCKED_ROWS rows on.
    """

    row: dict[str, int]
    late: dict[str, int]
    score: int
    experts: int
    window: int
    longest: int
    blocked: bool

    def total(self, rows: int, start: int) -> int:
        """Bytes for ``rows`` rows from position ``start`` on, in the layer that takes most."""
        # A sliding layer scores all rows of a chunk against each other, and what lies outside the window for nothing.
        before = {kind: start if kind == FULL else min(start, self.window - 1) for kind in self.row}
        kept = {kind: not (self.blocked and kind == FULL and rows >= BLOCKED_ROWS) for kind in self.row}
        scored = max(row + kept[kind] * (before[kind] + rows) * self.score for kind, row in self.row.items())
        # Experts' arrays are made when scores and rotations are gone.
        return rows * max(scored, max(self.late.values()) + self.experts)

    def rows(self, start: int, left: int) -> int:
        longest = BLOCKED_ROWS if self.blocked and left >= BLOCKED_ROWS else min(self.longest, ROWS[1])
        fitting = (rows for rows in ROWS if rows <= longest and self.total(rows, start) <= BUDGET)
        return next(fitting, ROWS[-1])


def chunk_rows(config: ModelConfig, start: int, width: int, left: int = 0) -> int:
    """Rows to read at once from position ``start`` on, of ``left`` or more; ``width`` bytes a value."""
    return _costs(config, width).rows(start, left)


def activation_bytes(config: ModelConfig, context: int, width: int, picture: int = 0) -> int:
    """Bytes that come and go while a prompt of ``context`` tokens is read, ``width`` bytes a value.

    ``picture``: soft tokens of its largest one, which is read at once where they see ahead, at worst at the end. A
    smaller one may take more: no kernel spares the scores of less than BLOCKED_ROWS.
    """
    costs = _costs(config, width)
    peak = start = 0
    while start < context:
        rows = min(costs.rows(start, context - start), context - start)
        peak = max(peak, costs.total(rows, start))
        start += rows
    if picture and config.sees_ahead:
        for rows in (min(picture, BLOCKED_ROWS - 1, context), min(picture, context)):
            peak = max(peak, costs.total(rows, context - rows))
    return peak + 3 * config.vocab_size * 4  # the last row's logits


def head_entries(config: ModelConfig, i: int) -> int:
    """Query, key and value entries of one row in layer i; layers with shared K/V have queries only."""
    kind = config.layer_types[i]
    own = not config.is_drafter and i < own_layers(config)
    return (config.heads + (2 * config.kv_heads(kind) if own else 0)) * config.head_dim(kind)


def _costs(config: ModelConfig, width: int) -> _Costs:
    text, hidden, own = config.text, config.hidden_size, config.layer_types[: own_layers(config)]
    row, late = dict.fromkeys(own, 0), dict.fromkeys(own, 0)
    for i, kind in enumerate(own):
        rotated = {kind, *own[:i]} & {kind, *own[i + 1 :]} if i < len(own) - 1 else ()
        # Rotations are made at the first layer of a kind and stay until the last one's.
        rotations = _TURN * sum(head_entries(config, own.index(one)) for one in rotated)
        rotating, scoring = _layer(config, i)
        worst = scoring if i == len(own) - 1 else max(rotating, scoring)
        row[kind] = max(row[kind], worst * width + rotations)
        late[kind] = max(late[kind], scoring * width + rotations)
    experts = 0
    if text.get("enable_moe_block"):  # each row is copied for every expert it chose
        experts = int(text["top_k_experts"]) * (4 * hidden + 3 * int(text["moe_intermediate_size"]))
    # Scores are written over by their softmax; beside them stands the mask.
    longest, blocked = max(_SHORT_WINDOW, config.window), False
    if FULL in own and width == _ON_GPU:
        shape = config.heads, config.kv_heads(FULL), config.head_dim(FULL)
        blocked = route(BLOCKED_ROWS, *shape, "causal", BLOCKED_ROWS) == "blocked"
    return _Costs(row, late, config.heads * width + 1, experts * width, config.window, longest, blocked)


def _layer(config: ModelConfig, i: int) -> tuple[int, int]:
    """Return the values of a row at two moments of layer i, without scores and experts.

    MLX allocates an operation's result when it is sent to the device and frees its inputs when the device is done with
    them; it sends up to eleven tasks of ten steps ahead, about one layer. So what a layer makes is there nearly at
    once, at the worse of two moments: the device has come to the rotation and the layer is sent up to its MLP, or it
    has come to the scores and all behind them is sent. In the last layer the scores are sent after the rotation is
    done (``decode/prefill.py``), which leaves the second moment.

    What there is of each width was read from a list of all buffers at the peak, MLX 0.32 on a CPU.
    """
    text, hidden = config.text, config.hidden_size
    queries = config.heads * config.head_dim(config.layer_types[i])
    inner, extra = int(text["intermediate_size"]), int(text.get("hidden_size_per_layer_input") or 0)
    entries = head_entries(config, i)
    rotating = 5 * entries + inner + 5 * hidden
    scoring = entries + 4 * inner + 9 * hidden + (3 * (hidden + extra) if extra else 0)
    always = 3 * queries + len(config.layer_types) * extra
    return rotating + always, scoring + always
