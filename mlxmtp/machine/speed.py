"""Predicted tokens per second on Apple chips: bytes over bandwidth, and launches. Not measured on such a machine."""

from dataclasses import dataclass

from mlxmtp.machine.memory import weight_bytes
from mlxmtp.models.config import ModelConfig
from mlxmtp.models.tensors import quantization_of, tensors

EFFICIENCY = 0.7  # of the bandwidth, reached by kernels that read weights
KERNEL = 4e-6
"""Seconds to launch a kernel, between two reports from Macs: 2.75 us (a chain of tiny dependent kernels on an M3 Ultra,
issue 4521 of MLX) and 5.2 us (norms added to a 2B model, issue 149 of ferrox). With 4 us the plain speeds in
``scripts/benchmarks/predict_speed.py`` are missed in both directions."""

ROW = 0.16  # of reading, for each further verified row: 4-bit products of four rows cost 1.47 of one on an M4 Pro
ACCEPTANCE = 0.65  # for each draft token after accepted ones: between prose (0.31 to 0.75) and code (0.66 to 1)
HIGH_ACCEPTANCE = 0.8

LOW, HIGH = 0.6, 1.4
"""Bounds around a prediction: six public figures are 0.64 to 1.32 times what is predicted for them."""

# Kernels as scripts/benchmarks/profile_round.py counted them, within 5 %: of a layer, and what these parts add to it.
# The kernel of models/fused.py, which spares a fifth, has not run yet and is not counted on.
_PER_LAYER, _PER_LAYER_INPUT, _PER_ROUTER = 17, 5, 21
_PER_PASS, _PER_DRAFT_LAYER = 15, 25


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


def predict(target: ModelConfig, drafter: ModelConfig | None, bandwidth: float, draft: int = 3) -> Speed:
    """Predict for a chip that reads `bandwidth` bytes per second, drafting `draft` tokens a round."""
    plain = 1 / round_seconds(target, None, bandwidth, 0)
    bounds = LOW * plain, HIGH * plain
    if drafter is None:
        return Speed(plain, *bounds)
    seconds = round_seconds(target, drafter, bandwidth, draft)
    usual, best = (max(plain, expected_tokens(draft, share) / seconds) for share in (ACCEPTANCE, HIGH_ACCEPTANCE))
    return Speed(plain, *bounds, usual, bounds[0], HIGH * best)  # a drafter that loses is parked


def round_seconds(target: ModelConfig, drafter: ModelConfig | None, bandwidth: float, draft: int) -> float:
    """Return the seconds of a round with `draft` draft tokens; without a drafter, of a plain pass."""
    reach = bandwidth * EFFICIENCY
    rows = draft + 1 if drafter is not None else 1
    read = read_per_token(target, rows) + ROW * (rows - 1) * read_per_token(target)
    step = read / reach + KERNEL * kernels(target)
    if drafter is None or not draft:
        return step
    more = KERNEL * (len(target.layer_types) + _PER_PASS)  # results that are turned, and the comparison
    size = weight_bytes(drafter, cpu=False)
    if drafter.raw.get("use_ordered_embeddings"):  # the head reads the rows of 32 of 2048 centroids, not its table
        size -= drafter.vocab_size * (drafter.hidden_size * 2 + 4) * 63 // 64
    draft_step = size / reach + KERNEL * kernels(drafter)
    return step + more + draft_step * draft


def expected_tokens(draft: int, acceptance: float) -> float:
    """Return the tokens of a round in which each draft token after accepted ones has this chance to be accepted."""
    return sum(acceptance**i for i in range(draft + 1))


def kernels(config: ModelConfig) -> int:
    """Count the kernels of a target's plain pass or of one draft step."""
    layers, text = len(config.layer_types), config.text
    if config.is_drafter:
        return _PER_DRAFT_LAYER * layers
    inputs = _PER_LAYER_INPUT if text.get("hidden_size_per_layer_input") else 0
    router = _PER_ROUTER if text.get("enable_moe_block") else 0
    return _PER_PASS + (_PER_LAYER + inputs + router) * layers


def read_per_token(config: ModelConfig, rows: int = 1) -> int:
    """Return the bytes of weights that the target reads for `rows` tokens: no lookup tables, only chosen experts.

    Rows are taken to choose independently of each other, which is more than they need.
    """
    chosen = 1.0
    if config.text.get("enable_moe_block"):
        chosen = 1 - (1 - int(config.text["top_k_experts"]) / int(config.text["num_experts"])) ** rows
    total = 0.0
    for tensor in tensors(config):
        if tensor.kind == "per-layer embedding":
            continue
        packed = quantization_of(tensor, config.quantization)
        size = tensor.size * 2 if packed is None else packed.nbytes(tensor)
        total += size * chosen if tensor.kind == "experts" else size
    return int(total)
