"""Plain Python functions as declarations of tools: annotations become a schema, the docstring the description."""

import inspect
import types
from collections.abc import Callable
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from mlxmtp.engine.declarations import Declaration, declaration
from mlxmtp.errors import UsageError

_NAMED = {str: "string", int: "integer", float: "number", bool: "boolean", dict: "object"}


def declare(function: Callable[..., Any]) -> Declaration:
    """Return the declaration of a function for `Model.stream(tools=…)`; its calls come as `Call` events.

    Annotations may be str, int, float, bool, list, dict, Literal of texts, and `| None`. Raises UsageError, which names
    the parameter that has no such annotation.
    """
    named = function.__name__
    return declaration(named, inspect.getdoc(function) or "", parameters_of(function), f"The schema of {named}")


def parameters_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the schema of a function's arguments. Raises UsageError as `declare`."""
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
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _schema_of(hint: Any, where: str) -> dict[str, Any]:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        some = [one for one in inner if one is not type(None)]
        if len(some) == 1:
            return {**_schema_of(some[0], where), "nullable": True}
    elif origin is Literal and all(isinstance(one, str) for one in inner):
        return {"type": "string", "enum": list(inner)}
    elif (origin or hint) is list:
        return {"type": "array", "items": _schema_of(inner[0], where) if inner else {"type": "any"}}
    elif (kind := _NAMED.get(origin or hint)) is not None:
        return {"type": kind}
    raise UsageError(f"{where}: tools take str, int, float, bool, Literal of texts, list, dict and | None, not {hint}.")
