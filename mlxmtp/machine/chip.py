"""This machine: its chip, its memory and the memory's bandwidth."""

import json
import platform
import subprocess
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from mlxmtp.files import write_atomically
from mlxmtp.machine.memory import machine_memory, usable

# GB/s of unified memory by generation: base, Pro, Max, Ultra; the smaller where there are two, 0 where there is none.
_BANDWIDTH = {
    1: (68, 200, 400, 800), 2: (100, 200, 400, 800), 3: (100, 150, 300, 819), 4: (120, 273, 410, 0),
    5: (153, 300, 460, 0),
}  # fmt: skip
_TIERS = ("", "Pro", "Max", "Ultra")
FILE = "device.json"  # in the data folder


@dataclass(frozen=True, slots=True)
class Machine:
    """A computer, as its system describes it."""

    system: str
    chip: str
    generation: int | None  # 1 to 5 for M1 to M5, None elsewhere
    tier: str
    memory: int  # bytes
    usable: int  # bytes that a model may take
    wired_limit: int | None  # bytes, set by the user; None: the system's own

    @property
    def bandwidth(self) -> float | None:
        """Bytes per second of memory, from a table; None for a chip that is not in it."""
        row = _BANDWIDTH.get(self.generation or 0)
        speed = row[_TIERS.index(self.tier)] if row is not None else 0
        return speed * 1e9 if speed else None

    def as_told(self, folder: Path) -> "Machine":
        """Return it with the limit that its device named to an earlier process (`keep`); one set by the user stays.

        `folder`: the data folder. The device is asked through MLX, which lists and reports do without.
        """
        try:
            table = json.loads((folder / FILE).read_text(encoding="utf-8"))
            told = table["usable"] if table["of"] == self._identity else None
        except (OSError, ValueError, TypeError, KeyError):
            return self
        if type(told) is int and 0 < told <= self.memory and self.wired_limit is None:
            return replace(self, usable=told)
        return self

    def keep(self, folder: Path, limit: int | None) -> None:
        """Write what the device lets a model take, in bytes, for later processes; None is nothing new."""
        if limit is None or self.wired_limit is not None or limit == self.as_told(folder).usable:
            return
        with suppress(OSError):  # a full or read-only disk: the next process guesses again
            text = json.dumps({"of": self._identity, "usable": limit}, indent=1) + "\n"
            write_atomically(folder / FILE, text, parents=True)

    @property
    def _identity(self) -> dict[str, Any]:
        return {"system": self.system, "chip": self.chip, "memory": self.memory}


@cache
def this_machine() -> Machine:
    """Ask the system for its chip and memory."""
    memory = machine_memory()
    if platform.system() != "Darwin":
        return Machine(*_linux(), None, "", memory, usable(memory), None)
    chip = _sysctl("machdep.cpu.brand_string") or platform.machine()
    generation, tier = parse_chip(chip)
    limit = int(_sysctl("iogpu.wired_limit_mb") or 0) * 2**20 or None
    # A Python built for an old SDK takes every macOS for 10.16.
    version = _sysctl("kern.osproductversion") or platform.mac_ver()[0]
    return Machine(f"macOS {version}", chip, generation, tier, memory, limit or usable(memory), limit)


def parse_chip(name: str) -> tuple[int | None, str]:
    """Return generation and tier: 4 and `Pro` for `Apple M4 Pro`."""
    for word, tier in pairwise([*name.split(), ""]):
        if word[:1] == "M" and word[1:].isdecimal():
            return int(word[1:]), tier if tier in _TIERS else ""
    return None, ""


def _sysctl(name: str) -> str:
    try:
        done = subprocess.run(["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def _linux() -> tuple[str, str]:  # system and chip
    system, chip = platform.system(), platform.machine()
    with suppress(OSError):
        system = platform.freedesktop_os_release().get("PRETTY_NAME", system)
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model")))
        chip = next(names, chip)
    return system, chip
