"""Predicted tokens per second on Apple chips. Predictions: nothing here was measured on such a machine.

A step of decoding reads every weight once, so it takes at least bytes / bandwidth. Kernels reach about 70 % of that,
and a layer's launches take about 0.1 ms on top, which is what bounds the small models. A round with K draft tokens
costs a step, a fifth of one for each further verified row, and K reads of the drafter.
"""

from __future__ import annotations

from dataclasses import dataclass

from mlxmtp.hub.fit import weight_bytes
from mlxmtp.models.config import ModelConfig
from mlxmtp.models.shapes import packing, tensors

EFFICIENCY = 0.7
LAUNCHES = 0.0001  # seconds per layer
ROW = 0.2  # of a step, for each further verified row: 0.17 to 0.25 in other engines
ACCEPTANCE = 0.65  # for each draft token after accepted ones: between prose (0.31 to 0.75) and code (0.66 to 1)


@dataclass(frozen=True, slots=True)
class Speed:
    """Predicted tokens per second without and with the drafter; `drafted` None where there is none."""

    plain: float
    drafted: float | None


def predict(target: ModelConfig, drafter: ModelConfig | None, bandwidth: float, draft: int = 3) -> Speed:
    """The prediction for a chip that reads `bandwidth` bytes per second, drafting `draft` tokens a round."""
    reach = bandwidth * EFFICIENCY
    step = read_per_token(target) / reach + LAUNCHES * len(target.layer_types)
    if drafter is None:
        return Speed(1 / step, None)
    draft_step = _drafter_read(drafter) / reach + LAUNCHES * len(drafter.layer_types)
    tokens = sum(ACCEPTANCE**i for i in range(draft + 1))
    spent = step * (1 + ROW * draft) + draft_step * draft
    return Speed(1 / step, max(tokens / spent, 1 / step))  # a drafter that loses is parked


def read_per_token(config: ModelConfig) -> int:
    """Bytes of weights that one token makes the target read: no lookup tables, of the experts only the chosen ones."""
    chosen = 1.0
    if config.text.get("enable_moe_block"):
        chosen = int(config.text["top_k_experts"]) / int(config.text["num_experts"])
    total = 0.0
    for tensor in tensors(config):
        if tensor.kind == "per-layer embedding":
            continue
        packed = packing(tensor, config.quantization)
        size = tensor.size * 2 if packed is None else packed.nbytes(tensor)
        total += size * chosen if tensor.kind == "experts" else size
    return int(total)


def _drafter_read(config: ModelConfig) -> int:
    """A centroid head reads the rows of 32 of its 2048 centroids instead of the whole table."""
    size = weight_bytes(config, cpu=False)
    if config.raw.get("use_ordered_embeddings"):
        size -= config.vocab_size * (config.hidden_size * 2 + 4) * 63 // 64
    return size
