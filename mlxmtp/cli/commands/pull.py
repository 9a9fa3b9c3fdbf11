"""`mlxmtp pull`: download a model with its drafter."""

from __future__ import annotations

from typing import Annotated

import typer

from mlxmtp.cli.options import takes
from mlxmtp.cli.start import begin


@takes("pull", "... yes quiet no_color debug")
def pull(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Alias (e2b, 12b:8bit) or org/repo.")],
    revision: Annotated[
        str | None, typer.Option("--revision", metavar="REV", help="Branch, tag or commit of the target.")
    ] = None,
    draft: Annotated[bool, typer.Option("--draft/--no-draft", help="Get the drafter, too.")] = True,
    convert: Annotated[bool, typer.Option("--convert", help="Get the 16-bit weights and convert them here.")] = False,
) -> None:
    """Download a model with its drafter, or bring it up to date.

    \b
    Examples:
      mlxmtp pull e2b
      mlxmtp pull 12b:8bit -y
      mlxmtp pull mlx-community/gemma-4-e4b-it-4bit --revision main
      mlxmtp pull e2b:qat --convert

    Shows first what it costs on disk and in memory; asks only on a terminal. An interrupted download goes on where it
    stopped, sizes and hashes are checked, and the commit is pinned until the next pull. Files go to the Hugging Face
    cache (HF_HOME), which other tools share; HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE are honoured.

    With --convert an alias means Google's own weights, packed here as its variant says. For other settings see
    mlxmtp convert.
    """
    from mlxmtp.cli import obtain

    loaded, out = begin(ctx)
    try:
        if convert:
            from mlxmtp.app.conversion import ConversionRequest

            request = ConversionRequest(name, draft=draft, revision=revision, update=True)
            done = obtain.convert(loaded, out, request)
        else:
            done = obtain.fetch(loaded, out, name, revision=revision, draft=draft)
        if not done:
            out.line("Nothing was downloaded.")
            raise typer.Exit(1)
    finally:
        out.settle()
