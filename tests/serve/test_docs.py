"""docs/server.md beside the code: every endpoint, every field that is read or refused, every number of /metrics."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any, cast

from starlette.applications import Starlette
from starlette.routing import Route

from mlxmtp.serve import chat_completions, messages, ollama, request, responses
from mlxmtp.serve.http import Door
from mlxmtp.serve.metrics import Metrics
from mlxmtp.serve.routes import Limits, Routes

DOCS = (Path(__file__).parents[2] / "docs" / "server.md").read_text(encoding="utf-8")
READING = {"text", "flag", "number", "object", "objects", "choice", "texts", "has"}
"""Methods of `Fields` that read the field which their first argument names; `refuse` takes several."""


def is_told(name: str) -> bool:
    return re.search(rf"(?<![A-Za-z_]){re.escape(name)}(?![A-Za-z_])", DOCS) is not None


def fields_of(module: Any) -> set[str]:
    """Names of fields that a module's source reads or refuses."""
    found = set()
    for node in ast.walk(ast.parse(Path(module.__file__).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            given = node.args if node.func.attr == "refuse" else node.args[: node.func.attr in READING]
            found |= {one.value for one in given if isinstance(one, ast.Constant) and isinstance(one.value, str)}
    return found


def test_every_endpoint_is_in_the_docs_and_the_other_way_round() -> None:
    app = cast(Any, Routes(cast(Any, None), Limits()).app(Door()))._app
    assert isinstance(app, Starlette)
    served = {
        (method, one.path.replace("{name:path}", "NAME"))
        for one in app.routes
        if isinstance(one, Route)
        for method in one.methods or ()
    }
    told = set(re.findall(r"`(GET|POST|HEAD) (/[^ `]*)`", DOCS))
    assert told <= served
    assert {one for one in served if one[0] != "HEAD"} <= told


def test_every_field_is_in_the_docs() -> None:
    names = {one for module in (request, chat_completions, messages, ollama, responses) for one in fields_of(module)}
    names |= {*chat_completions._NOT_HONOURED, *chat_completions._NOT_HONOURED_UNLESS_0}
    assert {"messages", "tool_choice", "thinking", "options", "previous_response_id"} <= names
    assert sorted(one for one in names if not is_told(one)) == []


def test_every_number_is_in_the_docs() -> None:
    named = re.findall(r"^# TYPE mlxmtp_(\w+) ", Metrics().text(waiting=0, running=0), re.MULTILINE)
    assert named
    assert [one for one in named if not is_told(one)] == []
