"""The tools of a conversation, wherever they come from, as the model and the person see them."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlxmtp.engine.declarations import Declaration, declaration
from mlxmtp.errors import UsageError

LONGEST = 48_000
"""Characters of a result that the model reads, about 12,000 tokens; of a description 4,000."""
_DESCRIPTION = 4_000
_KEPT = frozenset("\n\t\u00ad\u200c\u200d")
"""Characters that stay, though they are of no visible kind: lines, soft hyphens, joiners of letters and of emoji."""
_NO_NAME = re.compile(r"[^A-Za-z0-9_.-]+")


Run = Callable[[Mapping[str, Any], "Running"], str]


class ToolError(Exception):
    """A tool's own word that it failed, for the model to read as it is."""


@dataclass(slots=True)
class Running:
    """A call while it runs: what its tool tells of the progress, and whether nobody waits for it any more."""

    progress: str = ""
    over: bool = False
    on_stop: Callable[[], object] = lambda: None

    def stop(self) -> None:
        """Say that nobody waits any more, from any thread."""
        self.over = True
        self.on_stop()


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool. `run` gets arguments that fit `parameters` and returns text; what it raises the model reads.

    `reads`: it only looks at what the person has named, so its calls need no approval. `singly`: what it does depends
    on its arguments so much that approval of one call says nothing about the next. `origin`: what runs, a command line
    or a file.
    """

    server: str
    name: str
    description: str
    parameters: Mapping[str, Any]
    run: Run
    reads: bool = False
    singly: bool = False
    origin: str = ""

    @property
    def label(self) -> str:
        return f"{self.server}/{self.name}"

    @property
    def fingerprint(self) -> str:
        """A hash of all that was agreed to: one that changes its words or arguments, or what runs, is another tool."""
        said = [self.server, self.name, self.description, self.parameters, self.origin]
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:32]


def _clean(schema: dict[str, Any]) -> None:
    """Clean the descriptions in a schema; names and enums reach the tool as they are."""
    if "description" in schema:
        schema["description"] = cleaned(schema["description"], _DESCRIPTION)
    for one in (*schema.get("properties", {}).values(), *([schema["items"]] if "items" in schema else [])):
        _clean(one)


class Toolbox:
    """Tools by the names that the model calls; some may be switched off."""

    def __init__(self, tools: Iterable[Tool] = ()) -> None:
        """Raise UsageError for a schema that is too large."""
        self._tools: dict[str, Tool] = {}
        self._declared: dict[str, Declaration] = {}
        self._on: dict[str, bool] = {}  # what was switched: labels of tools, which go before those of servers
        for tool in tools:
            plain, server = (_NO_NAME.sub("_", one)[:48] or "tool" for one in (tool.name, tool.server))
            candidates = [plain, f"{server}.{plain}", *(f"{server}.{plain}_{number}" for number in range(2, 1000))]
            name = next(one for one in candidates if one not in self._tools)
            told = cleaned(tool.description, _DESCRIPTION)
            self._declared[name] = declaration(name, told, tool.parameters, f"The schema of {tool.label}")
            _clean(self._declared[name]["function"]["parameters"])
            self._tools[name] = tool

    def __bool__(self) -> bool:
        return bool(self._tools)

    def renewed(self, tools: Iterable[Tool]) -> "Toolbox":
        """Return a box of other tools, in which the same are off, also those that come back later."""
        box = Toolbox(tools)
        box._on = self._on
        return box

    @property
    def off(self) -> set[str]:
        """The names of those that are switched off."""
        return {
            name for name, one in self._tools.items() if not self._on.get(one.label, self._on.get(one.server, True))
        }

    @property
    def declarations(self) -> Sequence[Declaration]:
        """The tools that are on, for the prompt."""
        off = self.off
        return [one for name, one in self._declared.items() if name not in off]

    @property
    def tools(self) -> Mapping[str, Tool]:
        return self._tools

    def find(self, name: str) -> Tool | None:
        """Return the tool that a call names, if it is on."""
        return None if name in self.off else self._tools.get(name)

    def switch(self, name: str, *, on: bool) -> list[str]:
        """Switch one tool, or all of a server, and return their names. Raises UsageError if there is none."""
        found = {called: one for called, one in self._tools.items() if name in (called, one.label, one.server)}
        if not found:
            raise UsageError(f"There is no tool {name}: /tools lists them.")
        self._on |= {tool.label: on for tool in found.values()}
        if any(tool.server == name for tool in found.values()):  # with all that it will list
            self._on = {key: one for key, one in self._on.items() if not key.startswith(f"{name}/")} | {name: on}
        return [*found]


def cleaned(text: str, longest: int = LONGEST) -> str:
    """Return a stranger's text without control characters, and not longer than that.

    Marks of the turn format in it are neutralized where every prompt is written (`engine/tokenizer.py`).
    """
    whole = len(text)
    text = text[:longest].replace("\r\n", "\n").replace("\r", "\n")
    text = "".join(one for one in text if one in _KEPT or unicodedata.category(one) not in ("Cc", "Cf", "Cs"))
    return (
        text if whole <= longest else f"{text}\n[cut: {whole:,} characters, of which these are the first {longest:,}]"
    )
