"""Calls of a network that has not learned any: the grammar alone gives them their form, and loops read tokens once.

The network is the built-in one with a template that declares tools, so drafts come and are refused as they always are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from mlxmtp.app.open import Checkpoint, LearnedDrafting, OpenModel
from mlxmtp.app.tools.approval import Approvals
from mlxmtp.app.tools.arguments import fault_in
from mlxmtp.app.tools.calls import CallRunner
from mlxmtp.app.tools.toolbox import Tool, Toolbox
from mlxmtp.app.turn import Turn
from mlxmtp.chat.conversation import Conversation
from mlxmtp.chat.history import Exchange
from mlxmtp.chat.message import ToolCall
from mlxmtp.decode.decoder import Decoder
from mlxmtp.engine import model as engine
from mlxmtp.engine.call_grammar import calls_only
from mlxmtp.engine.constraint import Constraint
from mlxmtp.engine.events import Call
from mlxmtp.engine.model import Model
from mlxmtp.engine.params import Params
from mlxmtp.engine.stats import Stats
from mlxmtp.engine.tokenizer import Tokenizer
from mlxmtp.models.load import load_drafter, load_target
from tests.serve.running import TEMPLATE

POCKET = Path(__file__).parents[2] / "assets/pocket"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "unit": {"type": "string", "enum": ["C", "F", "K"]},
        "days": {"type": "integer", "minimum": 3, "exclusiveMaximum": 12},
        "code": {"type": "string", "minLength": 2, "maxLength": 4},
        "tags": {"type": "array", "items": {"enum": [7, 8]}, "minItems": 1, "maxItems": 2},
        "exact": {"type": "boolean"},
        "where": {
            "type": "object",
            "properties": {"x": {"type": "number"}, "y": {"type": ["number", "null"]}},
            "required": ["x", "y"],
            "additionalProperties": False,
        },
        "Kind": {"enum": ["sun", "rain"]},
    },
    "required": ["unit", "where", "days", "code", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Tokenizer]:
    folder = tmp_path_factory.mktemp("pocket")
    for file in (POCKET / "target").iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    target = load_target(folder)
    return target, load_drafter(POCKET / "drafter", target), Tokenizer.load(folder)


@pytest.fixture
def model(parts: tuple[Any, Any, Tokenizer]) -> Model:
    target, drafter, tokenizer = parts
    return Model(Decoder(target, drafter, compiled="never"), target.config, tokenizer)


class Talk:
    """A conversation with tools; the figures of every answer are kept."""

    def __init__(self, model: Model, box: Toolbox, folder: Path) -> None:
        self.opened = OpenModel(model, Checkpoint("pocket", folder), None, LearnedDrafting(folder / "data", None))
        self.box, self.conversation = box, Conversation()
        self.runner = CallRunner(box, Approvals(folder / "approvals.json"))
        self.stats: list[Stats] = []

    def ask(self, question: str, params: Params) -> list[ToolCall]:
        """Ask and return the calls that were made."""
        turn, made = Turn(self.conversation, "ask", Exchange(question)), list[ToolCall]()
        turn.begin(self.opened, params, tools=self.box.declarations)
        while True:
            answer = turn.stream(params)
            outcome = turn.run(answer, lambda event: True)
            self.stats.append(answer.stats)
            if outcome is not None:
                return made
            made += turn.calls
            turn.carry_out(self.runner)


def tool(name: str, schema: dict[str, Any], run: Callable[[Any], str] = lambda given: "Fine.") -> Tool:
    return Tool("far", name, "Tells.", schema, lambda given, running: run(given), reads=True)


def test_what_a_grammar_makes_a_network_call_fits_the_schema(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    box = Toolbox([tool("weather", SCHEMA)])
    must_call = calls_only(box.declarations, model.tokenizer, several=False)
    monkeypatch.setattr(engine, "text_or_calls", lambda *_: must_call)
    made: list[Call] = []
    for drafts in (0, 4):
        params = Params(temp=0.5, seed=1, max_tokens=150, think_tokens=1, num_draft_tokens=drafts)
        asked = [{"role": "user", "content": "Is it raining?"}]
        events = model.stream(asked, params, tools=box.declarations)
        made += [one for one in events if isinstance(one, Call)]
    plain, drafted = made
    assert plain == drafted
    jsonschema.validate(plain.arguments, SCHEMA)


ODD: list[dict[str, Any]] = [
    *(
        {"type": "integer", "minimum": one}
        for one in ("x", True, float("inf"), float("nan"), 1e308, -1e308, 10**400, 0.5)
    ),
    {"type": "integer", "minimum": 5, "maximum": 1},
    {"type": "integer", "minimum": 0.5, "maximum": 0.6},
    {"type": "integer", "enum": ["a", True, 10**30, None]},
    *({"type": "string", "maxLength": one} for one in (-1, 0, 2.7, 1e300, float("nan"), 10**400)),
    *({"type": "array", "minItems": one} for one in (-1, 1, 2, 1.5, 10**9, float("inf"))),
    *({"type": "array", "minItems": low, "maxItems": high} for low in (0, 1, 2) for high in (0, 1, 2, 1.9, -1)),
    {"type": [{"a": 1}, "integer"]},
    {"type": {"a": 1}, "enum": [[1], {"a": 2}]},
]


def test_whatever_limits_a_server_tells_there_is_a_grammar(model: Model) -> None:
    """Each of them apart, since one that cannot be read would take the others' calls away."""
    for odd in ODD:
        box = Toolbox([tool("odd", {"type": "object", "properties": {"value": odd}})])
        calls_only(box.declarations, model.tokenizer, several=False).check()
        values: list[Any] = [3, "abc", [1], None, {}, 0.5, True]
        for value in values:
            assert isinstance(fault_in({"value": value}, box.tools["odd"].parameters), str)


def test_a_loop_of_calls_reads_every_token_once(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answers are scripted by grammars that allow nothing else; prompts, drafts and the KV cache are real."""
    box = Toolbox(
        [tool("echo", {"type": "object", "properties": {"text": {"type": "string"}}}, lambda given: "7 " * 30)]
    )
    written = [
        ['<[48]> "call:echo{ text:" <[52]> "a b" <[52]> "}" <[49]>'],
        ['"Now: " <[48]> "call:echo{text:" <[52]> "c" <[52]> "}" <[49]>', '<[48]> "call:echo{}" <[49]>'],
        ['<[48]> "call:echo{text:" <[52]> "c" <[52]> " }" <[49]>'],
        ['"That is all."'],
    ]

    def scripts() -> Iterator[Constraint]:
        for parts in written:
            yield Constraint("grammar", f"start: {' '.join(parts)}")

    forms = scripts()
    monkeypatch.setattr(engine, "text_or_calls", lambda *_: next(forms))
    talk = Talk(model, box, tmp_path)
    made = talk.ask("Say it.", Params(temp=0.0, max_tokens=100))
    assert [one.arguments for one in made] == [{"text": "a b"}, {"text": "c"}, {}, {"text": "c"}]
    held = 0
    for stats in talk.stats:
        # The last token of an answer, which ended it, was chosen and never read.
        assert stats.reused_tokens >= held - 1
        held = stats.prompt_tokens + stats.generation_tokens - 1
    new = sum(one.prompt_tokens - one.reused_tokens for one in talk.stats)
    said = sum(one.generation_tokens for one in talk.stats)
    assert new + said <= talk.stats[-1].prompt_tokens + talk.stats[-1].generation_tokens + len(talk.stats)
