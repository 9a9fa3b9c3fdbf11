"""Counting what a traced computation would launch on a GPU, without one.

The graph is traced on the CPU and written by ``mx.export_to_dot``. Two things differ from Metal and are put right:

* RMS norm, rotary embedding, attention and norm, sum and norm are one kernel each on a GPU, where the CPU takes several
  (the last in `models/fused.py`, where it proves itself). They are traced as one opaque node (``Depends``), which,
  like them, nothing is fused with. Attention only where MLX's Metal backend has a kernel for it (`metal.has_kernel`);
  elsewhere, heads of 512 among it, the operations in its place are counted.
* Nodes are not launches: views of memory launch nothing, a concatenation copies each of its inputs, a write at a place
  known to the device first computes that place.

What becomes of a node on Metal was read in MLX's source, not observed.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxmtp.models import device, fused, metal
from scripts.benchmarks.graphs.narrow import HEAD

VIEWS = frozenset(
    "AsStrided Broadcast BroadcastAxes Depends ExpandDims Flatten NumberOfElements Reshape Slice Split "
    "Squeeze StopGradient Transpose Unflatten View".split()
)
_NODE = re.compile(r'^\{ (\d+) \[label ="(\w+)"')
_INTO = re.compile(r'^"(\w+)" -> (\d+)$')
_OUT_OF = re.compile(r'^(\d+) -> "(\w+)"$')


@dataclass(frozen=True, slots=True)
class Count:
    """`nodes` by name as MLX calls them; `launches` by kind, views left out."""

    nodes: Counter[str]
    launches: Counter[str]

    @property
    def operations(self) -> int:
        """Nodes of the graph."""
        return self.nodes.total()

    @property
    def total(self) -> int:
        """Kernels."""
        return self.launches.total()


def count(run: Callable[[], Sequence[mx.array]], rows: int) -> Count:
    """What the arrays that `run` returns would launch; `rows` of a pass decide whether a turned result is copied."""
    with as_on_a_gpu() as opaque, tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "graph.dot"
        mx.export_to_dot(str(file), *run())
        graph = _Graph(file.read_text())
    nodes = Counter(graph.names.values())
    if nodes["Depends"] != opaque.total():
        raise SystemExit(f"{opaque.total()} opaque operations were traced and {nodes['Depends']} are in the graph")
    launches = Counter(opaque)
    for node, name in graph.names.items():
        launches[_kind(name)] += _weight(graph, node, name, rows)
    del nodes["Depends"]
    return Count(nodes + opaque, +launches)


def _kind(name: str) -> str:
    return "fused elementwise" if name.startswith("Compiled") else name


def _weight(graph: _Graph, node: str, name: str, rows: int) -> int:
    if name == "Concatenate":
        return len(graph.inputs[node])
    if name == "DynamicSliceUpdate":
        return 2
    if name == "Reshape" and rows > 1:  # of a transposed array: a copy
        return sum(graph.names.get(graph.makers.get(array, ""), "") == "Transpose" for array in graph.inputs[node])
    return 0 if name in VIEWS else 1


class _Graph:
    """Nodes by id with their names, the arrays that go into each, and the node that makes each array."""

    def __init__(self, dot: str) -> None:
        self.names: dict[str, str] = {}
        self.inputs: dict[str, list[str]] = {}
        self.makers: dict[str, str] = {}
        for line in dot.splitlines():
            if found := _NODE.match(line):
                self.names[found[1]] = found[2]
                self.inputs.setdefault(found[1], [])
            elif found := _INTO.match(line):
                self.inputs.setdefault(found[2], []).append(found[1])
            elif found := _OUT_OF.match(line):
                self.makers[found[2]] = found[1]


@contextmanager
def as_on_a_gpu() -> Iterator[Counter[str]]:
    """Traces as on Metal while it lasts; yields the number of operations that were made opaque, by name."""
    opaque: Counter[str] = Counter()
    norm, rope, attention, on_cpu = mx.fast.rms_norm, mx.fast.rope, mx.fast.scaled_dot_product_attention, device.on_cpu
    fast: Any = mx.fast
    ours = ("usable", "in_one_kernel", "chooses", "chosen_in_one_kernel")
    sizes, plain = metal.HEADS, {name: getattr(fused, name) for name in ours}

    def hide(name: str, x: mx.array, *others: Any) -> mx.array:
        opaque[name] += 1
        return mx.depends([x], [other for other in others if isinstance(other, mx.array)])[0]

    def attended(queries: mx.array, keys: mx.array, values: mx.array, *, scale: float, mask: Any, **_: Any) -> mx.array:
        _, heads, rows, dim = queries.shape
        if metal.has_kernel(rows, heads // keys.shape[1], dim):
            return hide("attention", queries, keys, values, mask)
        return attention(queries, keys, values, scale=scale, mask=mask)

    def added(
        h: mx.array, x: mx.array, weight: Any, eps: float, before: Any, scale: Any, following: Sequence[mx.array]
    ) -> tuple[mx.array, list[mx.array]]:
        opaque["norm, sum and norm"] += 1
        read = [one for one in (x, weight, before, scale, *following) if one is not None]
        y, *normed = mx.depends([h] * (1 + len(following)), read)
        return y, normed

    def chosen(scores: mx.array, k: int, scale: mx.array) -> tuple[mx.array, mx.array]:
        opaque["choice of experts"] += 1
        places, weights = (mx.zeros((len(scores), k), dtype) for dtype in (mx.uint32, scores.dtype))
        mx.eval(places, weights)
        return tuple(mx.depends([places, weights], [scores, scale]))

    for name, stand_in in zip(ours, ((lambda *_: True), added, (lambda *_: True), chosen), strict=True):
        setattr(fused, name, stand_in)
    fast.rms_norm = lambda x, weight, eps: hide("RMS norm", x, weight)
    fast.rope = lambda x, *_, offset, freqs=None, **__: hide("rotary embedding", x, offset, freqs)
    fast.scaled_dot_product_attention = attended
    device.on_cpu, metal.HEADS = (lambda: False), frozenset({HEAD})
    try:
        yield opaque
    finally:
        fast.rms_norm, fast.rope, fast.scaled_dot_product_attention = norm, rope, attention
        device.on_cpu, metal.HEADS = on_cpu, sizes
        for name, own in plain.items():
            setattr(fused, name, own)
