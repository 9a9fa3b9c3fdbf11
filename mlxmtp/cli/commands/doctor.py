"""`mlxmtp doctor`: checks of this machine."""

from dataclasses import asdict
from typing import Annotated

from typer import Context, Exit, Option

from mlxmtp.cli.options import Json, begin, takes

_MARKS = {"ok": ("✓", 32), "note": ("!", 33), "bad": ("✗", 31)}


@takes("doctor", "... no_color debug")
def doctor(
    ctx: Context,
    check: Annotated[
        bool, Option("--check", help="Compute as well: networks, drafting, speed. Takes up to a minute.")
    ] = False,
    json: Json = False,
) -> None:
    """Check chip, memory, versions, disk, hub and models, and say what to do.

    \b
    Examples:
      mlxmtp doctor
      mlxmtp doctor --check --json > report.json
      mlxmtp doctor --json | jq '.checks[] | select(.verdict != "ok")'

    Exit code 1 if something has to be repaired.
    """
    from mlxmtp.app.doctor import examine
    from mlxmtp.app.models import Catalog

    loaded, out = begin(ctx, repairs=True)
    checks = []
    for one in examine(Catalog(loaded), measure=check):
        checks.append(one)
        if not json:
            mark, color = _MARKS[one.verdict]
            out.coloured(mark, color)
            out.write_line(f" {one.what}: {one.found}", indent=4)
            if one.advice:
                out.write_line(f"    {one.advice}", indent=4)
        out.progress("looking")
    out.clear_progress()
    sound = all(one.verdict != "bad" for one in checks)
    if json:
        from mlxmtp.cli.terminal.presenters import as_json

        out.write(as_json({"sound": sound, "checks": [asdict(one) for one in checks]}))
    if not sound:
        raise Exit(1)
