"""The environment that chat templates are written for: that of transformers' chat_template_utils."""

import json
from datetime import datetime
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mlxmtp.errors import LoadError


class Generation(Extension):
    """`{% generation %} … {% endgeneration %}`, which marks answers for training: what stands in it is printed."""

    tags = {"generation"}  # noqa: RUF012  (jinja2's name for it)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def compile_template(source: str, origin: object) -> Template:
    """Return the template. Raises LoadError, which names ``origin``, for what jinja2 cannot read."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(source)
    except (TemplateError, RecursionError) as error:
        said = str(error).rstrip(".")
        raise LoadError(f"The chat template of {origin} cannot be read ({said}). Take another checkpoint.") from error


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _to_json(value: object, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)
