"""The calls of one answer: approved, run side by side, and answered, whatever happens to them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from copy import deepcopy
from dataclasses import dataclass, field
from threading import Thread

from mlxmtp.app.tools.approval import Approvals
from mlxmtp.app.tools.arguments import fault_in
from mlxmtp.app.tools.toolbox import Running, Tool, Toolbox, ToolError, cleaned
from mlxmtp.chat.message import TextPart, ToolCall, ToolResult
from mlxmtp.errors import MlxmtpError

ROUNDS, EQUAL, SECONDS = 10, 3, 60.0
"""Rounds of calls in one answer, equal calls in a row, and seconds of a call."""
_LOOK = 0.05  # seconds after which a stop is noticed

OnProgress = Callable[[ToolCall, float, str], None]  # that runs, for so many seconds, and what its tool tells


@dataclass(frozen=True, slots=True)
class _Said:
    text: str
    failed: bool = False


@dataclass(frozen=True, slots=True)
class _Coming:
    """The result of a call that runs since `began`, once it is there."""

    began: float
    running: Running = field(default_factory=Running)
    said: Future[_Said] = field(default_factory=Future)


class CallRunner:
    """Runs the calls of one answer. `stopped` says when the person wants no more of it."""

    def __init__(
        self,
        box: Toolbox,
        approvals: Approvals,
        *,
        stopped: Callable[[], bool] = lambda: False,
        on_progress: OnProgress = lambda call, seconds, told: None,
        seconds: float = SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._box, self._approvals, self._stopped, self._on_progress = box, approvals, stopped, on_progress
        self._seconds, self._clock = seconds, clock
        self._rounds = self._equal = 0
        self._answered = 0.0  # when a call of these answered last
        self._last = ""

    @property
    def spent(self) -> bool:
        """True if the answer has had all its calls, and the model was told so."""
        return self._rounds > ROUNDS

    def carry_out(self, calls: Sequence[ToolCall]) -> tuple[ToolResult, ...]:
        """Return a result for each call, in order; those that are allowed run side by side. Raises MlxmtpError."""
        self._rounds += 1
        begun: list[_Said | _Coming] = []
        try:
            for call in calls:
                begun.append(self._begin(call))  # noqa: PERF401  (what has begun stays in it)
            self._answered = 0.0
            return tuple(_result(call, self._wait(call, coming)) for call, coming in zip(calls, begun, strict=True))
        except BaseException:
            for coming in begun:
                if isinstance(coming, _Coming):
                    coming.running.stop()
            raise

    def _begin(self, call: ToolCall) -> _Said | _Coming:
        """Return what the tool will say, or the reason why it does not run."""
        same = json.dumps([call.name, call.arguments], sort_keys=True)
        self._equal = self._equal + 1 if same == self._last else 1
        self._last = same
        tool = self._box.find(call.name)
        if tool is None or (refusal := self._refusal(call, tool)):
            return _Said(f"There is no tool {call.name}." if tool is None else refusal, failed=True)
        if self._stopped():
            return _STOPPED
        decision = self._approvals.decide(tool, call.arguments)
        if decision.grant == "no":
            return _Said(f"It was not allowed{f': {decision.why}' if decision.why else ''}.", failed=True)
        coming = _Coming(self._clock())

        def run() -> None:
            try:
                said = _Said(tool.run(deepcopy(call.arguments), coming.running))  # a function may change them
            except (MlxmtpError, ToolError) as error:
                said = _Said(str(error), failed=True)
            except BaseException as error:  # noqa: BLE001  (a stranger's code; the model reads of it)
                said = _Said(f"It failed: {str(error) or type(error).__name__}.", failed=True)
            coming.said.set_result(said)

        # A daemon: nothing ends a thread that does not come back, and the program does not wait for it.
        Thread(target=run, name=f"tool {tool.label}", daemon=True).start()
        return coming

    def _refusal(self, call: ToolCall, tool: Tool) -> str:
        """Return why a call is not run, whoever would allow it; empty if it may be."""
        if self._rounds > ROUNDS:
            return "No more calls in this answer: say what is known."
        if self._equal > EQUAL:
            return "This call was made before with the same arguments: use its result."
        fault = fault_in(call.arguments, tool.parameters)
        return f"It was not run: {fault}." if fault else ""

    def _wait(self, call: ToolCall, coming: _Said | _Coming) -> _Said:
        if isinstance(coming, _Said):
            return coming
        while not coming.said.done():
            waited = self._clock() - coming.began
            if self._stopped():
                coming.running.stop()
                return _STOPPED
            if min(waited, self._clock() - self._answered) >= self._seconds:  # others may be in the server before it
                coming.running.stop()
                return _Said(f"It did not answer within {self._seconds:.0f} seconds.", failed=True)
            self._on_progress(call, waited, coming.running.progress)
            wait([coming.said], _LOOK)
        self._answered = self._clock()
        return coming.said.result()


def _result(call: ToolCall, said: _Said) -> ToolResult:
    content = (TextPart(text=cleaned(said.text)),)
    return ToolResult(call_id=call.id, name=call.name, content=content, is_error=said.failed)


_STOPPED = _Said("The person stopped it.", failed=True)
