"""Tools that come with the program. All but `fetch` only read, and files only below the folder that was named."""

import ast
import operator
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit, urlunsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from mlxmtp.app.tools.toolbox import Run, Running, Tool
from mlxmtp.chat.material import whole_text
from mlxmtp.errors import UsageError
from mlxmtp.files import exists, expand_home, is_folder

SERVER = "builtin"
_MOST_FILES, _MOST_LINES, _LARGEST = 500, 400, 4 * 2**20
_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 1}
_FETCH_SECONDS = 20
_KEPT = "%:/?#[]@!$&'()*+,;="  # in an address, whatever else is quoted
_TIME = "%A %Y-%m-%d %H:%M:%S %z"


def builtin(name: str, *, tell_folder: bool = False) -> list[Tool]:
    """Return the tools that a word stands for: time, calculator, fetch, `files=FOLDER`. Raises UsageError.

    `tell_folder`: descriptions say which folder is read, as one of several.
    """
    word, _, folder = name.partition("=")
    if word == "files":
        tools = _Files(Path(folder or ".")).tools()
        told = f" The folder is {folder or '.'}." if tell_folder else ""
        return [replace(one, description=one.description + told) for one in tools]
    if name == "time":
        return [_tool("now", "The date and time here.", lambda *_: f"{datetime.now().astimezone():{_TIME}}")]
    if name == "calculator":
        told = "Value of an arithmetic expression: + - * / // % ** and parentheses."
        return [_tool("calculate", told, lambda given, _: calculate(str(given["expression"])), expression=_TEXT)]
    if name == "fetch":
        tool = _tool("fetch", "Text of a web address.", lambda given, _: fetch(str(given["url"])), url=_TEXT)
        return [replace(tool, reads=False, singly=True)]
    raise UsageError(f"There are no tools '{name}': give time, calculator, fetch or files=FOLDER.")


def _tool(name: str, description: str, run: Run, **properties: Any) -> Tool:
    required = [key for key, one in properties.items() if not one.get("optional")]
    plain = {key: {word: value for word, value in one.items() if word != "optional"} for key, one in properties.items()}
    schema = {"type": "object", "properties": plain, "required": required}
    return Tool(SERVER, name, description, schema, run, reads=True)


_TWO: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}


def calculate(expression: str) -> str:
    """Return the value of an expression of numbers. Raises ValueError for anything else and for huge ones."""

    def value(node: ast.AST) -> Any:
        match node:
            case ast.Expression(body=body):
                return value(body)
            case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
                return number
            case ast.UnaryOp(op=ast.USub(), operand=one):
                return -value(one)
            case ast.UnaryOp(op=ast.UAdd(), operand=one):
                return value(one)
            case ast.BinOp(left=left, op=operation, right=right) if type(operation) in _TWO:
                a, b = value(left), value(right)
                if isinstance(operation, ast.Pow) and (abs(b) > 1000 or abs(a) > 1e6):
                    raise ValueError("the power is too large")
                return _TWO[type(operation)](a, b)
        raise ValueError("only numbers, + - * / // % ** and parentheses can be calculated")

    if len(expression) > 1000:
        raise ValueError("the expression is too long")
    try:
        return str(value(ast.parse(expression.strip(), mode="eval")))
    except (SyntaxError, ArithmeticError, RecursionError, MemoryError) as error:
        raise ValueError(f"it cannot be calculated: {error}") from error


class _NoRedirect(HTTPRedirectHandler):
    """Leaves a redirection to the model: what was approved is the address that was shown."""

    def redirect_request(self, *_: Any) -> None:
        return None


def fetch(url: str) -> str:
    """Return the text at an http address. Raises ValueError."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise ValueError("only http and https addresses can be fetched")
    path, query = (quote(one, safe=_KEPT) for one in (parts.path, parts.query))
    try:
        request = Request(urlunsplit(parts._replace(path=path, query=query)), headers={"User-Agent": "mlxmtp"})
        with build_opener(_NoRedirect).open(request, timeout=_FETCH_SECONDS) as response:
            kind = response.headers.get_content_type()
            if not kind.startswith("text/") and kind not in ("application/json", "application/xml"):
                raise ValueError(f"it is {kind}, no text")
            data: bytes = response.read(_LARGEST)
            return data.decode(response.headers.get_content_charset() or "utf-8", "replace")
    except HTTPError as error:
        where = error.headers.get("Location")
        raise ValueError(f"{error.code} {error.reason}" + (f", see {where}" if where else "")) from error
    except (URLError, HTTPException, OSError, LookupError) as error:
        raise ValueError(f"it cannot be fetched: {error}") from error


class _Files:
    """Files below one folder, without hidden ones, whatever links lead to those or out of it."""

    def __init__(self, folder: Path) -> None:
        """Raise UsageError if there is no such folder."""
        self._root = expand_home(folder).resolve()
        if not is_folder(self._root):
            raise UsageError(f"There is no folder {folder}: --tools files=FOLDER names one to read below.")

    def tools(self) -> list[Tool]:
        where = {**_TEXT, "description": "Path below the folder; '.' is the folder itself.", "optional": True}
        path = {**_TEXT, "description": "Path below the folder."}
        first = {**_COUNT, "description": "First line, 1 by default.", "optional": True}
        text = {**_TEXT, "description": "Plain text, upper and lower case alike."}
        return [
            _tool("list_files", "Names of files and folders; folders end in /.", self._list, path=where),
            _tool("read_file", f"At most {_MOST_LINES} lines of a text file.", self._read, path=path, first_line=first),
            _tool("search_files", "Lines of files that contain a text.", self._search, text=text, path=where),
        ]

    def _inside(self, name: object) -> Path:
        path = (self._root / str(name or ".")).resolve()
        if not path.is_relative_to(self._root):
            raise ValueError(f"{name} is not below the folder that may be read")
        if any(part.startswith(".") for part in path.relative_to(self._root).parts):
            raise ValueError(f"{name} is hidden (a name begins with a dot), so it may not be read")
        if not exists(path):
            raise ValueError(f"there is no {name}")
        return path

    def _list(self, given: Mapping[str, Any], _: Running) -> str:
        folder = self._inside(given.get("path"))
        if not folder.is_dir():
            raise ValueError(f"{given.get('path')} is a file: read_file reads it")
        shown = [one for one in folder.iterdir() if not one.name.startswith(".")]
        names = sorted(f"{one.name}/" if one.is_dir() else one.name for one in shown)
        _require_no_link(folder)
        more = [f"[{len(names) - _MOST_FILES} more]"] if len(names) > _MOST_FILES else []
        return "\n".join([*names[:_MOST_FILES], *more]) or "It is empty."

    def _read(self, given: Mapping[str, Any], _: Running) -> str:
        path = self._inside(given["path"])
        lines = _text_of(path).split("\n")
        first = max(1, int(given.get("first_line") or 1))
        shown = lines[first - 1 : first - 1 + _MOST_LINES]
        if not shown:
            raise ValueError(f"it has {len(lines)} lines")
        end = first - 1 + len(shown)
        return "\n".join(shown) + (f"\n[lines {first} to {end} of {len(lines)}]" if len(shown) < len(lines) else "")

    def _search(self, given: Mapping[str, Any], running: Running) -> str:
        wanted, found = str(given["text"]).casefold(), list[str]()
        if not wanted:
            raise ValueError("there is no text to look for")
        for path in self._below(self._inside(given.get("path"))):
            if running.over:
                break
            try:
                text = _text_of(path)
            except ValueError:
                continue
            name = path.relative_to(self._root)
            found += [
                f"{name}:{at}: {line[:200]}" for at, line in enumerate(text.split("\n"), 1) if wanted in line.casefold()
            ]
            if len(found) >= _MOST_LINES:
                return "\n".join([*found[:_MOST_LINES], "[more were found]"])
        return "\n".join(found) or "Nothing was found."

    def _below(self, start: Path) -> Iterator[Path]:
        """Yield files, without hidden ones and without links."""
        if start.is_file():
            yield start
            return
        try:
            shown = [one for one in sorted(start.iterdir()) if not one.name.startswith(".") and not one.is_symlink()]
            inside = [(one, one.is_dir()) for one in shown]
        except OSError:  # nobody may look into it
            return
        for path, holds_others in inside:
            yield from self._below(path) if holds_others else [path]


def _require_no_link(path: Path) -> None:
    """Raise ValueError if a link has come into a path since it was resolved: what was read may be from elsewhere."""
    if os.path.realpath(path) != str(path):
        raise ValueError(f"{path.name} has become a link")


def _text_of(path: Path) -> str:
    """Return a file's text, decoded as attached files are. Raises ValueError for what is none or is too large."""
    try:
        if not path.is_file():
            raise ValueError(f"{path.name} is no file")
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"{path.name} is larger than {_LARGEST // 2**20} MB")
        data = path.read_bytes()
        _require_no_link(path)
        return whole_text(data, path.name)[0]
    except OSError as error:
        raise ValueError(f"{path.name} cannot be read: {error.strerror}") from error
    except UsageError as error:
        raise ValueError(str(error).rstrip(".")) from error
