"""The commands, and the options that stand before them."""

from typing import Annotated

import typer

from mlxmtp.cli.commands.ask import ask
from mlxmtp.cli.commands.bench import bench
from mlxmtp.cli.commands.chat import chat
from mlxmtp.cli.commands.config import app as config
from mlxmtp.cli.commands.connect import connect
from mlxmtp.cli.commands.doctor import doctor
from mlxmtp.cli.commands.map import map_
from mlxmtp.cli.commands.mcp import app as mcp
from mlxmtp.cli.commands.models import convert, ls, pull, rm, show
from mlxmtp.cli.commands.serve import serve
from mlxmtp.cli.commands.sessions import app as sessions
from mlxmtp.cli.options import LoneResume, takes

_HELP = """\
Gemma 4 with multi-token-prediction drafters: faster answers, the same text.

\b
Examples:
  mlxmtp chat
  mlxmtp ask "What is a drafter?"
  git diff | mlxmtp ask "Write a commit message"
  mlxmtp ask -f notes.txt -f todo.txt "What is missing?"
  mlxmtp pull e4b
  mlxmtp bench -m e4b
  mlxmtp convert e4b:qat
"""

app = typer.Typer(
    help=_HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich's help pages cost half a second of imports
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from mlxmtp import __version__

        typer.echo(f"mlxmtp {__version__}")
        raise typer.Exit


@app.callback()
@takes("", "version no_color debug")
def frame(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Options that stand before a command."""


app.command("chat", cls=LoneResume, short_help="A conversation in the terminal.")(chat)
app.command("ask", short_help="One answer, made for pipes.")(ask)
app.command("map", short_help="One prompt over many files, several at a time.")(map_)
app.command("bench", short_help="Speed with and without the drafter.")(bench)
app.command("serve", short_help="A local server: OpenAI, Anthropic, Ollama.")(serve)
app.command("connect", short_help="Settings of agents and editors for that server.")(connect)
app.command("ls", short_help="Models on this machine.")(ls)
app.command("list", hidden=True)(ls)
app.command("pull", short_help="Download a model with its drafter.")(pull)
app.command("convert", short_help="Published weights to MLX, target and drafter.")(convert)
app.command("show", short_help="What a model consists of and needs.")(show)
app.command("rm", short_help="Remove a model from the disk.")(rm)
app.add_typer(mcp, name="mcp", short_help="Tool servers for chat and ask.")
app.add_typer(sessions, name="sessions", short_help="Saved conversations.")
app.add_typer(config, name="config", short_help="The settings: show, path, edit.")
app.command("doctor", short_help="Check this machine.")(doctor)
