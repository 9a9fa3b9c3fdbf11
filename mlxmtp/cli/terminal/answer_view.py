"""One answer on the terminal while it comes: the thought in place, at most 12 rows and folded when the answer starts,
then the answer, block by block of markdown, printed for good."""

from __future__ import annotations

import time
from collections.abc import Callable

from mlxmtp.cli.terminal.markdown import FRAME_SECONDS, MarkdownStream
from mlxmtp.cli.terminal.output import Output
from mlxmtp.cli.terminal.presenters import Presenter, fits_markdown
from mlxmtp.cli.terminal.rows import RedrawnRows, dim, wrapped
from mlxmtp.engine.events import FinishReason
from mlxmtp.engine.stats import Stats


class AnswerView(Presenter):
    """Feed it what the model says; call `tick` when `patience` is over and nothing came, `end` once."""

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
        self._redraws = fits_markdown(out)
        draws = self._redraws and not plain
        self._markdown = MarkdownStream(out.draw, out.size, color=out.look.color, clock=clock) if draws else None
        self._rows = RedrawnRows(out.size)  # of the thought
        self._thought = ""
        self._began: float | None = None
        self._drawn_at = float("-inf")
        self._undrawn = self._thinks = self._started = False
        self._ends_line = True

    @property
    def patience(self) -> float | None:
        """Seconds after which `tick` should be called even if nothing comes; None if it need not."""
        if self._thinks:
            return FRAME_SECONDS if self._undrawn else 1.0
        return FRAME_SECONDS if self._markdown is not None and self._markdown.undrawn else None

    def thinking(self, text: str) -> None:
        """Take in a piece of the thought; an empty one begins it, and is drawn by the next `tick`."""
        if not text and self._started:
            return
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
        """Take in a piece of the answer."""
        if not self._started:
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
        """Draw what waited for a frame, and the seconds of a thought."""
        if self._thinks and self._redraws:
            if self._clock() - self._drawn_at >= (FRAME_SECONDS if self._undrawn else 1.0):
                self._draw_thought()
        elif self._markdown is not None:
            self._markdown.refresh()

    def toggle(self) -> None:
        """Show or hide the thought's words from now on."""
        self.shows_thoughts = not self.shows_thoughts
        if self._thinks and self._redraws:
            self._draw_thought()

    def end(self, reason: FinishReason = "stop", stats: Stats | None = None) -> None:
        """Finish what is shown; the cursor is at the start of a line afterwards."""
        self._fold()
        if not self._started:
            return
        if self._markdown is not None:
            self._markdown.finish()
        elif not self._ends_line:
            self._out.write("\n")

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
            self._out.draw(self._rows.replace((), printed=f"{dim(line)}\n\n"))
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
