"""The shapes an answer can take on stdout: raw, markdown, one JSON object, JSON lines, the first code block."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Protocol

from mlxmtp.cli.terminal.fences import FirstFence
from mlxmtp.cli.terminal.markdown import MarkdownStream, without_controls
from mlxmtp.errors import MlxmtpError

if TYPE_CHECKING:
    from mlxmtp.cli.terminal.output import Output
    from mlxmtp.engine.events import FinishReason
    from mlxmtp.engine.stats import Stats

_NARROWEST = 20  # columns; below that, laying out tables and lists is hopeless


class Presenter(Protocol):
    """Receives an answer piece by piece."""

    def text(self, text: str) -> None:
        """A piece of the answer."""

    def thinking(self, text: str) -> None:
        """A piece of reasoning."""

    def end(self, reason: FinishReason, stats: Stats) -> None:
        """Nothing more will come."""

    @property
    def satisfied(self) -> bool:
        """Whether the rest of the answer does not matter."""


class _Base:
    @property
    def satisfied(self) -> bool:
        """All of the answer matters."""
        return False

    def thinking(self, text: str) -> None:
        """Reasoning is no part of this form."""

    def end(self, reason: FinishReason, stats: Stats) -> None:
        """Nothing to add."""


class Raw(_Base):
    """The text as it is, with exactly one newline at its end."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._newlines = ""

    def text(self, text: str) -> None:
        """Written at once, except for newlines that may be the last ones."""
        text = self._newlines + (without_controls(text) if self._out.terminal else text)
        kept = text.rstrip("\n")
        self._newlines = text[len(kept) :]
        self._out.write(kept)

    def end(self, reason: FinishReason, stats: Stats) -> None:
        """Close the last line."""
        self._out.write("\n")


class Rendered(_Base):
    """Markdown, drawn while it comes."""

    def __init__(self, out: Output) -> None:
        self._stream = MarkdownStream(out.write, out.size, color=out.look.color)

    def text(self, text: str) -> None:
        """Drawn block by block."""
        self._stream.feed(text)

    def end(self, reason: FinishReason, stats: Stats) -> None:
        """Print the block that is still open."""
        self._stream.finish()


class AtOnce(_Base):
    """Another form, given the whole text at the end."""

    def __init__(self, inner: Presenter) -> None:
        self._inner = inner
        self._text: list[str] = []

    def text(self, text: str) -> None:
        """Kept."""
        self._text.append(text)

    def end(self, reason: FinishReason, stats: Stats) -> None:
        """Handed on."""
        self._inner.text("".join(self._text))
        self._inner.end(reason, stats)


class Extracted(_Base):
    """Only the first fenced code block, handed to another form; the answer may stop when it is complete.

    Without a block nothing is written and `end` raises MlxmtpError: what was meant for a program must not be prose.
    """

    def __init__(self, inner: Presenter) -> None:
        self._inner = inner
        self._fence = FirstFence()

    @property
    def satisfied(self) -> bool:
        """True once the block is closed."""
        return self._fence.block is not None

    def text(self, text: str) -> None:
        """Searched."""
        self._fence.feed(text)

    def thinking(self, text: str) -> None:
        """Left to the inner form."""
        self._inner.thinking(text)

    def end(self, reason: FinishReason, stats: Stats) -> None:
        """Write the block."""
        self._fence.finish()
        if self._fence.block is None:
            raise MlxmtpError("The answer has no fenced code block to extract: ask for one, or leave out --extract.")
        self._inner.text(self._fence.block)
        self._inner.end(reason, stats)


class Json(_Base):
    """One object `{model, drafter, response, thinking, finish_reason, stats}`, with `session` if it is saved."""

    def __init__(self, out: Output, model: str, drafter: str | None, session: str | None = None) -> None:
        self._out = out
        self._head = _head(model, drafter, session)
        self._text: list[str] = []
        self._thinking: list[str] = []

    def text(self, text: str) -> None:
        """Kept."""
        self._text.append(text)

    def thinking(self, text: str) -> None:
        """Kept."""
        self._thinking.append(text)

    def end(self, reason: FinishReason, stats: Stats) -> None:
        """Write the object."""
        self._out.write(
            as_json(
                {
                    **self._head,
                    "response": "".join(self._text),
                    "thinking": "".join(self._thinking),
                    "finish_reason": reason,
                    "stats": stats.to_dict(),
                }
            )
        )


class JsonLines(_Base):
    """One event per line, as it comes: `start`, then `text` and `thinking`, then `end`."""

    def __init__(self, out: Output, model: str, drafter: str | None, session: str | None = None) -> None:
        self._out = out
        self._out.write(as_json({"type": "start", **_head(model, drafter, session)}))

    def text(self, text: str) -> None:
        """One line."""
        self._out.write(as_json({"type": "text", "text": text}))

    def thinking(self, text: str) -> None:
        """One line."""
        self._out.write(as_json({"type": "thinking", "text": text}))

    def end(self, reason: FinishReason, stats: Stats) -> None:
        """The last line."""
        self._out.write(as_json({"type": "end", "finish_reason": reason, "stats": stats.to_dict()}))


def _head(model: str, drafter: str | None, session: str | None) -> dict[str, Any]:
    saved = {} if session is None else {"session": session}
    return {"model": model, "drafter": drafter, **saved}


def as_json(value: dict[str, Any]) -> str:
    """One line of JSON, readable as UTF-8."""
    return json.dumps(value, ensure_ascii=False) + "\n"


def fits_markdown(out: Output) -> bool:
    """Whether stdout is a terminal on which blocks can be redrawn."""
    return out.terminal and not out.look.dumb and out.size()[0] >= _NARROWEST
