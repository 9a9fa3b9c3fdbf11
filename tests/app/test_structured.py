"""Constraints from settings: schemas in every spelling, one at a time, and what is wrong said with a next step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from mlxmtp.app.open import Opener, answer_params
from mlxmtp.app.structured import constraint_of, has_form, read_schema
from mlxmtp.engine.constraint import Constraint, TokenTable
from mlxmtp.engine.params import Params
from mlxmtp.errors import UsageError
from mlxmtp.serve.models import models_of
from mlxmtp.settings import Settings, load_settings

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def test_a_schema_in_every_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps(SCHEMA))
    (tmp_path / "own_models.py").write_text(
        f"class Row:\n    @classmethod\n    def model_json_schema(cls): return {SCHEMA}\nclass Bare: pass\n"
    )
    monkeypatch.chdir(tmp_path)
    for text in (json.dumps(SCHEMA), str(file), "a.json", f"  {json.dumps(SCHEMA)}"):
        assert read_schema(text) == SCHEMA
    assert answer_params(Settings(schema="a.json")).constraint == Constraint.schema(SCHEMA)
    assert read_schema("own_models:Row") == {**SCHEMA, "additionalProperties": False}
    with pytest.raises(UsageError, match="own_models:Bare gives no schema"):
        read_schema("own_models:Bare")
    with pytest.raises(UsageError, match="no_such:Row"):
        read_schema("no_such:Row")


def test_what_a_class_prints_is_no_part_of_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "loud_models.py").write_text(
        "print('imported')\nclass Row:\n    @classmethod\n    def model_json_schema(cls):\n"
        f"        print('asked')\n        return {SCHEMA}\n"
    )
    monkeypatch.chdir(tmp_path)
    assert read_schema("loud_models:Row")["properties"] == SCHEMA["properties"]
    assert capsys.readouterr() == ("", "imported\nasked\n")


def test_a_class_allows_its_own_fields_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shop.py").write_text(
        """
from pydantic import BaseModel, ConfigDict

class Line(BaseModel):
    properties: int
    type: str

class Invoice(BaseModel):
    lines: list[Line]
    prices: dict[str, float]

class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    n: int
"""
    )
    monkeypatch.chdir(tmp_path)
    schema = read_schema("shop:Invoice")
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["Line"]["additionalProperties"] is False
    assert set(schema["$defs"]["Line"]["properties"]) == {"properties", "type"}
    assert schema["properties"]["prices"]["additionalProperties"] == {"type": "number"}
    assert read_schema("shop:Open")["additionalProperties"] is True


@pytest.mark.parametrize("end", ["", "0", "'no database'"])
def test_a_module_that_ends_the_process_gives_no_schema(tmp_path: Path, monkeypatch: Any, end: str) -> None:
    name = f"ending_{len(end)}"
    (tmp_path / f"{name}.py").write_text(f"import sys\nsys.exit({end})\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=f"{name}:Invoice gives no schema"):
        read_schema(f"{name}:Invoice")


def test_the_short_form_may_be_longer_than_the_name_of_a_file() -> None:
    names = [f"a_field_with_a_name_{number}" for number in range(20)]
    assert list(read_schema(", ".join(names))["properties"]) == names


def test_the_short_form() -> None:
    schema = read_schema("name, age int, tags list, share float: from 0 to 1\nok bool")
    assert schema == {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "age": {"type": "integer"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "share": {"type": "number", "description": "from 0 to 1"},
            "ok": {"type": "boolean"},
        },
        "required": ["name", "age", "tags", "share", "ok"],
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (Settings(schema="missing.json"), "no file missing.json"),
        (Settings(schema="missing"), "no file missing"),
        (Settings(schema="folder/missing.json"), "no file"),
        (Settings(schema="name, age integer"), "name, age int"),
        (Settings(schema="a int, b, a str"), "two fields a: give each a name of its own"),
        (Settings(schema="{"), "no JSON"),
        (Settings(schema='{"not": {}}'), '"not"'),
        (Settings(regex="("), "unclosed"),
        (Settings(regex="\udce9+"), "--regex is not valid UTF-8"),
        (Settings(grammar="missing.lark"), "no file missing.lark"),
        (Settings(schema="a int", regex="a"), "--schema and --regex"),
        (Settings(regex="a", json_output=True), "--regex and --json-output"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_wrong_is_said(settings: Settings, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        constraint_of(settings)


def test_expressions_grammars_and_any_json(tmp_path: Path) -> None:
    file = tmp_path / "g.lark"
    file.write_text('start: "a" start | "b"\n')
    assert constraint_of(Settings(grammar=str(file))) == Constraint("grammar", 'start: "a" start | "b"')
    assert constraint_of(Settings(regex="a|b")) == Constraint("regex", "a|b")
    assert constraint_of(Settings(json_output=True)) == Constraint.schema({})
    assert constraint_of(Settings(json_output=False)) is None


@pytest.mark.parametrize(
    ("expression", "right", "wrong"),
    [
        (r"(\w+\s?)+\.", "Täglich good.", "word " * 2000 + "end"),
        (r"(a+)+$", "a" * 10_000, "a" * 10_000 + "!"),
        (r"(a|aa)+b", "a" * 9999 + "b", "a" * 10_000),
        (r"(.*,){1,30}P", "a,b,P", "," * 10_000),
    ],
)
def test_no_text_keeps_an_expression_busy(expression: str, right: str, wrong: str) -> None:
    """Python's own would try ways without end: each of the second texts is one that does not fit."""
    form = Constraint("regex", expression)
    assert has_form(right, form)
    assert not has_form(wrong, form)


@pytest.mark.parametrize(
    ("expression", "text", "fits"),
    [
        ("yes|no", "yes", True),
        ("yes|no", "yes ", False),
        ("yes|no", "ye", False),
        ("yes|no", "", False),
        ("a*", "", True),
        (r"\d{4}-\d{2}", "2026-11", True),
        (r"\d{4}-\d{2}", "2026-1", False),
        (".", "\n", False),
        (r"[\s\S]*", "a\nb\r\n", True),
        ("(?i)ü😀", "Ü😀", True),
        (r"[^a]", "\ud800", True),  # half a character is one all the same
        (r"(?P<x>a)\z", "a", True),  # as Rust writes it
    ],
)
def test_a_text_fits_an_expression_as_a_whole(expression: str, text: str, fits: bool) -> None:
    assert has_form(text, Constraint("regex", expression)) == fits


ZIP = {"type": "object", "properties": {"zip": {"type": "string", "pattern": "^[0-9]{5}$"}, "n": {"multipleOf": 5}}}
NODE = {"type": "object", "properties": {"v": {"type": "integer"}, "next": {"$ref": "#"}}}
NAMES: dict[str, Any] = {
    "type": "object",
    "patternProperties": {"^n_": {"type": "integer"}},
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        (ZIP, {"n": 10.0, "zip": "12345"}, {"zip": "not a zip", "n": 10}),
        (ZIP, {"n": 0}, {"zip": "12345", "n": 7}),
        ({"multipleOf": 0.1}, 0.3, 0.25),
        ({"multipleOf": 0.1}, 1e22, 1e-3),
        (NODE, {"v": 1, "next": {"next": {}}}, {"v": 1, "next": 5}),
        ({"$defs": {"My T": {"format": "date"}}, "items": {"$ref": "#/$defs/My%20T"}}, ["2026-01-31"], ["2026-13-31"]),
        ({"type": "string", "format": "email", "pattern": "^a"}, "a@example.org", "b@example.org"),
        (NAMES, {"n_a": 1}, {"n_a": "1"}),
        (NAMES, {}, {"m": 1}),
        ({"properties": {"n_b": {"minimum": 3}}, **NAMES}, {"n_b": 3}, {"n_b": 3.5}),
        ({"minProperties": 1, "maxProperties": 2}, {"a": 1, "b": 2}, {}),
        ({"minProperties": 1, "maxProperties": 2}, {"a": 1}, {"a": 1, "b": 2, "c": 3}),
        ({"properties": {"a": False}}, {"b": 1}, {"a": 1}),
        ({"$defs": {"B": {"required": ["a"]}}, "$ref": "#/$defs/B", "required": ["b"]}, {"a": 1, "b": 1}, {"b": 1}),
        ({"pattern": '^é"\n$'}, 'é"\n', "é"),
    ],
    ids=lambda value: json.dumps(value)[:40],
)
def test_what_a_server_answers_is_held_to_all_of_a_schema(schema: dict[str, Any], right: Any, wrong: Any) -> None:
    form = Constraint.schema(schema)
    form.check()
    for text in (json.dumps(right), json.dumps(right, indent=8, ensure_ascii=False)):
        assert has_form(text, form)
    assert not has_form(json.dumps(wrong), form)


@pytest.mark.parametrize("text", ["NaN", "-Infinity", "[Infinity]"])
def test_what_only_python_reads_is_no_json(text: str) -> None:
    assert not has_form(text, Constraint.schema({}))


def test_no_text_keeps_a_pattern_of_a_schema_busy() -> None:
    form = Constraint.schema({"items": {"pattern": "^(a+)+$"}})
    assert has_form(json.dumps(["a" * 10_000]), form)
    assert not has_form(json.dumps(["a" * 10_000 + "!"]), form)


def test_the_vocabulary_is_prepared_while_the_model_is_loaded_and_only_for_forms(monkeypatch):
    made: list[TokenTable] = []

    def table(*about: Any) -> TokenTable:
        made.append(TokenTable(*about))
        return made[-1]

    monkeypatch.setattr("mlxmtp.engine.model.TokenTable", table)
    opener = Opener(load_settings({}), tell=print)
    pocket = opener.target("pocket")
    opened = opener.open(pocket, None, Settings())
    list(opened.model.stream([{"role": "user", "content": "Hi"}], Params(max_tokens=2)))
    assert not made
    opened = opener.open(pocket, None, Settings(regex="a"))
    assert len(made) == 1
    params = Params(max_tokens=2, constraint=Constraint("regex", "(a|b)"))
    list(opened.model.stream([{"role": "user", "content": "Hi"}], params))
    assert len(made) == 1


def test_a_server_prepares_it_before_it_is_ready():
    opener = Opener(load_settings({}), tell=print)
    served = models_of(opener, Settings(model="pocket")).first
    model = served.read().model
    with patch("mlxmtp.engine.model.TokenTable", side_effect=AssertionError("too late")):
        params = Params(max_tokens=2, constraint=Constraint("regex", "(a|b)"))
        list(model.stream([{"role": "user", "content": "Hi"}], params))
