"""The tools that a command was given, with who may run them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxmtp.app.tools.approval import Approvals, AskPerson
from mlxmtp.app.tools.toolbox import Tool, Toolbox
from mlxmtp.errors import UsageError
from mlxmtp.settings import Loaded

APPROVALS = "approvals.json"  # beside the config file


@dataclass(frozen=True, slots=True)
class Tools:
    """A toolbox and its approvals; empty where no tools were asked for."""

    box: Toolbox
    approvals: Approvals

    @property
    def declarations(self) -> Sequence[Mapping[str, Any]]:
        return self.box.declarations


def no_tools() -> Tools:
    """Return an empty toolbox."""
    return Tools(Toolbox(), Approvals(Path()))


def chosen_tools(words: Sequence[str], loaded: Loaded, ask: AskPerson | None) -> Tools:
    """Return tools by the words of --tools, with commas between or several, and files of functions.

    Raises UsageError for what there is none of, also for an --allow that no tool has.
    """
    from mlxmtp.app.tools.builtin import builtin  # imports a client of HTTP
    from mlxmtp.app.tools.functions import functions_in

    names = [name.strip() for word in words for name in word.split(",") if name.strip()]
    tools: list[Tool] = [tool for name in names for tool in builtin(name)]
    settings, allow = loaded.settings, loaded.settings.allow or ()
    tools += [tool for file in settings.functions or () for tool in functions_in(file)]
    labels = {tool.label for tool in tools} | {f"{tool.server}/*" for tool in tools}
    for one in allow:
        if one not in labels:
            there = ", ".join(sorted(tool.label for tool in tools if not tool.reads)) or "none that asks"
            raise UsageError(f"--allow {one} names no tool that was given: there is {there}.")
    return Tools(Toolbox(tools), Approvals(loaded.places.config.with_name(APPROVALS), allow, ask))
