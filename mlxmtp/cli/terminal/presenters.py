"""The shapes of an answer on stdout (raw, markdown, JSON, first code block), and its statistics in words."""

import json
import time
from collections.abc import Callable
from typing import Any

from mlxmtp.app.endpoints import is_loopback
from mlxmtp.chat.message import ToolCall, ToolResult, text_of
from mlxmtp.cli.terminal.fences import FirstFence
from mlxmtp.cli.terminal.markdown import FRAME_SECONDS, MarkdownStream
from mlxmtp.cli.terminal.output import Output
from mlxmtp.cli.terminal.rows import RedrawnRows, dim, wrapped
from mlxmtp.engine.events import FinishReason
from mlxmtp.engine.media import Medium
from mlxmtp.engine.stats import Stats
from mlxmtp.errors import MlxmtpError
from mlxmtp.units import format_bytes

_THOUGHT_ROWS = 12  # that are shown at once
_NARROWEST = 20  # columns; below that, laying out tables and lists is hopeless


def as_json(value: dict[str, Any]) -> str:
    """Return one line of JSON, readable as UTF-8."""
    return json.dumps(value, ensure_ascii=False) + "\n"


def fits_markdown(out: Output) -> bool:
    """Return true if stdout is a terminal on which blocks can be redrawn."""
    return out.terminal and not out.look.dumb and out.size()[0] >= _NARROWEST


def write_document(out: Output, text: str) -> None:
    """Write markdown to stdout: drawn on a terminal that can, as it is elsewhere."""
    if not fits_markdown(out):
        out.write(text)
        return
    stream = MarkdownStream(out.draw, out.size, color=out.look.color)
    stream.feed(text)
    stream.finish()


class Presenter:
    """Receives an answer piece by piece; a shape overrides what concerns it."""

    @property
    def satisfied(self) -> bool:
        """True once the rest of the answer does not matter."""
        return False

    def text(self, text: str) -> None:
        """Take in a piece of the answer."""

    def thinking(self, text: str) -> None:
        """Take in a piece of the thought."""

    def call(self, call: ToolCall) -> None:
        """Take in a call that the model has made, before it runs."""

    def result(self, result: ToolResult) -> None:
        """Take in what came of a call."""

    def settle(self) -> None:
        """Leave the row of the answer on a terminal: something else is written below it, and more may come."""

    def end(self, reason: FinishReason, stats: Stats) -> None:
        """Finish what is shown: nothing more will come."""


class Raw(Presenter):
    """The text as it is, with exactly one newline at its end."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._newlines = ""  # may be the last ones
        self._in_line = False

    def text(self, text: str) -> None:
        text = self._newlines + text
        shown = text.rstrip("\n")
        self._newlines = text[len(shown) :]
        self._out.write(shown)
        self._in_line = self._in_line or bool(shown)

    def settle(self) -> None:
        if self._out.terminal and self._in_line:
            self._out.write("\n")
            self._newlines, self._in_line = "", False

    def end(self, reason: FinishReason, stats: Stats) -> None:
        self._out.write("\n")


class Rendered(Presenter):
    """Markdown, drawn block by block while it comes."""

    def __init__(self, out: Output) -> None:
        self._stream = MarkdownStream(out.draw, out.size, color=out.look.color)

    def text(self, text: str) -> None:
        self._stream.feed(text)

    def settle(self) -> None:
        self._stream.settle()

    def end(self, reason: FinishReason, stats: Stats) -> None:
        self._stream.finish()


class _Wrapper(Presenter):
    """Another shape, which gets all but the text at once."""

    def __init__(self, inner: Presenter) -> None:
        self._inner = inner

    def thinking(self, text: str) -> None:
        self._inner.thinking(text)

    def call(self, call: ToolCall) -> None:
        self._inner.call(call)

    def result(self, result: ToolResult) -> None:
        self._inner.result(result)

    def settle(self) -> None:
        self._inner.settle()


class AtOnce(_Wrapper):
    """Another shape, given the whole text at the end."""

    def __init__(self, inner: Presenter) -> None:
        super().__init__(inner)
        self._text = ""

    def text(self, text: str) -> None:
        self._text += text

    def end(self, reason: FinishReason, stats: Stats) -> None:
        self._inner.text(self._text)
        self._inner.end(reason, stats)


class Extracted(_Wrapper):
    """Only the first fenced code block, in another shape; `end` raises MlxmtpError without one, nothing is written.

    `stops`: a stop string may end the answer, so one that ends within the block may be cut.
    """

    def __init__(self, inner: Presenter, *, stops: bool = False) -> None:
        super().__init__(inner)
        self._fence, self._stops = FirstFence(), stops

    @property
    def satisfied(self) -> bool:
        return self._fence.block is not None

    def text(self, text: str) -> None:
        self._fence.feed(text)

    def end(self, reason: FinishReason, stats: Stats) -> None:
        cut = reason in ("length", "cancelled")
        if not cut:
            self._fence.feed("\n")  # the last line is whole
        closed = self._fence.block is not None
        self._fence.finish()
        if self._fence.block is None:
            raise MlxmtpError("The answer has no fenced code block to extract: ask for one, or leave out --extract.")
        if cut and not closed:  # half a program may do harm
            raise MlxmtpError("The answer was cut within its code block, so nothing was written: raise --max-tokens.")
        if self._stops and not closed:
            told = (
                "The answer ended within its code block, so nothing was written: leave out --stop, in the config too."
            )
            raise MlxmtpError(told)
        self._inner.text(self._fence.block)
        self._inner.end(reason, stats)


class Json(Presenter):
    """One object `{model, drafter, response, thinking, finish_reason, stats}`.

    `session` is there if it is saved, `calls` if there were any, with their results.
    """

    def __init__(self, out: Output, head: dict[str, Any]) -> None:
        self._out, self._head = out, head
        self._response = self._thinking = ""
        self._calls: dict[str, dict[str, Any]] = {}

    def text(self, text: str) -> None:
        self._response += text

    def thinking(self, text: str) -> None:
        self._thinking += text

    def call(self, call: ToolCall) -> None:
        self._calls[call.id] = _call(call)

    def result(self, result: ToolResult) -> None:
        self._calls[result.call_id] |= _result(result)

    def end(self, reason: FinishReason, stats: Stats) -> None:
        said: dict[str, Any] = {"response": self._response, "thinking": self._thinking}
        said |= {"calls": [*self._calls.values()]} if self._calls else {}
        self._out.write(as_json({**self._head, **said, "finish_reason": reason, "stats": stats.to_dict()}))


class JsonLines(Presenter):
    """One event per line, as it comes: `start`, then `text`, `thinking`, `call` and `result`, then `end`."""

    def __init__(self, out: Output, head: dict[str, Any]) -> None:
        self._out = out
        self._line("start", **head)

    def text(self, text: str) -> None:
        self._line("text", text=text)

    def thinking(self, text: str) -> None:
        self._line("thinking", text=text)

    def call(self, call: ToolCall) -> None:
        self._line("call", **_call(call))

    def result(self, result: ToolResult) -> None:
        self._line("result", id=result.call_id, **_result(result))

    def end(self, reason: FinishReason, stats: Stats) -> None:
        self._line("end", finish_reason=reason, stats=stats.to_dict())

    def _line(self, kind: str, **fields: Any) -> None:
        self._out.write(as_json({"type": kind, **fields}))


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "name": call.name, "arguments": call.arguments}


def _result(result: ToolResult) -> dict[str, Any]:
    return {"result": text_of(result.content), "is_error": result.is_error}


class AnswerView(Presenter):
    """A thought in place, folded when the answer starts. Call `tick` if nothing came in `patience`, `end` once."""

    def __init__(
        self,
        out: Output,
        *,
        show_thoughts: bool = True,
        plain: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.shows_thoughts = show_thoughts  # the thought's own words, not only its seconds
        self._out, self._clock = out, clock
        self._redraws = fits_markdown(out) and not plain
        draws = self._redraws
        self._markdown = MarkdownStream(out.draw, out.size, color=out.look.color, clock=clock) if draws else None
        self._rows = RedrawnRows(out.size, _THOUGHT_ROWS)
        self._thought = ""
        self._began: float | None = None
        self._drawn_at = float("-inf")
        self._undrawn = self._thinks = self._started = False
        self._ends_line = True

    def another(self) -> "AnswerView":
        """Return the view of an answer that follows this one."""
        return AnswerView(self._out, show_thoughts=self.shows_thoughts, plain=not self._redraws, clock=self._clock)

    @property
    def patience(self) -> float | None:
        """Seconds after which `tick` should be called even if nothing comes; None if it need not."""
        if self._thinks:
            return FRAME_SECONDS if self._undrawn else 1.0
        return FRAME_SECONDS if self._markdown is not None and self._markdown.undrawn else None

    def thinking(self, text: str) -> None:
        """Take in a piece of the thought; an empty one begins it, and is drawn by the next `tick`."""
        if self._started and not self._thinks:
            if not text.strip():
                return
            self._think_again()
        if self._began is None:
            self._began = self._clock()
        if not self._thought:
            text = text.lstrip("\n")
        self._thinks = True
        self._thought += text
        if self._redraws:
            self._undrawn = True
            if text and self._clock() - self._drawn_at >= FRAME_SECONDS:
                self._draw_thought()
        elif self.shows_thoughts:
            self._out.write(text)

    def text(self, text: str) -> None:
        if self._thinks or not self._started:
            text = text.lstrip()
            if not text:
                return
            self._fold()
            self._started = True
        if self._markdown is not None:
            self._markdown.feed(text)
        else:
            self._ends_line = text.endswith("\n")
            self._out.write(text)

    def tick(self) -> None:
        if self._thinks and self._redraws:
            if self._clock() - self._drawn_at >= (FRAME_SECONDS if self._undrawn else 1.0):
                self._draw_thought()
        elif self._markdown is not None:
            self._markdown.refresh()

    def toggle(self) -> None:
        self.shows_thoughts = not self.shows_thoughts
        if self._thinks and self._redraws:
            self._draw_thought()

    def end(self, reason: FinishReason = "stop", stats: Stats | None = None) -> None:
        self._fold()
        if not self._started:
            return
        if self._markdown is not None:
            self._markdown.finish()
        elif not self._ends_line:
            self._out.write("\n")

    def _think_again(self) -> None:
        """Begin a thought below what was said: a row apart, where nothing of the answer is redrawn any more."""
        self._thought, self._began = "", None
        if self._markdown is not None:
            self._markdown.settle()
            self._out.draw("\n")
        else:
            self._out.write("\n" if self._ends_line else "\n\n")
            self._ends_line = True

    def _fold(self) -> None:
        """Replace the thought by the time it took; nothing is left of an empty one."""
        if not self._thinks:
            return
        self._thinks = False
        seconds = self._seconds()
        line = f"thought for {seconds:.0f} s" if seconds >= 1 else f"thought for {seconds:.1f} s"
        if not self._thought.strip():
            self._out.draw(self._rows.replace(()))
        elif self._redraws:
            self._out.draw(self._rows.replace((), printed=f"{dim(line)}\n" + "\n" * (not self._started)))
        else:
            gap = "" if not self.shows_thoughts else "\n" if self._thought.endswith("\n") else "\n\n"
            self._out.write(f"{gap}{line}\n\n")

    def _draw_thought(self) -> None:
        columns, limit = self._out.size()[0], self._rows.limit
        hint = "hides" if self.shows_thoughts else "shows"
        rows = wrapped(f"thinking {self._seconds():.0f} s · Ctrl+T {hint} it", columns)[:limit]
        if self.shows_thoughts and limit > len(rows):
            # Only the end can be seen: laying out all of a long thought for every frame would cost too much.
            shown = wrapped(self._thought[-limit * columns :].rstrip("\n"), columns)
            rows += shown[-(limit - len(rows)) :]
        self._out.draw(self._rows.replace([dim(row) for row in rows]))
        self._drawn_at = self._clock()
        self._undrawn = False

    def _seconds(self) -> float:
        return 0.0 if self._began is None else self._clock() - self._began


def medium(one: Medium) -> str:
    """Return `photo.jpg: 4032x3024, 266 tokens`."""
    return f"{one.name}: {one.about}, {one.count} tokens"


def stats_line(stats: Stats, context: int) -> str:
    """Return `318 tok · 62.4 tok/s · 3.1 tok/pass, 74 % accepted · prompt 1204 tok (980 reused) 0.2 s · context …`."""
    reason = [stats.draft_reason] if stats.draft_reason else []
    reason += [f"{stats.near_ties} near tie{'s' * (stats.near_ties > 1)}"] if stats.near_ties else []
    return " · ".join([*turn_parts(stats, context), f"seed {stats.seed}", *reason])


def went_to(stats: Stats) -> str:
    """Return where the text went, if it left this program; a tunnel may begin at this machine's own address."""
    went = "went to" if is_loopback(stats.sent_to) else "left this machine for"
    return f"text {went} {stats.sent_to}" if stats.sent_to else ""


def turn_parts(stats: Stats, context: int) -> list[str]:
    """Return the parts of `stats_line` that everybody wants to know; `context`: tokens the model's context holds."""
    parts = [part for part in (stats.route, went_to(stats)) if part]
    parts += [f"{stats.generation_tokens} tok", f"{stats.generation_tps:.1f} tok/s"]
    if stats.drafted:
        parts.append(f"{stats.tokens_per_pass:.1f} tok/pass, {100 * stats.accepted / stats.drafted:.0f} % accepted")
    if stats.copy_rounds:
        parts.append(f"{stats.copied} tok copied")
    reused = f" ({stats.reused_tokens} reused)" if stats.reused_tokens else ""
    parts.append(f"prompt {stats.prompt_tokens} tok{reused} {stats.prompt_seconds:.1f} s")
    parts.append(f"context {_short(stats.prompt_tokens + stats.generation_tokens)}/{_short(context)}")
    parts += [format_bytes(stats.peak_memory)] if stats.peak_memory else []
    return parts


def stats_rows(stats: Stats, context: int) -> list[tuple[str, str]]:
    """Return everything about an answer, as names and values."""
    drafts = ""
    if stats.drafted:
        by_position = " ".join(f"{100 * part:.0f}" for part in stats.acceptance_by_position)
        share = 100 * stats.accepted / stats.drafted
        drafts = f"{stats.accepted} of {stats.drafted} accepted, {share:.0f} % ({by_position} by position)"
    rows = [
        ("model", stats.route),
        ("sent to", stats.sent_to),
        ("prompt", f"{stats.prompt_tokens:,} tokens, {stats.reused_tokens:,} of them reused"),
        ("prefill", f"{stats.prompt_seconds:.2f} s" + (f", {stats.prompt_tps:.1f} tok/s" if stats.prompt_tps else "")),
        ("first token", f"after {stats.time_to_first_token:.2f} s"),
        ("answer", f"{stats.generation_tokens:,} tokens in {stats.generation_seconds:.2f} s"),
        ("speed", f"{stats.generation_tps:.1f} tok/s"),
        ("passes", f"{stats.rounds}, {stats.tokens_per_pass:.2f} tok/pass" if stats.rounds else ""),
        ("drafts", drafts),
        ("copies", f"{stats.copied} tokens in {stats.copy_rounds} passes" if stats.copy_rounds else ""),
        ("drafting", stats.draft_reason),
        ("near ties", f"{stats.near_ties} tokens, which the last bits may decide" if stats.near_ties else ""),
        ("context", f"{stats.prompt_tokens + stats.generation_tokens:,} of {context:,} tokens"),
        ("memory", f"{format_bytes(stats.peak_memory)} at the peak" if stats.peak_memory else ""),
        ("seed", str(stats.seed)),
    ]
    return [row for row in rows if row[1]]


def _short(count: int) -> str:
    """Return a token count as in `2.4k/128k`: thousands of 1024, as contexts are named."""
    if count < 1000:
        return str(count)
    return f"{count / 1024:.0f}k" if count >= 10 * 1024 or count % 1024 == 0 else f"{count / 1024:.1f}k"
