"""`mlxmtp doctor`: checks of this machine."""

from dataclasses import asdict

from typer import Context, Exit

from mlxmtp.cli.options import Json, begin, takes

_MARKS = {"ok": ("✓", 32), "note": ("!", 33), "bad": ("✗", 31)}


@takes("doctor", "... no_color debug")
def doctor(ctx: Context, json: Json = False) -> None:
    """Check chip, memory, versions, disk, hub and models, and say what to do.

    \b
    Examples:
      mlxmtp doctor
      mlxmtp doctor --json | jq '.checks[] | select(.verdict != "ok")'

    Exit code 1 if something has to be repaired.
    """
    from mlxmtp.app.doctor import examine
    from mlxmtp.app.models import Catalog

    loaded, out = begin(ctx, repairs=True)
    checks = []
    for check in examine(Catalog(loaded)):
        checks.append(check)
        if json:
            continue
        mark, color = _MARKS[check.verdict]
        out.coloured(mark, color)
        out.write(f" {check.what}: {check.found}\n" + (f"    {check.advice}\n" if check.advice else ""))
        out.progress("looking")
    out.clear_progress()
    sound = all(check.verdict != "bad" for check in checks)
    if json:
        from mlxmtp.cli.terminal.presenters import as_json

        out.write(as_json({"sound": sound, "checks": [asdict(check) for check in checks]}))
    if not sound:
        raise Exit(1)
