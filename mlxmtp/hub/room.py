"""Refusing to start what cannot fit, before its weights are read."""

from __future__ import annotations

from mlxmtp.errors import TooLarge
from mlxmtp.hub.fit import need, shown
from mlxmtp.hub.machine import this_machine
from mlxmtp.hub.registry import BUILT_IN
from mlxmtp.hub.store import Found, best_fit
from mlxmtp.models.config import FULL, read_config


def require_memory(
    found: Found,
    drafter: Found | None,
    tokens: int,
    *,
    force: bool = False,
    turns: bool = False,
    kv_bits: int | None = None,
) -> None:
    """Raises TooLarge if a conversation of `tokens` tokens cannot run here; `force` lets it try.

    `turns`: it has more than one turn, so places to go back to are kept. `kv_bits`: `--kv-bits`. Computed from
    configurations alone, in a millisecond. Raises LoadError for a folder that holds no model and for `kv_bits` that it
    cannot have.
    """
    if force:
        return
    config = read_config(found.folder)
    drafting = None if drafter is None else read_config(drafter.folder)
    needed = need(config, drafting, tokens, turns=turns, kv_bits=kv_bits)
    machine = this_machine()
    if needed.total <= machine.room:
        return
    weights = needed.target + needed.drafter
    if weights < 0.9 * machine.room:
        advice = f"It is the {tokens} tokens that are too many: shorten the prompt or --max-tokens"
        if kv_bits is None and config.head_dim(FULL) % 32 == 0:
            packed = {bits: need(config, drafting, tokens, turns=turns, kv_bits=bits).total for bits in (8, 4)}
            fitting = next((bits for bits, total in packed.items() if total <= machine.room), None)
            advice += "" if fitting is None else f", take --kv-bits {fitting}"
    else:
        best = best_fit(machine.memory)
        advice = f"{BUILT_IN if best is None else best.name} fits: take it with -m"
    raise TooLarge(
        f"Model '{found.name}' needs {shown(needed.total)} of memory; of the {shown(machine.memory)} here "
        f"{shown(machine.room)} can be used. {advice}, or try anyway with --force."
    )
