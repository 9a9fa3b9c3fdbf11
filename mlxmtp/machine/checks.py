"""Results of checks of this machine, as `doctor` shows them."""

from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["ok", "note", "bad"]


@dataclass(frozen=True, slots=True)
class Check:
    """One result, with `advice` unless all is fine. A `note` is no fault. `figures` are what was measured, for JSON."""

    what: str
    verdict: Verdict
    found: str
    advice: str | None = None
    figures: dict[str, Any] | None = None
