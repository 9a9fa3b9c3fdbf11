"""The recipe of a conversion: how many bits each tensor gets. Knows nothing of arrays or files."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from mlxmtp.errors import UsageError
from mlxmtp.limits import QUANTIZED_DRAFTER_FROM
from mlxmtp.models.config import ModelConfig
from mlxmtp.models.tensors import MODES, Quantization, Tensor, parameter_count, tensors

BITS = (4, 5, 6, 8, 16)
DRAFT_BITS = (4, 8, 16)
GROUPS = (32, 64, 128)
QAT_GROUP = 32  # weights trained for q4_0 were trained for groups of 32
DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}

_LEAST = {"embedding": 6, "head": 6}
_AFFINE_8 = ("per-layer embedding", "router")  # also in the floating-point modes, whose 8 bits hold 3 of mantissa


@dataclass(frozen=True, slots=True)
class Recipe:
    """Bits and modes for a pair; 16 bits mean that nothing is quantized.

        per-layer embedding    8 bits: below that answers turn to garbage; a lookup of one row a token, so no slower
        per-layer projections  16 bits: about 1 % of the weights, and twice the divergence when they are quantized
        router                 8 bits: a small matrix that decides which experts answer
        embedding = head       as asked, but at least 6 bits: its rounding goes straight into the logits
        norms, scalars         never quantized
        everything else        as asked

    A small drafter with a centroid head keeps 16 bits, a large one is quantized, head included.
    ``dtype`` is that of what is not quantized (None: as stored). ``draft_bits`` None decides by the drafter's size.
    """

    bits: int = 4
    group_size: int = 64
    mode: str = "affine"
    draft_bits: int | None = None
    dtype: str | None = None
    text_only: bool = False

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UsageError(f"--q-mode must be one of {', '.join(MODES)}, not '{self.mode}'.")
        if self.bits not in BITS:
            raise UsageError(f"--q-bits must be {_either(BITS)}, not {self.bits}.")
        if self.draft_bits not in (None, *DRAFT_BITS):
            raise UsageError(f"--draft-bits must be {_either(DRAFT_BITS)}, not {self.draft_bits}.")
        if self.dtype not in (None, *DTYPES):
            raise UsageError(f"--dtype must be one of {', '.join(DTYPES)}, not '{self.dtype}'.")
        if self.mode == "affine" and self.group_size not in GROUPS:
            raise UsageError(f"--q-group-size must be {_either(GROUPS)}, not {self.group_size}.")
        if self.mode != "affine" and self.bits != 16 and (self.group_size, self.bits) != MODES[self.mode]:
            group, bits = MODES[self.mode]
            raise UsageError(f"{self.mode} has {bits} bits and groups of {group}: leave out the other numbers.")

    def quantization(self, tensor: Tensor, *, drafter: bool) -> Quantization | None:
        """Return how ``tensor`` is quantized; None if it keeps its values."""
        if not tensor.quantizable:
            return None
        if drafter:
            return None if self.draft_bits in (None, 16) else Quantization(self.draft_bits, 64).fitting(tensor)
        if self.bits == 16 or tensor.kind == "per-layer projections":
            return None
        group = self.group_size if self.mode == "affine" else 64
        if tensor.kind in _AFFINE_8:
            return Quantization(8, group).fitting(tensor)
        if self.bits < (least := _LEAST.get(tensor.kind, 0)):
            return Quantization(least, group).fitting(tensor)
        return Quantization(self.bits, self.group_size, self.mode).fitting(tensor)

    def for_drafter(self, config: ModelConfig) -> Self:
        """Return the same recipe with ``draft_bits`` decided."""
        if self.draft_bits is not None:
            return self
        large = parameter_count(config) >= QUANTIZED_DRAFTER_FROM
        return replace(self, draft_bits=16 if self.bits == 16 or not large else 8 if self.bits == 8 else 4)

    def size(self, config: ModelConfig) -> int:
        """Return the bytes of a network that is stored so, towers left out; what has no ``dtype`` has 16 bits."""
        plain = 4 if self.dtype == "float32" else 2
        stored = ((one, self.quantization(one, drafter=config.is_drafter)) for one in tensors(config))
        return sum(one.size * plain if how is None else how.nbytes(one, plain) for one, how in stored)

    def block(self, config: ModelConfig) -> dict[str, Any] | None:
        """Return the quantization block for config.json as mlx-lm and mlx-vlm read it, with entries for odd modules."""
        modules = {one.module: how for one, how in self._quantizable(config)}
        counts = Counter(own for own in modules.values() if own is not None)
        if not counts:
            return None
        main = counts.most_common(1)[0][0]  # so that there are few other entries
        block = main.arguments
        for module, own in sorted(modules.items()):
            if own != main:
                block[module] = False if own is None else own.arguments
        return block

    def described(self, config: ModelConfig) -> dict[str, str]:
        """Return how each kind of module is stored: ``{"attention": "4 bit, groups of 64", ...}``, in network order."""
        found: dict[str, str] = {}
        for tensor, how in self._quantizable(config):
            kind = "mlp" if tensor.kind == "drafter's projections" else tensor.kind
            found.setdefault(kind, f"{how.title}, groups of {how.group_size}" if how else self.dtype or "as stored")
        return found

    def _quantizable(self, config: ModelConfig) -> list[tuple[Tensor, Quantization | None]]:
        matrices = (tensor for tensor in tensors(config) if tensor.quantizable)
        return [(one, self.quantization(one, drafter=config.is_drafter)) for one in matrices]


def make_recipe(flags: Mapping[str, Any], *, qat: bool = False) -> Recipe:
    """Make a recipe from fields that are not None; ``qat`` sources were trained for groups of 32. Raises UsageError."""
    given = {name: value for name, value in flags.items() if value is not None}
    group, bits = MODES.get(given.get("mode", "affine"), MODES["affine"])
    if qat and given.get("mode", "affine") == "affine":
        group = QAT_GROUP
    return Recipe(**{"group_size": group, "bits": bits, **given})


def _either(numbers: tuple[int, ...]) -> str:
    return f"{', '.join(map(str, numbers[:-1]))} or {numbers[-1]}"
