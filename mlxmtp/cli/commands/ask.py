"""`mlxmtp ask`: one answer, made for pipes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from mlxmtp.cli import options
from mlxmtp.cli.start import begin, setting_flags
from mlxmtp.errors import UsageError

if TYPE_CHECKING:
    from mlxmtp.chat.history import Exchange
    from mlxmtp.cli.terminal.output import Output


def ask(
    ctx: typer.Context,
    prompt: options.Prompt = None,
    model: options.Model = None,
    file: options.Files = None,
    system: options.System = None,
    think: options.Think = None,
    think_tokens: options.ThinkTokens = None,
    show_thinking: options.ShowThinking = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")] = False,
    jsonl: Annotated[bool, typer.Option("--jsonl", help="One JSON event per line, as they come.")] = False,
    extract: Annotated[bool, typer.Option("-x", "--extract", help="Only the first fenced code block.")] = False,
    no_stream: Annotated[bool, typer.Option("--no-stream", help="Write the answer when it is complete.")] = False,
    continue_: options.Continue = False,
    resume: options.Resume = None,
    save: Annotated[bool, typer.Option("--save", help="Keep question and answer as a session.")] = False,
    cache: options.Cache = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the prompt and its token count; no answer.")] = False,
    plain: options.Plain = None,
    stats: options.ShowStats = None,
    quiet: options.Quiet = None,
    temp: options.Temp = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    seed: options.Seed = None,
    max_tokens: options.MaxTokens = None,
    draft: options.Draft = None,
    draft_model: options.DraftModel = None,
    num_draft_tokens: options.NumDraftTokens = None,
    draft_bits: options.DraftBits = None,
    kv_bits: options.KvBits = None,
    yes: options.Yes = None,
    force: options.Force = False,
    no_color: options.NoColor = None,
    debug: options.Debug = False,
) -> None:
    """One answer, made for pipes: the answer on stdout, everything else on stderr.

    \b
    Examples:
      mlxmtp ask "What is a drafter?"
      git diff | mlxmtp ask "Write a commit message"
      mlxmtp ask -f notes.txt -f todo.txt "What is missing?"
      mlxmtp ask -x "A bash line that counts files" | tee count.sh
      mlxmtp ask --json --seed 7 "Say hello" | jq -r .response
      mlxmtp ask --cache -f handbook.txt "How do I return it?"
      mlxmtp ask --save "Name a prime" && mlxmtp ask -c "And the next?"

    The model reads the files, then piped text, then PROMPT. A folder stands for its text files, without those that
    git ignores. With a PROMPT, a pipe that stays silent is left alone after 5 seconds, with a note; -f - waits
    for it. Exit codes: 0 answered, 1 failure, 2 usage, 3 the model is not here, 130 Ctrl-C, 141 the reader is gone.
    """
    from mlxmtp.cli.answer import Form, OneAnswer
    from mlxmtp.cli.resume import conversation_for, opener_of

    if json and jsonl:
        raise UsageError("--json and --jsonl exclude each other: take one.")
    if continue_ and resume is not None:
        raise UsageError("-c continues the latest session and -r another: take one.")
    loaded, out = begin(ctx, **setting_flags(ctx))
    asking = _question(out, file or [], prompt or [], ctx)  # first: what is piped in may be writing the session
    opener = opener_of(loaded, out)
    given = {"model_given": model is not None, "system_given": system is not None}
    loaded, conversation = conversation_for(loaded, out, opener, latest=continue_, resume=resume, save=save, **given)
    form = Form(json, jsonl, extract, no_stream)
    turn = OneAnswer(loaded, out, opener, conversation, asking, form, force=force)
    try:
        if dry_run:
            turn.show_prompt()
        else:
            turn.answer()
            if save and conversation.session is not None and out.error_terminal:
                out.note(f"Saved as session {conversation.session}: mlxmtp ask -c goes on with it.")
    finally:
        conversation.close()
        out.settle()


def _question(out: Output, files: Sequence[str], prompt: Sequence[str], ctx: typer.Context) -> Exchange:
    """Return what the user says. Raises UsageError rather than wait at a terminal for what nobody announced."""
    from mlxmtp.chat.attach import STDIN, join_message
    from mlxmtp.chat.history import Exchange

    reads_stdin = sys.stdin is not None and (not STDIN.isdisjoint(files) or not sys.stdin.isatty())
    attached = join_message(files, prompt, sys.stdin.fileno() if reads_stdin else None)
    for note in attached.notes:
        out.note(note)
    if not attached.message:
        out.line(ctx.get_usage())
        raise UsageError("There is nothing to ask: give a PROMPT, a file with -f, or pipe text in (-h shows examples).")
    return Exchange(attached.question, attached=attached.material)
