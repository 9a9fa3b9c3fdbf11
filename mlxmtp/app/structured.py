"""The constraint that settings ask for: a schema in one of four ways, an expression or a grammar."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any, cast

from mlxmtp.app.tools.arguments import fault_in
from mlxmtp.chat.material import read_text
from mlxmtp.engine.calls import strict_json
from mlxmtp.engine.constraint import Constraint
from mlxmtp.errors import UsageError
from mlxmtp.files import is_file
from mlxmtp.settings import Settings

_CLASS = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_FIELD = re.compile(r"(?P<name>[A-Za-z_]\w*)(?:\s+(?P<type>str|int|float|bool|list))?(?:\s*:\s*(?P<about>.+))?")
_TYPES: dict[str | None, dict[str, Any]] = {
    None: {"type": "string"},
    "str": {"type": "string"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "list": {"type": "array", "items": {"type": "string"}},
}


def constraint_of(settings: Settings) -> Constraint | None:
    """Return what an answer must be, None for anything. Raises UsageError for what cannot be read or is unsupported."""
    asked = {"--schema": settings.schema, "--regex": settings.regex, "--grammar": settings.grammar}
    flags = [
        flag for flag, value in [*asked.items(), ("--json-output", settings.json_output or None)] if value is not None
    ]
    if len(flags) > 1:
        raise UsageError(f"{flags[0]} and {flags[1]} exclude each other: take one.")
    if settings.schema is not None:
        constraint = Constraint.schema(read_schema(settings.schema))
    elif settings.regex is not None:
        constraint = Constraint("regex", settings.regex)
    elif settings.grammar is not None:
        constraint = Constraint("grammar", read_text(settings.grammar))
    elif settings.json_output:
        constraint = Constraint.schema({})
    else:
        return None
    try:
        constraint.check()
    except UnicodeEncodeError:  # bytes of the command line that are no text
        raise UsageError(f"{flags[0]} is not valid UTF-8.") from None
    return constraint


def read_schema(text: str) -> dict[str, Any]:
    """Return the schema that JSON, the name of a file, `module:Class` (pydantic) or `name, age int` stands for."""
    if text.lstrip().startswith("{"):
        return _parsed(text, "The schema")
    if is_file(text):
        return _parsed(read_text(text), text)
    if _CLASS.fullmatch(text):
        return _of_class(*text.split(":"))
    fields = [_FIELD.fullmatch(one.strip()) for one in re.split(r"[,\n]", text) if one.strip()]
    if not fields or None in fields or re.fullmatch(r"[\w.]+", text):
        raise UsageError(
            f"There is no file {text}: give a file, JSON, module:Class of pydantic, or fields such as 'name, age int'."
        )
    names = [one["name"] for one in fields if one is not None]
    if twice := next((one for one in names if names.count(one) > 1), None):
        raise UsageError(f"The schema has two fields {twice}: give each a name of its own.")
    properties = {one["name"]: _described(one) for one in fields if one is not None}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _described(field: re.Match[str]) -> dict[str, Any]:
    about = {"description": field["about"]} if field["about"] else {}
    return {**_TYPES[field["type"]], **about}


def _parsed(text: str, name: str) -> dict[str, Any]:
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{name} is no JSON: {error}.") from error
    if not isinstance(schema, dict):
        raise UsageError(f'{name} is no JSON schema: one is an object, such as {{"type": "object"}}.')
    return schema


def _of_class(module: str, name: str) -> dict[str, Any]:
    """Return the schema of a pydantic class, looked for in the current folder, too."""
    sys.path.insert(0, "")
    try:
        with redirect_stdout(sys.stderr):  # what it prints is no part of the answer
            found = getattr(importlib.import_module(module), name)
            schema = found.model_json_schema()
    except (Exception, SystemExit) as error:  # code of the user's runs here
        if isinstance(error, SystemExit) and type(error) is not SystemExit:  # of a signal
            raise
        raise UsageError(f"{module}:{name} gives no schema: {error}. It must be a pydantic class.") from error
    finally:
        sys.path.remove("")
    return cast("dict[str, Any]", _closed(schema))


def _closed(schema: Any) -> Any:
    """Return a schema of classes with no other properties than theirs, where it does not say that there may be some."""
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    named = closed.get("type") == "object" and "properties" in closed
    return {"additionalProperties": False, **closed} if named else closed


def has_form(text: str, form: Constraint) -> bool:
    """Return whether a text is JSON of a schema, or matches an expression; of a grammar that is not looked at."""
    if form.kind == "grammar":
        return True
    if form.kind == "regex":
        return form.fits(text)
    try:
        value = strict_json(text)
    except (ValueError, RecursionError):
        return False
    schema = json.loads(form.source)
    return not fault_in(value, schema if isinstance(schema, dict) else {}, _fits)


def _fits(text: str, form: Mapping[str, Any]) -> bool:
    """Return whether a text has a pattern and a format, by the grammar, which never tries another way."""
    return Constraint.schema({"type": "string", **form}).fits(json.dumps(text, ensure_ascii=False))
