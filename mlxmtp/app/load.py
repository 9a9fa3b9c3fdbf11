"""`mlxmtp.load`: a name or a folder in, a `Model` out. The one place that joins names (hub) and networks (engine)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from mlxmtp.engine.model import Model


def load(
    target: str | Path,
    drafter: str | Path | Literal[False] | None = None,
    *,
    draft_bits: int | None = None,
    kv_bits: int | None = None,
) -> Model:
    """Load a target and its drafter.

    `target` and `drafter` are an alias (`pocket`, `e2b`, `12b:8bit`), `org/repo`, or the path of a folder.
    `drafter=None` takes the paired one: for a name the drafter published for it, for a folder the one in or next
    to it (`drafter`, or the folder's own name with `-assistant`); where there is none, the model decodes without.
    `drafter=False` never loads one. `draft_bits` quantizes the drafter while it is read (None: by its size).
    `kv_bits` 4 or 8 keeps keys and values of full-attention layers in so many bits (None: as they are computed).

    A folder without tokenizer.json is fine for `Model.rounds`; `Model.stream` then says what is missing.
    Raises ModelNotFound when a name is not on this machine, LoadError when files cannot be used together.
    """
    from mlxmtp.engine.model import Model
    from mlxmtp.hub.store import Store
    from mlxmtp.settings import load_settings

    loaded = load_settings({})
    store = Store(loaded.places, loaded.aliases)
    found = store.resolve(str(target))
    paired = store.drafter_for(found, None if drafter is None else drafter if drafter is False else str(drafter))
    return Model.load(
        found.folder,
        None if paired is None else paired.folder,
        name=found.name,
        drafter_name=None if paired is None else paired.name,
        draft_bits=draft_bits,
        kv_bits=kv_bits,
    )
