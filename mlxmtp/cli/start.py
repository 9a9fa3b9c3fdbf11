"""From the flags that were given to settings and streams: the first line of every command."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from mlxmtp.cli.terminal.output import Look, Output
from mlxmtp.settings import Loaded, load_settings

if TYPE_CHECKING:
    import typer


def begin(ctx: typer.Context) -> tuple[Loaded, Output]:
    """Return settings after precedence and the streams to write to; warnings of the config file are said."""
    loaded = load_settings(ctx.ensure_object(dict))
    settings = loaded.settings
    out = Output.standard(Look(quiet=bool(settings.quiet), color=not settings.no_color, dumb=loaded.dumb_terminal))
    for warning in loaded.warnings:
        out.note(warning)
    return loaded, out


def can_ask(out: Output) -> bool:
    """Say whether somebody is there to answer a question: both stdin and stderr are terminals."""
    return sys.stdin is not None and sys.stdin.isatty() and out.error_terminal
