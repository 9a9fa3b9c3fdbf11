"""Tools that a request declares, and the choice among them."""

from collections.abc import Sequence
from typing import Any

from mlxmtp.engine.declarations import TOOL_NAME, declaration
from mlxmtp.errors import UsageError
from mlxmtp.serve.fields import Fields, Refused

Tool = dict[str, Any]


def declare(name: str, description: str, parameters: object, path: str) -> Tool:
    """Return a declaration as templates read it. Raises Refused for a name or a schema that is none."""
    if not TOOL_NAME.fullmatch(name):
        raise Refused(f"{path}.name must be letters, digits and _ . : / -, at most 128.", f"{path}.name")
    if parameters is not None and not isinstance(parameters, dict):
        raise Refused(f"{path}.parameters must be a JSON schema.", f"{path}.parameters")
    try:
        return declaration(name, description, parameters, f"{path}.parameters")
    except UsageError as error:
        raise Refused(str(error), f"{path}.parameters") from error


def choose(tools: Sequence[Tool], choice: str | None, named: str | None, path: str) -> dict[str, Any]:
    """Return the fields of `Asked` that a choice among tools means. Raises Refused for a tool that is not declared."""
    if choice == "none":
        return {"tools": ()}
    forced = [tool for tool in tools if named in (None, tool["function"]["name"])]
    if named is not None and not forced:
        raise Refused(f"{path} names '{named}', which is not among the tools.", path)
    if named is None and choice not in ("required", "any"):
        return {"tools": tools}
    if not tools:
        raise Refused(f"{path} asks for a call, and there are no tools.", path)
    return {"tools": tools, "forced": forced}


def functions(body: Fields, name: str = "tools") -> list[Tool]:
    """Return the tools of chat completions and Ollama; only functions are known."""
    found = []
    for tool in body.objects(name):
        if tool.text("type", "function") != "function":
            raise Refused(f"{tool.path('type')} must be function.", tool.path("type"))
        function = tool.object("function")
        if function is None:
            raise tool.wrong("function", "an object")
        found.append(_declared(function))
    return found


def flat_functions(body: Fields) -> list[Tool]:
    """Return the functions among the tools of responses, those inside namespaces too; what else there is stays out.

    Clients send tools that only their vendor's servers can run, and expect an answer without them.
    """
    found = []
    for tool in body.objects("tools"):
        kind = tool.text("type")
        if kind == "function":
            found.append(_declared(tool))
        elif kind == "namespace":
            found += [_declared(one) for one in tool.objects("tools") if one.text("type", "function") == "function"]
    return found


def _declared(function: Fields) -> Tool:
    description = function.text("description", "")
    return declare(function.text("name"), description, function.table.get("parameters"), function.where)
