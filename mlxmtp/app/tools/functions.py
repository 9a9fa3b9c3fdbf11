"""The public functions of a Python file as tools."""

import asyncio
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

from mlxmtp.app.tools.toolbox import Running, Tool
from mlxmtp.engine.functions import parameters_of
from mlxmtp.errors import UsageError
from mlxmtp.files import expand_home, is_file


def functions_in(file: str) -> list[Tool]:
    """Return the public functions that a Python file defines; it is run for that. Raises UsageError."""
    path = expand_home(file)
    spec = importlib.util.spec_from_file_location(f"mlxmtp_functions_{path.stem}", path)
    if not is_file(path) or spec is None or spec.loader is None:
        raise UsageError(f"{file} is no Python file: --functions takes one with functions in it.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where a dataclass looks for the names in its annotations
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # code of the user's runs here
        sys.modules.pop(spec.name, None)
        raise UsageError(f"{file} cannot be run: {type(error).__name__}: {error}.") from error
    own = [
        one
        for name, one in vars(module).items()
        if inspect.isfunction(one) and one.__module__ == module.__name__ and not name.startswith("_")
    ]
    if not own:
        raise UsageError(f"{file} defines no function whose name begins without _.")
    return [tool_of(one, path.stem, str(path.resolve())) for one in own]


def tool_of(function: Callable[..., Any], server: str = "functions", origin: str = "") -> Tool:
    """Return a function as a tool. Raises as `parameters_of`."""

    def run(arguments: Mapping[str, Any], _: Running) -> str:
        value = function(**arguments)
        if inspect.iscoroutine(value):
            value = asyncio.run(value)
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)

    told = inspect.getdoc(function) or ""
    return Tool(server, function.__name__, told, parameters_of(function), run, origin=origin)
