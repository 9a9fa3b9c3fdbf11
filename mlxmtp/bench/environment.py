"""Environment of a run: chip, memory, versions, power and heat, as far as the system tells without being root."""

import os
import platform
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from mlxmtp.machine.chip import this_machine
from mlxmtp.version import installed_version

_PACKAGES = ("mlxmtp", "mlx", "mlx-lm", "tokenizers")
_BUSY = 0.5  # load per core from which other programs disturb
_SUPPLIES = Path("/sys/class/power_supply")


@dataclass(frozen=True, slots=True)
class Conditions:
    """The part that changes while a run goes on; None is not known. `load` is the average number of busy programs."""

    power_source: str | None = None
    low_power_mode: bool | None = None
    thermal_pressure: str | None = None
    load: float | None = None


@dataclass(frozen=True, slots=True)
class Environment:
    """The machine and the versions of Python and of packages (None: run from source), before the run."""

    chip: str
    cores: int | None
    memory_bytes: int
    usable_bytes: int
    system: str
    architecture: str
    python: str
    versions: dict[str, str | None]
    conditions: Conditions = field(metadata={"inline": True})

    @property
    def cautions(self) -> list[str]:
        """Sentences that speak against measuring now."""
        now, cores = self.conditions, self.cores or 1
        found = []
        if now.load is not None and now.load >= _BUSY * cores:
            found.append(f"Other programs are busy (load {now.load:g} on {cores} cores), so the figures will spread.")
        if now.power_source == "battery":
            found.append("This machine runs on battery, which can slow it down: plug it in to measure.")
        if now.low_power_mode:
            found.append("Low power mode is on and slows this machine down: switch it off to measure.")
        if now.thermal_pressure not in (None, "none"):
            found.append(f"The machine is hot ({now.thermal_pressure}): let it cool, or measure with --cooldown 5.")
        return found


def environment() -> Environment:
    """Describe this machine as it is now."""
    machine = this_machine()
    versions = {package: installed_version(package, "") or None for package in _PACKAGES}
    memory, python = (machine.memory, machine.usable), (platform.machine(), platform.python_version())
    return Environment(machine.chip, os.cpu_count(), *memory, machine.system, *python, versions, conditions())


def conditions() -> Conditions:
    """Ask the system for power source, saving mode, heat and load."""
    if sys.platform == "darwin":
        power, therm = _output("pmset", "-g", "batt"), _output("pmset", "-g", "therm")
        return Conditions(power_source(power), low_power(_output("pmset", "-g")), thermal_pressure(therm), _load())
    return Conditions(_linux_power(), load=_load())


def power_source(output: str) -> str | None:
    """Return `AC` or `battery`, from `pmset -g batt`: Now drawing from 'AC Power'."""
    line = next((line for line in output.splitlines() if "drawing from" in line), "")
    return "AC" if "AC Power" in line else "battery" if "Battery" in line else None


def low_power(output: str) -> bool | None:
    """Tell from `pmset -g` if low power mode is on."""
    words = next((line.split() for line in output.splitlines() if line.split()[:1] == ["lowpowermode"]), [])
    return words[1] == "1" if len(words) > 1 else None


def thermal_pressure(output: str) -> str | None:
    """Return `none`, or the warnings of `pmset -g therm`: levels once there was one, on Intel a CPU_Speed_Limit."""
    lines = [line.strip() for line in output.splitlines()]
    limits = [line for line in lines if line.startswith("CPU_Speed_Limit") and not line.endswith("= 100")]
    levels = [line for line in lines if "warning level" in line.lower() and not line.startswith("Note: No")]
    return "; ".join([*levels, *limits]) or ("none" if lines else None)


def _output(*command: str) -> str:
    """Return the output of a small program of the system; empty if it is not there or does not answer."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _linux_power() -> str | None:
    """Read the power supplies that the kernel knows; most desktops and servers show none."""
    found: dict[str, str] = {}
    try:
        for supply in sorted(_SUPPLIES.iterdir()):
            kind = (supply / "type").read_text(encoding="utf-8").strip()
            state = supply / ("online" if kind == "Mains" else "status")
            found[kind] = state.read_text(encoding="utf-8").strip() if state.is_file() else ""
    except OSError:
        return None
    if found.get("Mains") == "1":
        return "AC"
    return "battery" if found.get("Battery") == "Discharging" else None


def _load() -> float | None:
    with suppress(OSError):
        return round(os.getloadavg()[0], 2)
    return None
