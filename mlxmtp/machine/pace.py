"""Pace of a machine: bytes per second that products read, and how much longer a few rows take than one.

What `doctor --check` measured here comes first, then what others measured on such a chip.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxmtp.files import write_atomically
from mlxmtp.machine.chip import Machine, this_machine
from mlxmtp.machine.memory import computes_on_cpu
from mlxmtp.version import installed_version

EFFICIENCY = 0.7  # of the bandwidth, reached by kernels that read weights
FILE = "machine.json"  # in the data folder

_ROW_BY_ROW = {1: 1.0, 4: 2.4, 5: 2.9, 6: 4.0}
_BY_FIVES = {1: 1.0, 2: 1.0, 3: 1.13, 4: 1.28, 5: 1.57, 6: 2.04, 8: 2.5, 9: 3.14, 10: 3.94}
ROWS: Mapping[int, Mapping[int, float]] = {
    1: _ROW_BY_ROW, 2: _ROW_BY_ROW, 3: _BY_FIVES,
    4: {1: 1.0, 2: 1.0, 3: 1.13, 4: 1.43, 5: 1.75, 6: 2.07, 8: 2.84, 10: 4.5},
    5: {1: 1.0, 3: 1.12, 5: 1.48, 8: 2.25, 12: 3.18},
}  # fmt: skip
"""Time of 4-bit products by rows, in those of one row, by generation of the chip; others measured them.

From M3 on weights are read once for up to five rows: M3 Max (MLX's pull request 3863), M4 Pro (issues 3852, 3839), M5
Max (pull request 3791, a whole model). M1 and M2 take rows one by one, and from six on a kernel made for 32: derived
from an M1 Ultra with the 31B (18 tokens per second became 14 to 17 with three drafts, 2.2 of a round).
"""


@dataclass(frozen=True, slots=True)
class Products:
    """`reach` bytes per second are read by products; `rows`: time of so many rows in that of one, straight between."""

    reach: float
    rows: Mapping[int, float]

    def cost(self, rows: int) -> float:
        """Return the time of products of so many rows, in those of one."""
        known = sorted(self.rows)
        high = next((n for n in known if n >= rows), known[-1])
        low = max((n for n in known if n <= rows), default=high)
        if low == high:
            return self.rows[high]
        return self.rows[low] + (self.rows[high] - self.rows[low]) * (rows - low) / (high - low)


@dataclass(frozen=True, slots=True)
class Pace:
    """Products with quantized and with plain weights; `cpu`: in float32, and drafters stay as they are stored."""

    quantized: Products
    plain: Products
    cpu: bool = False

    @classmethod
    def of(cls, machine: Machine) -> "Pace | None":
        """Return what others measured on such a chip, reading as much of its bandwidth as is usual."""
        curve = ROWS.get(machine.generation or 0)
        if machine.bandwidth is None or curve is None:
            return None
        products = Products(machine.bandwidth * EFFICIENCY, curve)
        return cls(products, products)

    def products(self, *, quantized: bool) -> Products:
        return self.quantized if quantized else self.plain


@dataclass(frozen=True, slots=True)
class Measured:
    """Results of `doctor --check`: the pace of this machine, and whether texts can be exact."""

    pace: Pace
    exact: bool

    def save(self, folder: Path) -> None:
        """Write them for later processes. Raises OSError."""
        products = {name: {"reach": one.reach, "rows": {str(n): cost for n, cost in one.rows.items()}}
                    for name, one in (("quantized", self.pace.quantized), ("plain", self.pace.plain))}  # fmt: skip
        text = json.dumps({"of": _here(), **products, "exact": self.exact}, indent=1) + "\n"
        write_atomically(folder / FILE, text, parents=True)


def measured(folder: Path) -> Measured | None:
    """Return what was measured here with this chip and MLX; None if nothing was, or the file is damaged."""
    try:
        table = json.loads((folder / FILE).read_text(encoding="utf-8"))
        here = _here()
        if table["of"] != here:
            return None
        pace = Pace(_products(table["quantized"]), _products(table["plain"]), here["cpu"])
        return Measured(pace, bool(table["exact"]))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def pace_here(folder: Path) -> Pace | None:
    """Return the pace of this machine: as measured, else of its kind of chip; None if neither is known.

    `folder`: the data folder.
    """
    return pace_of(measured(folder))


def pace_of(found: Measured | None) -> Pace | None:
    """Return the pace that was measured, else that of this machine's kind of chip; None if neither is known."""
    return Pace.of(this_machine()) if found is None else found.pace


def _here() -> dict[str, Any]:
    return {"chip": this_machine().chip, "mlx": installed_version("mlx"), "cpu": computes_on_cpu()}


def _products(table: Any) -> Products:
    rows = {int(n): float(cost) for n, cost in table["rows"].items()}
    reach = float(table["reach"])
    if not 0 < reach < 1e15 or not rows or not all(n > 0 and 0 < cost < 1e3 for n, cost in rows.items()):
        raise ValueError("no such machine")
    return Products(reach, rows)
