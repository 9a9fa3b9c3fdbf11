"""Predicted tokens per second: bytes over the pace they are read at, and launches. Not measured on Apple's chips."""

from collections.abc import Iterable
from dataclasses import dataclass

from mlxmtp.machine.memory import weight_bytes
from mlxmtp.machine.pace import Pace
from mlxmtp.models.config import SLIDING, ModelConfig
from mlxmtp.models.metal import has_kernel
from mlxmtp.models.tensors import quantization_of, quantized_by_default, tensors

KERNEL = 4e-6
"""Seconds to launch a kernel, between two reports from Macs: 2.75 us (a chain of tiny dependent kernels on an M3 Ultra,
issue 4521 of MLX) and 5.2 us (norms added to a 2B model, issue 149 of ferrox). With 4 us the plain speeds in
``scripts/benchmarks/predict_speed.py`` are missed in both directions."""

ACCEPTANCE = 0.65  # for each draft token after accepted ones: between prose (0.31 to 0.75) and code (0.66 to 1)
HIGH_ACCEPTANCE = 0.8

LOW, HIGH = 0.6, 1.4
"""Bounds around a prediction: six public figures are 0.64 to 1.32 times what is predicted for them."""

# Kernels as scripts/benchmarks/profile_round.py counted them, within 5 %: of a layer, and what these parts add to it.
# The kernels of models/fused.py, which spare a fifth, have not run yet and are not counted on.
_PER_LAYER, _PER_LAYER_INPUT, _PER_ROUTER = 17, 5, 16
_PER_PASS, _PER_DRAFT_LAYER = 15, 25
_COMPOSED = 3  # more for a layer whose rows are too many for Metal's kernel for few rows


@dataclass(frozen=True, slots=True)
class Speed:
    """Predicted tokens per second without and with the drafter, each with its bounds; None where there is none."""

    plain: float
    plain_low: float
    plain_high: float
    drafted: float | None = None
    drafted_low: float | None = None
    drafted_high: float | None = None

    def __str__(self) -> str:
        text = f"about {self.plain_low:.0f} to {self.plain_high:.0f} tok/s"
        if self.drafted is None:
            return text
        return f"{text}, {self.drafted_low:.0f} to {self.drafted_high:.0f} with the drafter"


def predict(target: ModelConfig, drafter: ModelConfig | None, pace: Pace, draft: int = 3) -> Speed:
    """Predict for a machine of that pace, drafting `draft` tokens a round."""
    plain = 1 / round_seconds(target, None, pace, 0)
    bounds = LOW * plain, HIGH * plain
    if drafter is None:
        return Speed(plain, *bounds)
    seconds = round_seconds(target, drafter, pace, draft)
    usual, best = (max(plain, expected_tokens(draft, share) / seconds) for share in (ACCEPTANCE, HIGH_ACCEPTANCE))
    return Speed(plain, *bounds, usual, bounds[0], HIGH * best)  # a drafter that loses is parked


def round_costs(target: ModelConfig, drafter: ModelConfig, pace: Pace, lengths: Iterable[int]) -> dict[int, float]:
    """Return the time of a round by draft length, in that of a round without drafts."""
    work = _Work(target, drafter, pace)
    plain = work.seconds(0)
    return {k: work.seconds(k) / plain for k in lengths}


def round_seconds(target: ModelConfig, drafter: ModelConfig | None, pace: Pace, draft: int) -> float:
    """Return the seconds of a round with `draft` draft tokens; without a drafter, of a plain pass."""
    return _Work(target, drafter, pace).seconds(0 if drafter is None else draft)


class _Work:
    """Rounds of a pair on a machine: bytes that products read, and kernels."""

    def __init__(self, target: ModelConfig, drafter: ModelConfig | None, pace: Pace) -> None:
        self._target, self._products = target, pace.products(quantized=target.quantization is not None)
        self._dense, self._experts = _read(target, 4 if pace.cpu else 2)
        self._draft_step = 0.0
        if drafter is not None:
            size = weight_bytes(drafter, cpu=pace.cpu)
            if drafter.raw.get("use_ordered_embeddings"):  # the head reads 32 of 2048 blocks, not its table
                size -= drafter.vocab_size * (drafter.hidden_size * (4 if pace.cpu else 2) + 4) * 63 // 64
            quantized = drafter.quantization is not None or (quantized_by_default(drafter) and not pace.cpu)
            reach = pace.products(quantized=quantized).reach
            self._draft_step = size / reach + KERNEL * kernels(drafter)

    def seconds(self, draft: int) -> float:
        """Return the time of a round."""
        rows = draft + 1
        one, some = (self._dense + self._experts * _chosen(self._target, n) for n in (1, rows))
        read = some + (self._products.cost(rows) - 1) * one
        step = read / self._products.reach + KERNEL * kernels(self._target, rows)
        more = KERNEL * (len(self._target.layer_types) + _PER_PASS)  # results that are turned, and the comparison
        return step + (more + draft * self._draft_step if draft else 0.0)


def expected_tokens(draft: int, acceptance: float) -> float:
    """Return the tokens of a round in which each draft token after accepted ones has this chance to be accepted."""
    return sum(acceptance**i for i in range(draft + 1))


def kernels(config: ModelConfig, rows: int = 1) -> int:
    """Count the kernels of a target's pass over `rows` tokens or of one draft step."""
    layers, text = len(config.layer_types), config.text
    if config.is_drafter:
        return _PER_DRAFT_LAYER * layers
    inputs = _PER_LAYER_INPUT if text.get("hidden_size_per_layer_input") else 0
    router = _PER_ROUTER if text.get("enable_moe_block") else 0
    group = config.heads // config.kv_heads(SLIDING)
    composed = 0 if has_kernel(rows, group, config.head_dim(SLIDING)) else config.layer_types.count(SLIDING)
    return _PER_PASS + (_PER_LAYER + inputs + router) * layers + _COMPOSED * composed


def read_per_token(config: ModelConfig, rows: int = 1) -> int:
    """Return the bytes of weights that the target reads for `rows` tokens: no lookup tables, only chosen experts."""
    dense, experts = _read(config, 2)
    return int(dense + experts * _chosen(config, rows))


def _read(config: ModelConfig, width: int) -> tuple[int, int]:
    """Return the bytes of all weights that a token may read, `width` for a plain number: of experts last."""
    dense = experts = 0
    for tensor in tensors(config):
        if tensor.kind == "per-layer embedding":
            continue
        packed = quantization_of(tensor, config.quantization)
        size = tensor.size * width if packed is None else packed.nbytes(tensor)
        if tensor.kind == "experts":
            experts += size
        else:
            dense += size
    return dense, experts


def _chosen(config: ModelConfig, rows: int) -> float:
    """Return the share of experts that `rows` tokens choose, independently of each other: more than they need."""
    if not config.text.get("enable_moe_block"):
        return 1.0
    return 1 - (1 - int(config.text["top_k_experts"]) / int(config.text["num_experts"])) ** rows
