"""From flags to settings and streams: the first line of every command about models."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import typer

from mlxmtp.cli.terminal.output import Look, Output
from mlxmtp.settings import Loaded, Settings, load_settings


def begin(ctx: typer.Context, **flags: object) -> tuple[Loaded, Output]:
    """Settings after precedence, and the streams to write to; warnings of the config file are said."""
    outer: dict[str, Any] = ctx.obj or {}
    # A flag that was not given must not hide the one before the command: `mlxmtp --no-color ls`.
    loaded = load_settings({**_given(outer), **_given(flags)})
    settings = loaded.settings
    out = Output.standard(Look(quiet=bool(settings.quiet), color=not settings.no_color, dumb=loaded.dumb_terminal))
    for warning in loaded.warnings:
        out.note(warning)
    return loaded, out


def setting_flags(ctx: typer.Context) -> dict[str, object]:
    """The command's flags that are settings, given or not, by the names of the fields."""
    names = {item.name for item in fields(Settings)}
    return {key: value for key, value in ctx.params.items() if key in names}


def _given(flags: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in flags.items() if value is not None}


def can_ask(out: Output) -> bool:
    """Whether somebody is there to answer a question: both stdin and stderr are terminals."""
    return sys.stdin is not None and sys.stdin.isatty() and out.error_terminal
