"""A conversation about a task: who says what, with declarations, calls, results, pictures and sounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Medium:
    """A picture or a sound by the number under which the generators draw it again."""

    kind: Literal["image", "audio"]
    index: int
    held_out: bool = False


@dataclass(frozen=True, slots=True)
class Ask:
    """What a person says, pictures and sounds before it."""

    text: str
    media: tuple[Medium, ...] = ()


@dataclass(frozen=True, slots=True)
class Say:
    """What the model answers."""

    text: str


@dataclass(frozen=True, slots=True)
class Call:
    """A tool that the model calls."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Result:
    """What the tool of the call before returned."""

    name: str
    text: str


Step = Ask | Say | Call | Result


@dataclass(frozen=True, slots=True)
class Task:
    """Steps in order, and the tools that are declared; everything that the model says is learned."""

    steps: tuple[Step, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    system: str = ""

    def messages(self, until: int | None = None) -> list[dict[str, Any]]:
        """Return the first `until` steps as messages of the API (without pictures and sounds)."""
        found: list[dict[str, Any]] = [{"role": "system", "content": self.system}] if self.system else []
        for step in self.steps[:until]:
            match step:
                case Ask(text):
                    found.append({"role": "user", "content": text})
                case Say(text):
                    found.append({"role": "assistant", "content": text})
                case Call(name, arguments):
                    function = {"name": name, "arguments": dict(arguments)}
                    call = {"id": "call", "type": "function", "function": function}
                    found.append({"role": "assistant", "content": "", "tool_calls": [call]})
                case Result(name, text):
                    found.append({"role": "tool", "tool_call_id": "call", "name": name, "content": text})
        return found
