"""The tools that a command was given, with who may run them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxmtp.app.tools.approval import Approvals, AskPerson
from mlxmtp.app.tools.server_list import FILE, ServerList
from mlxmtp.app.tools.toolbox import Tool, Toolbox
from mlxmtp.errors import UsageError
from mlxmtp.settings import Loaded

if TYPE_CHECKING:
    from mlxmtp.app.tools.mcp_servers import Servers

APPROVALS = "approvals.json"  # beside the config file
BUILT_IN = frozenset({"time", "calculator", "fetch", "files"})


@dataclass(slots=True)
class Tools:
    """A toolbox and its approvals; empty where no tools were asked for. Those of servers come with `renew`."""

    approvals: Approvals
    box: Toolbox = field(default_factory=Toolbox)
    own: Sequence[Tool] = ()
    servers: Servers | None = None
    _served: Mapping[str, str] | None = None  # fingerprints of the servers' tools, once they were listed
    _told: set[str] = field(default_factory=set)
    _broken: set[str] = field(default_factory=set)  # names of servers that are known not to work

    def __bool__(self) -> bool:
        return bool(self.own or self.servers)

    @property
    def declarations(self) -> Sequence[Mapping[str, Any]]:
        return self.box.declarations

    def renew(self) -> list[str]:
        """Take the tools of the servers as they are now, waiting for those that start; return what is new to say."""
        if self.servers is None:
            return self.unsaved_approvals()
        before = self._served or {}
        if self._served is None:
            self.servers.wait()
        else:
            self.servers.renew()
        told = [tool for one in self.servers.all for tool in one.tools]
        self._served = now = {tool.label: tool.fingerprint for tool in told}
        if now != before:
            self.box = self.box.renewed([*self.own, *told])
        remarks = [f"{one.entry.name} offers {text}, left out." for one in self.servers.all for text in one.left_out]
        remarks += self.approvals.unknown([*now, *(tool.label for tool in self.own)])
        remarks += self.approvals.remarks
        self._told &= {*remarks}  # what held no longer in between is told again
        complaints = self._complaints()
        remarks = [*(text for name, text in complaints.items() if name not in self._broken), *self._untold(remarks)]
        self._broken = {*complaints}  # told again only if they have worked in between, whatever it is by then
        changed = [label for label in now if before.get(label, now[label]) != now[label]]
        return remarks + [
            f"{label} has another description or other arguments now: it asks again." for label in changed
        ]

    def unsaved_approvals(self) -> list[str]:
        """Return what is new to say of approvals that hold for this conversation only."""
        return self._untold(self.approvals.remarks)

    def _untold(self, remarks: Sequence[str]) -> list[str]:
        """Return those that were not told before; they are then."""
        new = [text for text in remarks if text not in self._told]
        self._told |= {*new}
        return new

    @property
    def complaints(self) -> list[str]:
        """A sentence for each server that does not work."""
        return [*self._complaints().values()]

    def _complaints(self) -> dict[str, str]:
        servers = () if self.servers is None else self.servers.all
        told = {one.entry.name: text for one in servers if (text := one.complaint)}
        return {name: f"{text} Try: mlxmtp mcp check {name}" for name, text in told.items()}

    @property
    def written(self) -> list[str]:
        """The last that servers wrote for people, line by line."""
        servers = () if self.servers is None else self.servers.all
        return [f"{one.entry.name} | {line}" for one in servers for line in one.tail.text.splitlines()]


def no_tools() -> Tools:
    """Return an empty toolbox."""
    return Tools(Approvals(Path()))


def server_list(loaded: Loaded) -> ServerList:
    """Return the servers that the person has named."""
    return ServerList(loaded.places.config.with_name(FILE))


def approvals_file(loaded: Loaded) -> Path:
    """Return the file of what was allowed for good."""
    return loaded.places.config.with_name(APPROVALS)


def chosen_tools(words: Sequence[str], loaded: Loaded, ask: AskPerson | None) -> Tools:
    """Return tools by the words of --tools, with commas between or several, and files of functions.

    Servers begin to start. Raises UsageError for what there is none of, also for an --allow that no tool can have.
    """
    settings, allow = loaded.settings, loaded.settings.allow or ()
    names = [name.strip() for word in words for name in word.split(",") if name.strip()]
    own: list[Tool] = []
    if ours := [name for name in names if name.partition("=")[0] in BUILT_IN]:
        from mlxmtp.app.tools.builtin import builtin  # imports a client of HTTP

        several = sum(name.partition("=")[0] == "files" for name in ours) > 1
        own += [tool for name in ours for tool in builtin(name, tell_folder=several)]
    if settings.functions:
        from mlxmtp.app.tools.functions import functions_in

        own += [tool for file in settings.functions for tool in functions_in(file)]
    others = [name for name in names if name not in ours]
    entries = server_list(loaded).meant(others) if others else []
    approvals = Approvals(approvals_file(loaded), allow, ask)
    servers = {one.name for one in entries}
    if both := servers & {tool.server for tool in own}:
        raise UsageError(f"A file of functions and a tool server are both called {both.pop()}: rename one of them.")
    for one in allow:
        if one.partition("/")[0] not in servers and approvals.unknown({tool.label for tool in own}, [one]):
            there = ", ".join(sorted(tool.label for tool in own if not tool.reads)) or "none that asks"
            raise UsageError(f"--allow {one} names no tool that was given: there is {there}.")
    if not entries:
        return Tools(approvals, Toolbox(own), own)
    from mlxmtp.app.tools.mcp_servers import Servers

    return Tools(approvals, Toolbox(own), own, Servers(entries))
