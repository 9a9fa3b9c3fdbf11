"""Approval of calls: answers of the person, for one call, for a conversation, or for good.

What holds for good is a file beside the config: labels of tools with the hash of what was agreed to, so that a tool
whose description, schema or origin (what runs) changes has to be allowed anew.
"""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mlxmtp.app.tools.toolbox import Tool
from mlxmtp.errors import ConfigError, MlxmtpError
from mlxmtp.files import write_atomically

Grant = Literal["once", "conversation", "always", "no"]


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer to one call, with the person's words if it is no."""

    grant: Grant
    why: str = ""


AskPerson = Callable[[Tool, Mapping[str, Any]], Decision]


class Approvals:
    """Decides about calls. `named`: labels, or servers with /*, that the command line allows."""

    def __init__(self, file: Path, named: Collection[str] = (), ask: AskPerson | None = None) -> None:
        """`ask` None: nobody is there, so what is not allowed is refused."""
        self._file, self._named, self._ask = file, frozenset(named), ask
        self._here: set[str] = set()  # fingerprints, in this conversation
        self.refused: list[str] = []  # labels that nobody could be asked about
        self.remarks: list[str] = []  # for the person, on what could not be kept

    def decide(self, tool: Tool, arguments: Mapping[str, Any]) -> Decision:
        """Return whether a call may run. Raises ConfigError for a file of approvals that cannot be read.

        What cannot be written there holds for this conversation, with a remark.
        """
        if tool.reads or self._allows(tool):
            return Decision("once")
        if self._ask is None:
            self.refused.append(tool.label)
            return Decision("no", "nobody is there to allow it")
        decision = self._ask(tool, arguments)
        if tool.singly:
            return decision
        if decision.grant == "conversation":
            self._here.add(tool.fingerprint)
        elif decision.grant == "always":
            try:
                self._write({**self._read(), tool.label: tool.fingerprint})
            except MlxmtpError as error:
                self._here.add(tool.fingerprint)
                self.remarks.append(f"{tool.label} is allowed in this conversation only. {error}")
        return decision

    def require_none_refused(self) -> None:
        """Raise MlxmtpError if the model wanted to run what nobody could be asked about."""
        if self.refused:
            label = self.refused[0]
            raise MlxmtpError(f"{label} was not run, because nobody could be asked: --allow {label} allows it.")

    def unknown(self, labels: Collection[str], named: Collection[str] | None = None) -> list[str]:
        """Return a remark for each label that the command line allows, or of `named`, and no tool has."""
        there = {*labels, *(f"{label.partition('/')[0]}/*" for label in labels)}
        wanted = self._named if named is None else named
        return [f"--allow {one} names no tool that is there." for one in sorted(wanted) if one not in there]

    def revoke(self, server: str) -> None:
        """Forget what was allowed for good of a server. Raises MlxmtpError for a file that will not do."""
        kept = self._read()
        left = {label: one for label, one in kept.items() if label.partition("/")[0] != server}
        if left != kept:
            self._write(left)

    def forget(self) -> None:
        """Begin another conversation."""
        self._here.clear()

    def _allows(self, tool: Tool) -> bool:
        if {tool.label, f"{tool.server}/*"} & self._named:
            return True
        if tool.singly:  # not by what was kept before it was
            return False
        return tool.fingerprint in self._here or self._read().get(tool.label) == tool.fingerprint

    def _write(self, kept: Mapping[str, Any]) -> None:
        try:
            write_atomically(self._file, json.dumps(kept, indent=1) + "\n", parents=True)
        except OSError as error:
            raise MlxmtpError(f"{self._file} cannot be written: {error.strerror or error}.") from error

    def _read(self) -> dict[str, Any]:
        try:
            kept = json.loads(self._file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self._file} cannot be read: {error}. Remove it, and tools ask again.") from error
        return kept if isinstance(kept, dict) else {}
