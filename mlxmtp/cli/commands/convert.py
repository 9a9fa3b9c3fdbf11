"""`mlxmtp convert`: published weights to MLX."""

from __future__ import annotations

from typing import Annotated

import typer

from mlxmtp.cli.options import takes
from mlxmtp.cli.start import begin


@takes("convert", "... yes quiet no_color debug")
def convert(
    ctx: typer.Context,
    src: Annotated[str, typer.Argument(metavar="SRC", help="Folder, alias (e2b, e2b:qat) or org/repo.")],
    dest: Annotated[
        str | None, typer.Argument(metavar="DEST", help="Folder to make; by default among the models.")
    ] = None,
    draft_model: Annotated[
        str | None, typer.Option("--draft-model", metavar="DRAFTER", help="The drafter: folder, alias or org/repo.")
    ] = None,
    q_bits: Annotated[int | None, typer.Option("--q-bits", metavar="N", help="4, 5, 6, 8; 16 packs nothing.")] = None,
    q_group_size: Annotated[
        int | None, typer.Option("--q-group-size", metavar="N", help="32, 64 or 128 values per scale.")
    ] = None,
    q_mode: Annotated[
        str | None, typer.Option("--q-mode", metavar="MODE", help="affine, mxfp4, mxfp8 or nvfp4.")
    ] = None,
    draft_bits: Annotated[
        int | None, typer.Option("--draft-bits", metavar="N", help="4, 8 or 16 for the drafter.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", metavar="TYPE", help="bfloat16, float16 or float32 for what is not packed.")
    ] = None,
    text_only: Annotated[bool, typer.Option("--text-only", help="Leave image and audio towers out.")] = False,
    compare: Annotated[bool, typer.Option("--compare/--no-compare", help="Compare the result with its source.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace the model at DEST.")] = False,
) -> None:
    """Convert published 16-bit weights to MLX: target and drafter as one model.

    \b
    Examples:
      mlxmtp convert e2b:qat
      mlxmtp convert ~/gemma-4-E4B-it --q-bits 6
      mlxmtp convert google/gemma-4-12B-it out/12b --q-mode mxfp4 --draft-bits 8

    Needs less than 0.5 GB of memory whatever the model, the comparison at the end apart: tensors are read, packed and
    written in slices. Interrupted, it leaves nothing that looks like a model, and the same command goes on where it
    stopped. The result also loads in mlx-lm and mlx-vlm; its drafter is the folder `drafter` inside.
    """
    from mlxmtp.app.conversion import ConversionRequest
    from mlxmtp.cli import obtain

    flags = {
        "bits": q_bits, "group_size": q_group_size, "mode": q_mode, "draft_bits": draft_bits, "dtype": dtype,
        "text_only": text_only or None,
    }  # fmt: skip
    loaded, out = begin(ctx)
    try:
        request = ConversionRequest(src, dest, draft_model, recipe=flags, force=force)
        if not obtain.convert(loaded, out, request, compare=compare):
            out.line("Nothing was converted.")
            raise typer.Exit(1)
    finally:
        out.settle()
