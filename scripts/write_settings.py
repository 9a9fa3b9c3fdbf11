#!/usr/bin/env python3
"""Write docs/settings.md from the table of settings in mlxmtp/settings.py.

.venv/bin/python scripts/write_settings.py
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mlxmtp.app.endpoints import Endpoint  # noqa: E402
from mlxmtp.app.router import Router, Skill  # noqa: E402
from mlxmtp.settings import EVERY, TABLE, Setting, table_of  # noqa: E402

PAGE = ROOT / "docs" / "settings.md"
HEAD = """\
# Settings

<!-- scripts/write_settings.py writes this page from the table in mlxmtp/settings.py -->

A flag wins over its environment variable, that over its key in the config file (`mlxmtp config path` names it); what
nobody sets is the model's own choice (its `generation_config.json`) or the default. `mlxmtp config` shows what is set
and by whom. Keys may be written with `-` or `_`; a switch is `true` or `false` there. `/set` changes a setting within
`mlxmtp chat`. Flags of one command alone stand in its `--help`.

The config is in `~/.config/mlxmtp`, conversations (plain text), the history of `chat` and conversions are in
`~/.local/share/mlxmtp`, caches of prompts in `~/.cache/mlxmtp`, downloaded models in the Hugging Face cache. XDG's
variables move the first three, `$MLXMTP_HOME` puts them into one folder. Two more tables of the config hold names of
one's own:

```toml
[aliases]
fast = "mlx-community/gemma-4-E2B-it-4bit"    # mlxmtp ask -m fast

[prompts]
terse = "Answer in one sentence."             # mlxmtp ask -s @terse
```
"""
NESTED = (Endpoint, Router, Skill)
COLUMNS = ("Setting", "Flag", "Environment", "Must be", "Default", "Flag of", "/set", "Meaning")


def page() -> str:
    """Return the whole page."""
    rows = [COLUMNS, ("---",) * len(COLUMNS), *(_row(name, one) for name, one in TABLE.items())]
    return HEAD + "\n" + _table(rows) + "".join(map(_nested, NESTED))


def _nested(kind: type) -> str:
    """Return the keys of a table in the config file."""
    title = {Endpoint: "[endpoint.NAME]", Router: "[router]", Skill: "[[skill]]"}[kind]
    rows = [(f"`{name}`", one.rule.wanted, one.default, one.help) for name, one in table_of(kind).items()]
    head = [("Key", "Must be", "Default", "Meaning"), ("---",) * 4]
    return f"\n## {title}\n\n[router.md](router.md) has examples.\n\n{_table([*head, *rows])}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _row(name: str, one: Setting) -> tuple[str, ...]:
    return (
        f"`{name}`" if one.in_config else f"{name} (no key)",
        f"`{one.usage}`".replace("|", r"\|") if one.usage else "",
        f"`{one.environment}`" if one.environment else "",
        one.rule.wanted,
        one.default,
        "all" if one.commands == EVERY else ", ".join(one.commands),
        "yes" if one.in_chat else "",
        one.help,
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
