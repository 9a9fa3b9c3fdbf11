"""Refusing to start what cannot fit, before its weights are read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlxmtp.errors import TooLarge
from mlxmtp.hub.registry import BUILT_IN
from mlxmtp.hub.store import Found, best_fit
from mlxmtp.machine.chip import this_machine
from mlxmtp.machine.memory import need
from mlxmtp.models.config import FULL, read_config
from mlxmtp.units import format_bytes

if TYPE_CHECKING:
    from mlxmtp.engine.model import Model
    from mlxmtp.engine.params import Params
    from mlxmtp.engine.tokenizer import Tokenizer
    from mlxmtp.hub.store import Found
    from mlxmtp.settings import Settings


def answer_params(settings: Settings) -> Params:
    """Return what the settings say about answering."""
    from mlxmtp.engine.params import Params

    return Params(**settings.of_answer())


def read_tokenizer(found: Found) -> Tokenizer:
    """The text side of a model. Raises LoadError."""
    from mlxmtp.engine.tokenizer import Tokenizer

    return Tokenizer.load(found.folder)


def read_model(found: Found, drafter: Found | None, tokenizer: Tokenizer, settings: Settings) -> Model:
    """Target and drafter in memory. Raises LoadError."""
    from mlxmtp.engine.model import Model

    return Model.load(
        found.folder,
        None if drafter is None else drafter.folder,
        name=found.name,
        drafter_name=None if drafter is None else drafter.name,
        draft_bits=settings.draft_bits,
        kv_bits=settings.kv_bits,
        tokenizer=tokenizer,
    )


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
    if needed.total <= machine.usable:
        return
    weights = needed.target + needed.drafter
    if weights < 0.9 * machine.usable:
        advice = f"It is the {tokens} tokens that are too many: shorten the prompt or --max-tokens"
        if kv_bits is None and config.head_dim(FULL) % 32 == 0:
            packed = {bits: need(config, drafting, tokens, turns=turns, kv_bits=bits).total for bits in (8, 4)}
            fitting = next((bits for bits, total in packed.items() if total <= machine.usable), None)
            advice += "" if fitting is None else f", take --kv-bits {fitting}"
    else:
        best = best_fit(machine.memory)
        advice = f"{BUILT_IN if best is None else best.name} fits: take it with -m"
    raise TooLarge(
        f"Model '{found.name}' needs {format_bytes(needed.total)} of memory; of the "
        f"{format_bytes(machine.memory)} here {format_bytes(machine.usable)} can be used. "
        f"{advice}, or try anyway with --force."
    )
