"""From flags to settings and streams: the first line of every command about models."""

from __future__ import annotations

import sys
from typing import Any

import typer

from mlxmtp.cli.output import Look, Output
from mlxmtp.settings import Loaded, load_settings


def begin(ctx: typer.Context, **flags: object) -> tuple[Loaded, Output]:
    """Settings after precedence, and the streams to write to; warnings of the config file are said."""
    outer: dict[str, Any] = ctx.obj or {}
    given = {key: value for key, value in {**outer, **flags}.items() if value is not None}
    loaded = load_settings(given)
    settings = loaded.settings
    out = Output.standard(Look(quiet=bool(settings.quiet), color=not settings.no_color, dumb=loaded.dumb_terminal))
    for warning in loaded.warnings:
        out.note(warning)
    return loaded, out


def can_ask(out: Output) -> bool:
    """Whether somebody is there to answer a question: both stdin and stderr are terminals."""
    return sys.stdin is not None and sys.stdin.isatty() and out.error_terminal
