"""`mlxmtp config`: show the settings, name their file, open it in an editor."""

import subprocess
import sys
from json import dumps
from typing import Any

from typer import Context, Typer

from mlxmtp.cli.options import Json, begin, takes
from mlxmtp.cli.terminal.output import Output
from mlxmtp.environment import editor
from mlxmtp.errors import MlxmtpError, UsageError
from mlxmtp.settings import TABLE, Loaded, find_places, load_settings, table_of

_TEMPLATE = """\
# Settings of mlxmtp. Keys are the names of the flags; a flag or an environment variable wins over this file.
# model = "e4b"
# temp = 0.7
# max_tokens = 1024
# num_draft_tokens = "auto"

[aliases]
# work = "12b:qat"

[prompts]
# review = "You review code. Name bugs first."     # ask -s @review

# [endpoint.team]                  # -m team; docs/router.md has more, and the router behind -m auto
# url = "https://gpu.example.org/v1"
# key_env = "TEAM_KEY"             # the name of a variable that holds the key
"""

app = Typer(invoke_without_command=True, no_args_is_help=False)


@app.callback()
@takes("config", "... no_color debug")
def config(ctx: Context, json: Json = False) -> None:
    """Show, find or edit the settings.

    \b
    Examples:
      mlxmtp config
      mlxmtp config edit
      cat "$(mlxmtp config path)"
    """
    if ctx.invoked_subcommand is None:
        _show(ctx, json=json)
    elif json:
        raise UsageError("--json stands behind the command: mlxmtp config show --json.")


@app.command()
@takes("config show", "... no_color debug")
def show(ctx: Context, json: Json = False) -> None:
    """What is set, and by whom; everything else is the model's own choice or a default."""
    _show(ctx, json=json)


@app.command()
@takes("config path", "no_color debug")
def path(ctx: Context) -> None:
    """Where the config file is, whether or not it exists."""
    Output.standard().write(f"{find_places().config}\n")


@app.command()
@takes("config edit", "no_color debug")
def edit(ctx: Context) -> None:
    """Open the config file in VISUAL, EDITOR or vi, and check it afterwards."""
    out = Output.standard()
    if sys.stdin is None or not (sys.stdin.isatty() and out.terminal):
        raise UsageError("An editor needs a terminal: change the file that `mlxmtp config path` names.")
    file = find_places().config
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            file.write_text(_TEMPLATE, encoding="utf-8")
    except OSError as error:
        raise MlxmtpError(f"{file} cannot be written: {error.strerror or error}.") from error
    command = [*editor(), str(file)]
    try:
        subprocess.run(command, check=True)
    except FileNotFoundError as error:
        raise MlxmtpError(f"The editor '{command[0]}' is not installed: set VISUAL or EDITOR.") from error
    except OSError as error:
        raise MlxmtpError(
            f"The editor '{command[0]}' cannot be run: {error.strerror}. Set VISUAL or EDITOR."
        ) from error
    except subprocess.CalledProcessError as error:
        raise MlxmtpError(f"The editor '{command[0]}' ended with code {error.returncode}.") from error
    from mlxmtp.app.endpoints import endpoints_of
    from mlxmtp.app.router import rules_of

    loaded = load_settings({})  # a bad value is refused here, with its own sentence
    for warning in loaded.warnings:
        out.line(warning)
    endpoints = endpoints_of(loaded)
    if loaded.router or loaded.skills:
        rules_of(loaded, endpoints)


def _show(ctx: Context, *, json: bool) -> None:
    loaded, out = begin(ctx, repairs=True)
    chosen = {name: value for name, value in loaded.settings.said().items() if TABLE[name].in_config}
    if json:
        from mlxmtp.cli.terminal.presenters import as_json

        shown = {"file": str(loaded.places.config), "settings": chosen, "from": dict(loaded.origins)}
        shown |= {"aliases": dict(loaded.aliases), "prompts": dict(loaded.prompts)}
        out.write(as_json({**shown, "tables": [[title, said] for title, said in _nested(loaded)]}))
        return
    exists = "" if loaded.places.config.is_file() else " (not there yet)"
    out.write(f"# {loaded.places.config}{exists}\n")
    for key, value in chosen.items():
        out.write(f"{key} = {_toml(value)}  # {loaded.origins[key]}\n")
    named = [
        (f"[{name}]", table) for name, table in (("aliases", loaded.aliases), ("prompts", loaded.prompts)) if table
    ]
    for title, table in [*named, *_nested(loaded)]:
        out.write(f"\n{title}\n")
        for key, value in table.items():
            bare = key.isascii() and key.replace("-", "").replace("_", "").isalnum()
            out.write(f"{key if bare else _toml(key)} = {_toml(value)}\n")


def _nested(loaded: Loaded) -> list[tuple[str, dict[str, Any]]]:
    """Return the titles and known keys of endpoints, router and skills; others may hold what nobody should see."""
    from mlxmtp.app.endpoints import Endpoint
    from mlxmtp.app.router import Router, Skill

    found: list[tuple[str, Any, type]] = [
        (f"[endpoint.{name}]", said, Endpoint) for name, said in loaded.endpoints.items()
    ]
    found += [("[router]", loaded.router, Router)] if loaded.router else []
    found += [("[[skill]]", said, Skill) for said in loaded.skills]
    return [
        (title, {key: value for key, value in said.items() if key.replace("-", "_") in table_of(kind)})
        for title, said, kind in found
        if isinstance(said, dict)
    ]


def _toml(value: object) -> str:
    """Return a value as TOML writes it; JSON's strings, numbers and lists are TOML's."""
    return dumps(value, ensure_ascii=False)
