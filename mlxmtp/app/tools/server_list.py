"""The tool servers that the person has named: `mcp.json` beside the config file, in the form that other programs share.

    {"mcpServers": {"notes": {"command": "npx", "args": [...], "env": {...}, "cwd": "..."},
                    "far": {"url": "https://...", "headers": {"Authorization": "Bearer ${TOKEN}"}}}}

No other file is read, least of all one in the folder where the program happens to run. What a file says about trust or
approval is passed over: that is between the person and `approval.py`.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from mlxmtp.environment import with_variables
from mlxmtp.errors import ConfigError, MlxmtpError, UsageError
from mlxmtp.files import write_atomically
from mlxmtp.units import nearest

FILE = "mcp.json"
TAKEN = frozenset({"builtin", "mcp"})  # names that mean something else in --tools and --allow
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,47}")
_KEY = "mcpServers"


@dataclass(frozen=True, slots=True)
class ServerEntry:
    """One server: a command that speaks over pipes, or the address of one that speaks HTTP."""

    name: str
    command: str = ""
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None
    url: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    off: bool = False
    origin: str = ""  # what runs and where, as the file has it: `filled` keeps it

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or self.name in TAKEN:
            raise ConfigError(
                f"A tool server cannot be called '{self.name}': take letters, digits, _ - and ., 48 at most, "
                f"and none of {', '.join(sorted(TAKEN))}."
            )
        if bool(self.command) == bool(self.url):
            raise ConfigError(f"The tool server '{self.name}' needs a command or a url, and not both.")
        if self.url and (urlsplit(self.url).scheme not in ("http", "https") or not urlsplit(self.url).netloc):
            raise ConfigError(f"The url of the tool server '{self.name}' must begin with http:// or https://.")

    @classmethod
    def read(cls, name: str, said: object, file: Path) -> Self:
        """Return a server as `file` tells of it. Raises ConfigError, which names what is wrong."""
        wrong = f"{file}: the tool server '{name}'"
        if not isinstance(said, dict):
            raise ConfigError(f"{wrong} must be an object.")
        if said.get("type") == "sse":
            raise ConfigError(f"{wrong} speaks SSE, which the protocol has given up: name its streamable HTTP address.")
        kinds: dict[str, type] = {"command": str, "args": list, "env": dict, "cwd": str, "url": str, "headers": dict}
        given = {key: said[key] for key in kinds if said.get(key) is not None}
        for key, value in given.items():
            inner = value if isinstance(value, list) else [*value.values()] if isinstance(value, dict) else [value]
            if not isinstance(value, kinds[key]) or not all(isinstance(one, str) for one in inner):
                raise ConfigError(f"{wrong} has no usable {key}: texts are wanted.")
        given["args"] = tuple(given.get("args", ()))
        return cls(name, **given, off=said.get("disabled") is True)

    @property
    def shown(self) -> str:
        """The command line or the address, without keys."""
        return self.url or shlex.join([self.command, *self.args])

    def filled(self) -> ServerEntry:
        """Return it with the environment's values in place of `${NAME}`. Raises ConfigError for one that is not set."""
        try:
            return replace(
                self,
                command=with_variables(self.command),
                args=tuple(map(with_variables, self.args)),
                env={key: with_variables(value) for key, value in self.env.items()},
                cwd=None if self.cwd is None else with_variables(self.cwd),
                url=with_variables(self.url),
                headers={key: self._header(key, with_variables(value).strip()) for key, value in self.headers.items()},
                origin=f"{self.shown} in {self.cwd}",
            )
        except KeyError as error:
            raise ConfigError(f"The tool server '{self.name}' needs {error.args[0]} in the environment.") from error

    def _header(self, key: str, value: str) -> str:
        """Return the value of a header. Raises ConfigError, which does not show it, for one that no header holds."""
        if not (value.isascii() and (value.isprintable() or not value)):
            told = "has a line break or another character that no header holds: set its variable anew"
            raise ConfigError(f"The header {key} of the tool server '{self.name}' {told}.")
        return value


class ServerList:
    """The entries of a file, in its order; whatever else it holds stays as it is."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def entries(self) -> list[ServerEntry]:
        """Return all servers. Raises ConfigError for a file that cannot be used."""
        return [ServerEntry.read(name, said, self.file) for name, said in self._read()[_KEY].items()]

    def find(self, name: str) -> ServerEntry:
        """Return a server by its name. Raises UsageError if there is none."""
        entries = {one.name: one for one in self.entries()}
        if name not in entries:
            near = nearest(name, sorted(entries))
            there = f"did you mean '{near}'?" if near else f"there are {', '.join(entries) or 'none'}."
            raise UsageError(f"There is no tool server '{name}': {there} mlxmtp mcp add names one.")
        return entries[name]

    def meant(self, words: Sequence[str]) -> list[ServerEntry]:
        """Return the servers that words of --tools mean: NAME, mcp=NAME, or mcp for all. Raises UsageError."""
        known, found = self.entries(), dict[str, ServerEntry]()
        for word in words:
            name = word.removeprefix("mcp=")
            some = [one for one in known if one.name == name or (word == "mcp" and not one.off)]
            if not some and word == "mcp":
                raise UsageError(f"There are no tool servers in {self.file}: mlxmtp mcp add names one.")
            if not some:
                raise UsageError(
                    f"There are no tools '{word}': give time, calculator, fetch, files=FOLDER or the name of a tool "
                    "server (mlxmtp mcp ls)."
                )
            found |= {one.name: one for one in some}
        return [*found.values()]

    def add(self, entry: ServerEntry, *, overwrite: bool = False) -> None:
        """Write a server into the file. Raises UsageError for a name that is there, unless it may be overwritten."""
        whole = self._read()
        if entry.name in whole[_KEY] and not overwrite:
            raise UsageError(f"There is a tool server '{entry.name}' already: take another name, or --force.")
        said = {"command": entry.command, "args": [*entry.args], "env": {**entry.env}}
        if entry.url:
            said = {"type": "http", "url": entry.url, "headers": {**entry.headers}}
        whole[_KEY][entry.name] = {key: value for key, value in said.items() if value}
        self._write(whole)

    def remove(self, name: str) -> None:
        """Take a server out of the file. Raises UsageError if there is none."""
        whole = self._read()
        if whole[_KEY].pop(name, None) is None:
            self.find(name)
        self._write(whole)

    def _read(self) -> dict[str, Any]:
        try:
            whole = json.loads(self.file.read_text(encoding="utf-8-sig"))
        except FileNotFoundError:
            return {_KEY: {}}
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"{self.file} cannot be read: {error}.") from error
        if not isinstance(whole, dict) or not isinstance(whole.setdefault(_KEY, {}), dict):
            raise ConfigError(f'{self.file} must be of the form {{"{_KEY}": {{"NAME": {{"command": "..."}}}}}}.')
        return whole

    def _write(self, whole: Mapping[str, Any]) -> None:
        text = json.dumps(whole, ensure_ascii=False, indent=2) + "\n"
        try:
            write_atomically(self.file, text, parents=True, private=True)  # keys may be in it
        except OSError as error:
            raise MlxmtpError(f"{self.file} cannot be written: {error.strerror or error}.") from error
