"""Where a run took place: chip, memory, versions, power and heat, as far as the system tells without being root."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mlxmtp.machine.chip import this_machine

_PACKAGES = ("mlxmtp", "mlx", "mlx-lm", "tokenizers")
_BUSY = 0.5  # load per core from which other programs disturb
_SUPPLIES = Path("/sys/class/power_supply")


def environment() -> dict[str, Any]:
    """The block of the report. What is not known is None; `load` is the average number of busy programs before."""
    machine = this_machine()
    return {
        "chip": machine.chip,
        "cores": os.cpu_count(),
        "memory_bytes": machine.memory,
        "usable_bytes": machine.usable,
        "system": machine.system,
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        **conditions(),
    }


def conditions() -> dict[str, Any]:
    """What changes while a run goes on: power source, saving mode, heat, other programs."""
    if sys.platform == "darwin":
        power = power_source(_said("pmset", "-g", "batt"))
        saving = low_power(_said("pmset", "-g"))
        heat = thermal_pressure(_said("pmset", "-g", "therm"))
    else:
        power, saving, heat = _linux_power(), None, None
    return {"power_source": power, "low_power_mode": saving, "thermal_pressure": heat, "load": _load()}


def cautions(block: Mapping[str, Any]) -> list[str]:
    """What speaks against measuring now, as sentences; `block` is that of `environment`."""
    found = []
    load, cores = block["load"], block["cores"] or 1
    if load is not None and load >= _BUSY * cores:
        found.append(f"Other programs are busy (load {load:g} on {cores} cores), so the figures will spread.")
    if block["power_source"] == "battery":
        found.append("This machine runs on battery, which can slow it down: plug it in to measure.")
    if block["low_power_mode"]:
        found.append("Low power mode is on and slows this machine down: switch it off to measure.")
    if block["thermal_pressure"] not in (None, "none"):
        found.append(f"The machine is hot ({block['thermal_pressure']}): let it cool, or measure with --cooldown 5.")
    return found


def power_source(said: str) -> str | None:
    """`AC` or `battery`, from `pmset -g batt`: Now drawing from 'AC Power'."""
    line = next((line for line in said.splitlines() if "drawing from" in line), "")
    if "AC Power" in line:
        return "AC"
    return "battery" if "Battery" in line else None


def low_power(said: str) -> bool | None:
    """Whether low power mode is on, from `pmset -g`."""
    words = next((line.split() for line in said.splitlines() if line.split()[:1] == ["lowpowermode"]), [])
    return words[1] == "1" if len(words) > 1 else None


def thermal_pressure(said: str) -> str | None:
    """`none`, or what `pmset -g therm` warns of.

    It prints levels only once there was one, and on Intel a CPU_Speed_Limit in per cent.
    """
    lines = [line.strip() for line in said.splitlines()]
    limits = [line for line in lines if line.startswith("CPU_Speed_Limit") and not line.endswith("= 100")]
    levels = [line for line in lines if "warning level" in line.lower() and not line.startswith("Note: No")]
    if limits or levels:
        return "; ".join([*levels, *limits])
    return "none" if lines else None


def _said(*command: str) -> str:
    """What a small program of the system prints; empty if it is not there or does not answer."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _linux_power() -> str | None:
    """From the power supplies that the kernel knows; most desktops and servers show none."""
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
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
