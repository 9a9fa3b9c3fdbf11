"""`mlxmtp ask`: one answer, made for pipes."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Context, Option

from mlxmtp.cli.options import Continue, Resume, ToolWords, begin, can_ask, takes
from mlxmtp.cli.terminal.output import Output
from mlxmtp.errors import UsageError

if TYPE_CHECKING:
    from mlxmtp.chat.history import Exchange


@takes(
    "ask",
    "model url file image_tokens system tool tools thinking form ... "
    "cache dry_run display sampling drafting yes force no_color "
    "debug",
)
def ask(
    ctx: Context,
    prompt: Annotated[
        list[str] | None,
        Argument(metavar="PROMPT", help="What to ask. Files and piped text come before it.", show_default=False),
    ] = None,
    file: Annotated[
        list[str] | None,
        Option("-f", "--file", metavar="PATH", help="Text, image, audio or folder, can be repeated; - is stdin."),
    ] = None,
    tool: ToolWords = None,
    no_stdin: Annotated[bool, Option("--no-stdin", help="Leave standard input alone.")] = False,
    json: Annotated[bool, Option("--json", help="One JSON object instead of text.")] = False,
    jsonl: Annotated[bool, Option("--jsonl", help="One JSON event per line, as they come.")] = False,
    extract: Annotated[bool, Option("-x", "--extract", help="Only the first fenced code block.")] = False,
    no_stream: Annotated[bool, Option("--no-stream", help="Write the answer when it is complete.")] = False,
    continue_: Continue = False,
    resume: Resume = None,
    save: Annotated[bool, Option("--save", help="Keep question and answer as a session.")] = False,
    dry_run: Annotated[bool, Option("--dry-run", help="Show the prompt and its token count; no answer.")] = False,
) -> None:
    """One answer, made for pipes: the answer on stdout, everything else on stderr.

    \b
    Examples:
      mlxmtp ask "What is a drafter?"
      git diff | mlxmtp ask "Write a commit message"
      mlxmtp ask -f notes.txt -f todo.txt "What is missing?"
      mlxmtp ask -f photo.jpg "What is this?"
      mlxmtp ask -x "A bash line that counts files" | tee count.sh
      mlxmtp ask -m e2b --schema "city, people int" "The largest town of France"
      mlxmtp ask --json --seed 7 "Say hello" | jq -r .response
      mlxmtp ask --cache -f handbook.txt "How do I return it?"
      mlxmtp ask --tools calculator,files=src "Which file is the longest?"
      mlxmtp ask --save "Name a prime" && mlxmtp ask -c "And the next?"
      mlxmtp ask --url localhost:8765 "A model that mlxmtp serve has in memory"

    The model reads the files, then piped text, then PROMPT. A folder stands for its text files, without those that
    git ignores. A pipe is read to its end, however long its writer takes; in a `while read` loop, --no-stdin leaves the
    loop's lines alone. --schema, --regex, --grammar and --json-output hold the answer to a form. Exit codes:
    0 answered, also if cut at --max-tokens (finish_reason "length" in JSON), 1 failure, also a form or code block (-x)
    that was cut, 2 usage, 3 the model is not here, 130 Ctrl-C, 141 the reader is gone.
    """
    from mlxmtp.app.tools.chosen import chosen_tools
    from mlxmtp.cli import calls
    from mlxmtp.cli.answer import Form, OneAnswer
    from mlxmtp.cli.resume import conversation_for, opener_of

    if json and jsonl:
        raise UsageError("--json and --jsonl exclude each other: take one.")
    if continue_ and resume is not None:
        raise UsageError("-c continues the latest session and -r another: take one.")
    loaded, out = begin(ctx)
    with out.alone() if loaded.settings.functions else nullcontext():  # what these print is no answer
        asking = _question(ctx, out, file or [], prompt or [], no_stdin=no_stdin)  # first: a pipe may write the session
        loaded, conversation = conversation_for(
            loaded, out, latest=continue_, resume=resume, save=save, read_only=dry_run
        )
        opener = opener_of(loaded, out)
        person = calls.asking(out) if can_ask(out) else None
        chosen = chosen_tools(tool or [], loaded, person)
        opener.calls = bool(chosen)
        turn = OneAnswer(loaded, out, opener, conversation, asking, Form(json, jsonl, extract, no_stream), chosen)
        try:
            with calls.in_use(chosen.servers):
                if dry_run:
                    turn.show_prompt()
                    return
                turn.answer()
            if save and conversation.session is not None and out.error_terminal:
                out.note(f"Saved as session {conversation.session}: mlxmtp ask -c goes on with it.")
        finally:
            conversation.close()
            out.settle()


def _question(ctx: Context, out: Output, files: list[str], prompt: list[str], *, no_stdin: bool) -> Exchange:
    """Return what the user says. Raises UsageError rather than wait at a terminal for what nobody announced."""
    from mlxmtp.chat.attach import STDIN, join_message
    from mlxmtp.chat.history import Exchange
    from mlxmtp.chat.message import media_part

    named = not STDIN.isdisjoint(files)
    if no_stdin and named:
        raise UsageError("-f - reads standard input, which --no-stdin leaves alone: take one.")
    reads = sys.stdin is not None and (named or not (no_stdin or sys.stdin.isatty()))
    waiting = "waiting for standard input (Ctrl+C leaves; --no-stdin does without it)"
    try:
        attached = join_message(
            files,
            prompt,
            sys.stdin.fileno() if reads else None,
            on_wait=lambda: out.progress(waiting),
            attended=out.error_terminal,
        )
    finally:
        out.clear_progress()
    for note in attached.notes:
        out.note(note)
    if not attached.message and not attached.media:
        out.line(ctx.get_usage())
        raise UsageError("There is nothing to ask: give a PROMPT, a file with -f, or pipe text in (-h shows examples).")
    media = tuple(map(media_part, attached.media))
    return Exchange(attached.question, attached=attached.material, media=media)
