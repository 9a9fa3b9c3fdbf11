"""Bytes and FLOPs of every product in a round, for every family at several contexts, without weights and without a GPU.

    .venv/bin/python -m scripts.benchmarks.products --write docs/benchmarks.md
    .venv/bin/python -m scripts.benchmarks.products --families 31b --list          # every product

Networks of the real sizes are traced, and nothing is computed: products are recorded where MLX is asked for them. Full
layers are traced twice, as they attend on a GPU now and by MLX's own function, which takes its products apart there.
Bytes count weights, keys and values once for every product that reads them, as if no cache held them. FLOPs are those
that kernels carry out: rows are padded to the tiles that MLX's source says. Takes half a minute.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxmtp.decode.round import make_parts
from mlxmtp.hub.registry import find_entry
from mlxmtp.models import device, metal
from mlxmtp.models.config import ModelConfig
from mlxmtp.models.drafter import Drafter
from mlxmtp.models.linear import Matrix, Weights
from mlxmtp.models.target import Target
from mlxmtp.models.tensors import Quantization, quantization_of, quantized_by_default, tensors
from scripts.benchmarks.graphs.narrow import complete
from scripts.benchmarks.harness.section import write_section

FAMILIES = ("e2b", "e4b", "12b", "26b", "31b")
CONTEXTS = (2048, 32768, 131072)
DRAFTS = 3
_GREEDY = (0.0, 1.0, 0, 0.0)
_FULL_HEAD = 512
_TILE, _SPLIT_TILE = 32, 16
"""Rows that MLX's product kernels compute at a time: in a batch, and where the sum is divided ("split K")."""


@dataclass(frozen=True, slots=True)
class Product:
    """`batch` products [rows, inner] x [inner, outer]; `what` is "weights", "sliding" or "full"."""

    what: str
    batch: int
    rows: int
    inner: int
    outer: int
    nbytes: int
    tile: int = 1

    @property
    def flops(self) -> int:
        rows = self.rows if self.rows == 1 else -(-self.rows // self.tile) * self.tile
        return 2 * self.batch * rows * self.inner * self.outer

    def __str__(self) -> str:
        shape = f"{self.batch} x [{self.rows}, {self.inner}] x [{self.inner}, {self.outer}]"
        return f"{self.what:8} {shape:42} {self.nbytes / 1e6:9.2f} MB {self.flops / 1e9:8.3f} GFLOP"


def networks(name: str) -> tuple[Target, Drafter]:
    """The registry's pair in its own sizes and bits, all zeros that nobody computes."""
    entry = find_entry(name)
    if entry is None:
        raise SystemExit(f"there is no model {name}")
    config, drafter = complete(entry.target_config()), complete(entry.drafter_config())
    target = Target(_blank(config, config.quantization), config)
    pack = {"bits": 4, "group_size": 64} if quantized_by_default(drafter) else None
    return target, Drafter(_blank(drafter, pack), drafter, target)


def _blank(config: ModelConfig, pack: Any) -> Weights:
    found = {}
    for tensor in tensors(config):
        how = quantization_of(tensor, pack)
        dtype = mx.int64 if tensor.name.endswith("token_ordering") else mx.bfloat16
        values = mx.zeros(tensor.shape, dtype)
        found[tensor.name] = Matrix((values,)) if how is None else Matrix(_packed(tensor.shape, how), how)
    return Weights(found)


def _packed(shape: tuple[int, ...], how: Quantization) -> tuple[mx.array, ...]:
    *rows, width = shape
    groups = mx.zeros((*rows, width // how.group_size), mx.uint8 if how.mode != "affine" else mx.bfloat16)
    values = mx.zeros((*rows, width * how.bits // 32), mx.uint32)
    return (values, groups, groups) if how.mode == "affine" else (values, groups)


def products(pair: tuple[Target, Drafter], context: int, *, before: bool) -> dict[str, list[Product]]:
    """Products of a round with DRAFTS drafts at so many positions: of a "draft" step and of the "check"."""
    target, drafter = pair
    spec, dtype = target.cache_spec, target.dtype
    buffers = [mx.zeros((1, part.heads, spec.rows(part.kind, context), part.width), dtype)
               for part in spec.buffers(dtype)]  # fmt: skip
    offset, key = mx.array([context - DRAFTS - 1], mx.int32), mx.zeros((2,), mx.uint32)
    token, hidden = mx.zeros((1,), mx.int32), mx.zeros((1, target.config.hidden_size), dtype)
    parts = make_parts(target, drafter, _GREEDY)
    with _recorded(before=before) as draft:
        parts.draft(token, hidden, offset, buffers, parts.begin(buffers, offset), key)
    with _recorded(before=before) as check:
        parts.check(mx.zeros((DRAFTS + 1,), mx.int32), offset, buffers, key)
    return {"draft": draft, "check": check}


_ARRAY: Any = mx.array
_FAST: Any = mx.fast
_PLAIN = {
    "quantized_matmul": mx.quantized_matmul, "gather_qmm": mx.gather_qmm, "gather_mm": mx.gather_mm,
    "@": _ARRAY.__matmul__, "attention": mx.fast.scaled_dot_product_attention,
}  # fmt: skip


class _Recorder:
    """MLX's products, and what each of them was asked for."""

    def __init__(self) -> None:
        self.found: list[Product] = []

    def packed(self, name: str, x: mx.array, w: mx.array, *others: Any, **how: Any) -> mx.array:
        parts = [w, *(one for one in (how.get("scales"), how.get("biases")) if one is not None)]
        y: mx.array = _PLAIN[name](x, w, *others, **how)
        pairs = 1 if (rhs := how.get("rhs_indices")) is None else rhs.size
        size = sum(part.nbytes for part in parts)
        read = size if rhs is None else size * min(pairs, w.shape[0]) // w.shape[0]
        rows = prod(x.shape[:-1]) if rhs is None else 1
        self.found.append(Product("weights", pairs, rows, x.shape[-1], y.shape[-1], read))
        return y

    def matmul(self, a: mx.array, b: mx.array) -> mx.array:
        *batch, rows, inner = a.shape
        if b.ndim == 2:
            self.found.append(Product("weights", 1, prod(batch) * rows, inner, b.shape[-1], b.nbytes))
        else:
            kind = "full" if _FULL_HEAD in (inner, b.shape[-1]) else "sliding"
            tile = _SPLIT_TILE if prod(batch) == 1 else _TILE
            self.found.append(Product(kind, prod(batch), rows, inner, b.shape[-1], b.nbytes, tile))
        result: mx.array = _PLAIN["@"](a, b)
        return result

    def attended(self, q: mx.array, k: mx.array, v: mx.array, **how: Any) -> mx.array:
        _, heads, rows, dim = q.shape
        groups, keys = k.shape[1:3]
        batch, many, tile, reads = heads, rows, _TILE, heads
        if dim != _FULL_HEAD and _HAS_KERNEL(rows, heads // groups, dim):
            tile, reads = 1, groups
        elif groups == 1:  # all rows of all heads in one product; otherwise one for every query head
            batch, many, tile, reads = 1, rows * heads, _SPLIT_TILE, 1
        for inner, outer in ((dim, keys), (keys, dim)):
            kind = "full" if dim == _FULL_HEAD else "sliding"
            self.found.append(Product(kind, batch, many, inner, outer, k.nbytes // groups * reads, tile))
        result: mx.array = _PLAIN["attention"](q, k, v, **how)
        return result


_HAS_KERNEL = metal.has_kernel


@contextmanager
def _recorded(*, before: bool) -> Iterator[list[Product]]:
    """Record products as a GPU would compute them; `before`: MLX's own attention everywhere."""
    recorder, on_cpu = _Recorder(), device.on_cpu

    def matmul(a: mx.array, b: mx.array) -> mx.array:  # a function: as an operator it is given its left side
        return recorder.matmul(a, b)

    packed = {name: partial(recorder.packed, name) for name in _PLAIN}
    _put({**packed, "@": matmul, "attention": recorder.attended})
    device.on_cpu = lambda: False
    if before:
        metal.has_kernel = lambda *_: True
    try:
        yield recorder.found
    finally:
        _put(_PLAIN)
        device.on_cpu, metal.has_kernel = on_cpu, _HAS_KERNEL


def _put(functions: Mapping[str, Any]) -> None:
    for name in ("quantized_matmul", "gather_qmm", "gather_mm"):
        setattr(mx, name, functions[name])
    _ARRAY.__matmul__, _FAST.scaled_dot_product_attention = functions["@"], functions["attention"]


def _sum(found: list[Product], *kinds: str) -> tuple[float, float]:
    """GB and GFLOP."""
    chosen = [one for one in found if one.what in kinds]
    return sum(one.nbytes for one in chosen) / 1e9, sum(one.flops for one in chosen) / 1e9


def _cell(*pairs: tuple[float, float]) -> str:
    gb = " → ".join(f"{one[0]:.2f}" for one in pairs)
    return f"{gb} GB, {' → '.join(f'{one[1]:.1f}' for one in pairs)}"


def report(families: list[str], *, every: bool) -> str:
    """The section of docs/benchmarks.md."""
    lines = [
        f"Bytes read and GFLOP of the products of a round with {DRAFTS} drafts, from traces of networks in their real "
        "sizes as the short names fetch them (`scripts/benchmarks/products.py`; `--list` names every product). Full "
        "layers: by MLX's own attention → as they attend on a GPU. Every product is taken to read its weights, keys "
        "and values once, and kernels to pad rows to their tiles, as MLX's source says. Nothing ran.",
        "",
        f"| | tokens | weights, check | sliding layers | full layers, check | {DRAFTS} draft steps, weights "
        "| their full layer | whole round |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name in families:
        pair = networks(name)
        for context in CONTEXTS:
            old, new = (products(pair, context, before=before) for before in (True, False))
            if every:
                for part in ("draft", "check"):
                    for said, found in (("before", old), ("after", new)):
                        print(f"\n{name}, {context} tokens, {part}, {said}")
                        print("\n".join(map(str, found[part])))
            rounds = []
            for one in (old, new):
                drafts, check = one["draft"] * DRAFTS, one["check"]
                rounds.append(_sum(drafts + check, "weights", "sliding", "full"))
            drafting = new["draft"] * DRAFTS
            cells = [
                _cell(_sum(new["check"], "weights")),
                _cell(_sum(new["check"], "sliding")),
                _cell(_sum(old["check"], "full"), _sum(new["check"], "full")),
                _cell(_sum(drafting, "weights", "sliding")),
                _cell(_sum(old["draft"] * DRAFTS, "full"), _sum(drafting, "full")),
                _cell(*rounds),
            ]
            lines.append(f"| {name} | {context} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Record and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=FAMILIES, metavar="NAME")
    parser.add_argument("--list", action="store_true", help="print every product, too")
    parser.add_argument("--write", type=Path, metavar="FILE.md", help="put the table between its markers in this file")
    options = parser.parse_args()
    text = report(options.families, every=options.list)
    print(text)
    if options.write:
        write_section(options.write, "products", f"\n{text}\n", script="products.py")


if __name__ == "__main__":
    main()
