"""The 16-bit weights that a conversion starts from, and the name of its result.

`e2b` means Google's own weights and 4 bits, `e2b:8bit` the same and 8 bits, `e2b:qat` the weights that Google trained
for 4 bits, `e2b:bf16` no quantization. A repository or a folder is taken as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlxmtp.convert.recipe import Recipe
from mlxmtp.errors import LoadError
from mlxmtp.hub.registry import entries, find_entry

_BITS = {"4bit": 4, "8bit": 8, "bf16": 16, "qat": 4}


@dataclass(frozen=True, slots=True)
class Source:
    """Published weights: `repo` on the hub, None for a folder; `family` is the alias of the model they are.

    `recipe` is what the name says about the recipe. `qat`: they were trained to be quantized.
    """

    origin: str
    repo: str | None
    family: str | None
    qat: bool
    recipe: Mapping[str, Any] = field(default_factory=dict)

    def result_name(self, recipe: Recipe) -> str:
        """Return the usual name of the result: `e2b-4bit`, `e2b-qat`, `my-model-mxfp4`."""
        if recipe.bits == 16:
            kind = {None: "bf16", "bfloat16": "bf16", "float16": "f16", "float32": "f32"}[recipe.dtype]
        elif recipe.mode != "affine":
            kind = recipe.mode
        else:
            kind = "qat" if self.qat and recipe.bits == 4 else f"{recipe.bits}bit"
        return f"{self.family or Path(self.origin).name.lower()}-{kind}"


def find_source(name: str) -> Source:
    """Return the weights that a name stands for. Raises LoadError for those known to be quantized already."""
    entry = find_entry(name)
    if entry is not None and entry.name == name.lower():
        bits = {"bits": _BITS[entry.variant]}
        return Source(name, entry.source_repo, entry.family, entry.variant == "qat", bits)
    if entry is not None and entry.variant != "bf16":
        raise LoadError(
            f"{name} is already quantized and cannot be converted again. For Google's own weights: "
            f"mlxmtp convert {entry.name}"
        )
    for known in entries():
        if known.source_repo.lower() == name.lower():
            return Source(name, known.source_repo, known.family, known.variant == "qat")
    if Path(name).expanduser().is_dir():
        return Source(Path(name).expanduser().resolve().name, None, None, "-qat-" in Path(name).resolve().name.lower())
    return Source(name, name if name.count("/") == 1 else None, None, "-qat-" in name.lower())
