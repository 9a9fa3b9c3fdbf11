"""Every option that commands share, declared once. Names are fields of `Settings`, keys of the config file."""

from __future__ import annotations

from typing import Annotated

import typer


def session_ids(incomplete: str) -> list[tuple[str, str]]:
    """Ids and names of sessions that begin like that, with their titles, newest first."""
    from mlxmtp.chat.sessions import Sessions
    from mlxmtp.settings import find_places

    sessions = Sessions(find_places().sessions).listing().sessions
    named = [(one.name or one.id, one.title) for one in sessions if (one.name or one.id).startswith(incomplete)]
    return named or [(one.id, one.title) for one in sessions if one.id.startswith(incomplete)]


Prompt = Annotated[
    list[str] | None,
    typer.Argument(metavar="PROMPT", help="What to ask. Files and piped text come before it.", show_default=False),
]
Model = Annotated[
    str | None,
    typer.Option("-m", "--model", metavar="NAME", help="Alias, org/repo or path. Also MLXMTP_MODEL."),
]
System = Annotated[
    str | None,
    typer.Option(
        "-s",
        "--system",
        metavar="TEXT",
        help="System prompt; @FILE reads a file, @NAME one of [prompts] in the config.",
    ),
]
Files = Annotated[
    list[str] | None,
    typer.Option(
        "-f", "--file", metavar="PATH", help="Text file or folder, can be repeated; - is stdin.", show_default=False
    ),
]
Temp = Annotated[float | None, typer.Option("--temp", metavar="T", help="Temperature; 0 is greedy.")]
TopP = Annotated[float | None, typer.Option("--top-p", metavar="P", help="Nucleus sampling; 1 is off.")]
TopK = Annotated[int | None, typer.Option("--top-k", metavar="K", help="Only the K likeliest tokens; 0 is off.")]
MinP = Annotated[float | None, typer.Option("--min-p", metavar="P", help="Only tokens this likely against the best.")]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="The same seed gives the same answer.")]
MaxTokens = Annotated[int | None, typer.Option("--max-tokens", metavar="N", help="Stop after N tokens.")]
Draft = Annotated[bool | None, typer.Option("--draft/--no-draft", help="Draft ahead with the model's drafter.")]
DraftModel = Annotated[
    str | None, typer.Option("--draft-model", metavar="NAME", help="Another drafter than the paired one.")
]
NumDraftTokens = Annotated[
    str | None,
    typer.Option("--num-draft-tokens", metavar="N|auto", help="Draft tokens per round, 0 (off) to 8, or auto."),
]
DraftBits = Annotated[
    int | None, typer.Option("--draft-bits", metavar="N", help="Pack the drafter to 4 or 8 bits; 16 keeps it.")
]
KvBits = Annotated[
    int | None,
    typer.Option("--kv-bits", metavar="N", help="Keep full layers' keys and values in 4 or 8 bits: less memory."),
]
Think = Annotated[bool | None, typer.Option("--think/--no-think", help="Let the model reason first.")]
ThinkTokens = Annotated[
    int | None, typer.Option("--think-tokens", metavar="N", help="End the reasoning after N tokens and answer.")
]
ShowThinking = Annotated[
    bool | None,
    typer.Option("--show-thinking/--hide-thinking", help="Reasoning on stderr; shown on terminals by default."),
]
Continue = Annotated[bool, typer.Option("-c", "--continue", help="Go on with the latest session.")]
Resume = Annotated[
    str | None,
    typer.Option(
        "-r",
        "--resume",
        metavar="ID",
        help="Go on with another: id or name; chat lists them.",
        autocompletion=session_ids,
    ),
]
Yes = Annotated[bool | None, typer.Option("-y", "--yes", help="Accept a download.")]
Force = Annotated[bool, typer.Option("--force", help="Try it even if the memory will not do.")]
Plain = Annotated[bool | None, typer.Option("--plain", help="Raw text on a terminal, too.")]
ShowStats = Annotated[bool | None, typer.Option("--stats", help="Speed, acceptance and seed on stderr.")]
Quiet = Annotated[bool | None, typer.Option("-q", "--quiet", help="No notes, progress or reasoning on stderr.")]
NoColor = Annotated[bool | None, typer.Option("--no-color", help="No colours. Also NO_COLOR.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback when something fails.")]
Cache = Annotated[
    bool | None,
    typer.Option("--cache/--no-cache", help="Keep what was read on disk: the next question on it reads only itself."),
]
