"""Plain Python functions as tools: their annotations become a schema, their docstrings the description."""

import importlib.util
import inspect
import json
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from mlxmtp.app.tools.toolbox import Running, Tool
from mlxmtp.errors import UsageError

_NAMED = {str: "string", int: "integer", float: "number", bool: "boolean", dict: "object", list: "array"}


def functions_in(file: str) -> list[Tool]:
    """Return the public functions that a Python file defines; it is run for that. Raises UsageError."""
    path = Path(file).expanduser()
    spec = importlib.util.spec_from_file_location(f"mlxmtp_functions_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UsageError(f"{file} is no Python file: --functions takes one with functions in it.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # code of the user's runs here
        raise UsageError(f"{file} cannot be run: {type(error).__name__}: {error}.") from error
    own = [
        one
        for name, one in vars(module).items()
        if inspect.isfunction(one) and one.__module__ == module.__name__ and not name.startswith("_")
    ]
    if not own:
        raise UsageError(f"{file} defines no function whose name begins without _.")
    return [tool_of(one, path.stem) for one in own]


def tool_of(function: Callable[..., Any], server: str = "functions") -> Tool:
    """Return a function as a tool. Raises UsageError, which names the parameter that has no usable annotation."""
    named = function.__name__
    try:
        hints = get_type_hints(function)
    except (NameError, TypeError) as error:
        raise UsageError(f"The annotations of {named} cannot be read: {error}.") from error
    properties: dict[str, Any] = {}
    required = []
    for name, one in inspect.signature(function).parameters.items():
        if one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD, one.POSITIONAL_ONLY):
            raise UsageError(f"{named}({one}) cannot be a tool: each parameter needs a name of its own.")
        if name not in hints:
            raise UsageError(f"{named} cannot be a tool: its parameter {name} has no annotation, such as {name}: str.")
        properties[name] = _schema_of(hints[name], f"{named}({name})")
        if one.default is one.empty:
            required.append(name)
    schema = {"type": "object", "properties": properties, "required": required}

    def run(arguments: Mapping[str, Any], _: Running) -> str:
        value = function(**arguments)
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)

    return Tool(server, named, inspect.getdoc(function) or "", schema, run)


def _schema_of(hint: Any, where: str) -> dict[str, Any]:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        some = [one for one in inner if one is not type(None)]
        if len(some) == 1:
            return {**_schema_of(some[0], where), "nullable": True}
    elif origin is Literal and all(isinstance(one, str) for one in inner):
        return {"type": "string", "enum": list(inner)}
    elif origin is list and inner:
        return {"type": "array", "items": _schema_of(inner[0], where)}
    elif (kind := _NAMED.get(origin or hint)) is not None:
        return {"type": kind}
    raise UsageError(f"{where}: tools take str, int, float, bool, Literal of texts, list, dict and | None, not {hint}.")
