"""Tools that a request declares, and the choice among them."""

from collections.abc import Iterator, Sequence
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


def choose_of(tools: Sequence[Tool], allowed: Fields) -> dict[str, Any]:
    """Return the fields of `Asked` for a choice that allows some of the tools. Raises Refused."""
    inside, names = [], set()
    for tool in allowed.objects("tools"):
        one = tool.object("function") or tool
        if tool.text("type", "function") == "namespace":
            inside.append(qualified(tool.text("name"), ""))
        else:
            names.add(qualified(one.text("namespace", ""), one.text("name", "")))
    known = [(tool, tool["function"]["name"]) for tool in tools]
    some = [tool for tool, name in known if name in names or name.startswith(tuple(inside))]
    return choose(some, allowed.choice("mode", "auto", "required", default="auto"), None, allowed.where)


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
    for tool in _flat(body):
        if tool.text("type") == "function":
            found.append(_declared(tool))
        found += [_declared(one, qualified(space, one.text("name"))) for space, one in _inside(tool)]
    return found


def qualified(namespace: str, name: str) -> str:
    """Return the one name by which a model knows a function inside a namespace."""
    return f"{namespace}{'' if namespace.endswith('__') else '__'}{name}" if namespace else name


def spaces(body: Fields) -> dict[str, tuple[str, str]]:
    """Return the namespace and the name of every function inside one, by the name that the model knows."""
    inside = ((space, one.text("name")) for tool in _flat(body) for space, one in _inside(tool))
    return {qualified(*both): both for both in inside}


def _flat(body: Fields) -> Iterator[Fields]:
    """Yield the tools of a response, those of items that add some included."""
    yield from body.objects("tools")
    for item in body.objects("input") if isinstance(body.table.get("input"), list) else ():
        if item.text("type", "") == "additional_tools":
            yield from item.objects("tools")


def _inside(tool: Fields) -> Iterator[tuple[str, Fields]]:
    if tool.text("type") == "namespace":
        for one in tool.objects("tools"):
            if one.text("type", "function") == "function":
                yield tool.text("name", ""), one


def _declared(function: Fields, name: str = "") -> Tool:
    description = function.text("description", "")
    return declare(name or function.text("name"), description, function.table.get("parameters"), function.where)
