"""Turns without a terminal: however one begins and ends, the conversation and its session are in the right state."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from mlxmtp.app.open import Checkpoint, LearnedDrafting, OpenModel
from mlxmtp.app.turn import Kind, Outcome, Turn, exchange_tokens
from mlxmtp.app.worker import Failed, Worker
from mlxmtp.chat.conversation import Conversation
from mlxmtp.chat.history import Exchange, Reply
from mlxmtp.chat.message import Message, TextPart, ToolCall, ToolResult
from mlxmtp.chat.sessions import Sessions
from mlxmtp.engine.events import Call, End, Text, Thinking
from mlxmtp.engine.model import Model
from mlxmtp.engine.params import Params
from mlxmtp.engine.stats import Stats
from mlxmtp.engine.tokenizer import Tokenizer
from mlxmtp.models.config import read_config
from tests.fake_decoder import FakeDecoder
from tests.text_checkpoint import write_text_checkpoint

KINDS: list[Kind] = ["ask", "edit", "regenerate", "continue"]
PLAIN = Params()
THOUGHT = "<|channel>thought\nhm<channel|>"


class House:
    """A conversation in a session, of which one exchange was cut at its limit, and a model that says what is queued."""

    def __init__(self, folder: Path, *, asked: bool = True) -> None:
        model_folder = write_text_checkpoint(folder / "model", context=400)
        self.tokenizer = Tokenizer.load(model_folder)
        self.decoder = FakeDecoder()
        model = Model(self.decoder, read_config(model_folder), self.tokenizer)
        found = Checkpoint("fake", model_folder)
        self.opened = OpenModel(model, found, None, LearnedDrafting(folder / "data", None))
        self.sessions = Sessions(folder / "sessions")
        self.conversation = Conversation(journal=self.sessions.create())
        if asked:
            self.conversation.ask("Old?", mentioned="A file.")
            self.conversation.part("Old", "hm")
            self.conversation.finish("length", {"seed": 7})

    def turn(self, kind: Kind) -> Turn:
        if kind == "ask":
            return Turn(self.conversation, kind, Exchange("New?"))
        last = self.conversation.exchanges[-1]
        asking = {
            "edit": replace(last, question="New?", reply=None, mentioned=""),
            "regenerate": replace(last, reply=None),
            "continue": last,
        }
        return Turn(self.conversation, kind, asking[kind])

    def run(self, kind: Kind, answer: str, *, at: int = -1, drop: int = 0, params: Params = PLAIN) -> Outcome:
        """What came of a turn; Ctrl-C strikes at event `at`."""
        self.decoder.enqueue(self.tokenizer.encode(answer))
        turn, seen = self.turn(kind), 0

        def show(_: Text | Thinking) -> bool:
            nonlocal seen
            seen += 1
            if seen == at + 1:
                raise KeyboardInterrupt
            return True

        turn.begin(self.opened, params, drop)
        outcome = turn.run(turn.stream(params), show)
        assert outcome is not None
        return outcome

    @property
    def reply(self) -> Reply:
        """The last one; the session on the disk tells the same story."""
        history = self.conversation.history
        saved = self.sessions.read(self.sessions.latest()).conversation.history
        assert json.dumps(asdict(saved)) == json.dumps(asdict(history))
        assert history.coming is None
        reply = history.exchanges[-1].reply
        assert reply is not None
        return reply

    def written(self) -> list[str]:
        """The events in the session's file: the role of a message, the type of any other."""
        lines = self.sessions.latest().path.read_text(encoding="utf-8").splitlines()
        events = map(json.loads, lines)
        return [event["role"] if event["type"] == "message" else event["type"] for event in events]


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("answer", "limit", "reason"),
    [("Hello.<turn|>", 90, "stop"), ("Hello.", 6, "length"), ("Hello.<|tool_response>", 90, "tool")],
)
def test_every_kind_of_turn_ends_in_one_event(house: House, kind: Kind, answer: str, limit: int, reason: str) -> None:
    before = house.written()
    params = Params(max_tokens=limit + len(house.tokenizer.encode(THOUGHT)), seed=3)
    outcome = house.run(kind, THOUGHT + answer, params=params)
    text, thinking = ("OldHello.", "hmhm") if kind == "continue" else ("Hello.", "hm")
    assert (outcome.text, outcome.thinking.strip(), outcome.reason, outcome.error) == ("Hello.", "hm", reason, None)
    reply = house.reply
    assert (reply.text, reply.thinking.replace("\n", ""), reply.finish_reason) == (text, thinking, reason)
    assert reply.stats is not None
    assert reply.stats["seed"] == 3
    new = [one for one in house.written()[len(before) :] if one != "part"]
    begun = {"ask": ["user"], "edit": ["edit"], "regenerate": ["retract"], "continue": []}[kind]
    assert new == [*begun, "extend" if kind == "continue" else "assistant"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at", range(4))
def test_ctrl_c_at_any_event_keeps_what_was_said(house: House, kind: Kind, at: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        house.run(kind, "abcdefghijklm<turn|>", at=at)
    begun = "Old" if kind == "continue" else ""
    reply = house.reply
    assert reply.finish_reason == "cancelled"
    assert reply.text.removeprefix(begun) == "abcdefghijklm"[: 1 + 3 * at]
    assert house.decoder.closed == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [1, 2])
def test_a_model_that_fails_ends_the_turn_with_what_was_said(house: House, kind: Kind, number: int) -> None:
    def broken(now: int) -> None:
        if now == number:
            raise RuntimeError("no kernel")

    house.decoder.before_round = broken
    with pytest.raises(RuntimeError, match="no kernel"):
        house.run(kind, "abcdefghij<turn|>")
    assert house.reply.finish_reason == "cancelled"
    assert house.reply.text.removeprefix("Old") == "abcdefghij"[: 1 + 3 * (number - 1)]


@pytest.mark.parametrize("kind", ["edit", "regenerate", "continue"])
@pytest.mark.parametrize("answer", [f"{THOUGHT}<turn|>", "<turn|>"])
def test_an_answer_of_which_nothing_was_said_leaves_what_was_there(house: House, kind: Kind, answer: str) -> None:
    house.conversation.ask("Last?")
    house.conversation.part("Yes")
    house.conversation.finish("cancelled", {"seed": 1})
    before = house.conversation.history
    outcome = house.run(kind, answer, drop=1)
    assert not outcome.said
    assert house.conversation.history == before
    assert house.reply == before.exchanges[-1].reply


@pytest.mark.parametrize("returns", [False, True])
def test_a_question_without_an_answer_stays_unless_it_returns_to_the_person(house: House, returns: bool) -> None:
    before = house.conversation.exchanges
    turn = house.turn("ask")
    turn.begin(house.opened, PLAIN, drop=1)
    turn.take(Thinking("hm"))
    assert not turn.end("length", returns=returns).said
    if returns:
        assert house.conversation.exchanges == before
        assert house.conversation.dropped == ()
    else:
        assert house.reply == Reply("", "hm", "length")
        assert house.conversation.dropped == before


def test_a_failure_before_the_first_event_is_a_cancelled_answer(tmp_path: Path) -> None:
    house = House(tmp_path, asked=False)
    turn = house.turn("ask")
    turn.begin(house.opened, PLAIN)
    outcome = turn.end("cancelled", error=ValueError("odd"))
    assert isinstance(outcome.error, ValueError)
    assert house.reply == Reply("", finish_reason="cancelled")


def test_a_full_disk_costs_the_session_and_not_the_answer(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mlxmtp.chat.journal._write_all", full)
    assert house.run("ask", "Hello.<turn|>").text == "Hello."
    assert [one.question for one in house.conversation.exchanges] == ["Old?", "New?"]
    assert house.conversation.exchanges[-1].answered
    assert "No space left on device" in (house.conversation.trouble or "")
    saved = house.sessions.read(house.sessions.latest()).conversation
    assert [one.question for one in saved.exchanges] == ["Old?"]


def test_enough_of_an_answer_is_a_complete_one(house: House) -> None:
    house.decoder.enqueue(house.tokenizer.encode("abcdefghij<turn|>"))
    turn = house.turn("ask")
    turn.begin(house.opened, PLAIN)
    outcome = turn.run(turn.stream(PLAIN), lambda _: False)
    assert outcome is not None
    assert (outcome.text, outcome.reason) == ("a", "stop")
    assert house.reply.text == "a"


@pytest.mark.parametrize("stopped", [False, True])
def test_events_from_the_worker_make_the_same_turn(house: House, stopped: bool) -> None:
    worker = Worker()
    worker.load(lambda: house.opened)
    house.decoder.enqueue(house.tokenizer.encode("abcdefghij<turn|>"))
    house.decoder.before_round = lambda number: worker.stop() if stopped and number == 1 else None
    turn = house.turn("ask")
    turn.begin(house.opened, PLAIN)
    worker.answer(lambda _, on_prefill: turn.stream(PLAIN, on_prefill))
    end: End | None = None
    while end is None:
        worker.wait(seconds=10)
        for event in worker.events():
            assert not isinstance(event, Failed)
            if isinstance(event, Text | Thinking):
                turn.take(event)
            elif isinstance(event, End):
                end = event
    turn.end(end.finish_reason, end.stats, returns=True)
    said = ("abcd", "cancelled") if stopped else ("abcdefghij", "stop")
    assert (house.reply.text, house.reply.finish_reason) == said


@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_fit_says_what_can_be_left_out(house: House, kind: Kind) -> None:
    house.conversation.ask("x" * 150)
    house.conversation.part("y" * 100)
    house.conversation.finish("length")
    turn = house.turn(kind)
    used = len(house.tokenizer.prompt_ids(turn.messages))
    assert not turn.fit(used, turn.messages, house.tokenizer, 2 * used, None).full
    assert turn.fit(used, turn.messages, house.tokenizer, used + 1, None).full == (
        kind != "continue"
    )  # which needs no reserve
    fit = turn.fit(used, turn.messages, house.tokenizer, used, None)
    assert fit.full
    # The first exchange is short, and the one that is answered again has to stay.
    assert fit.droppable == {"ask": 2, "edit": 1}.get(kind)


@pytest.mark.parametrize("answered", [False, True])
def test_what_calls_have_filled_can_be_left_out(house: House, answered: bool) -> None:
    conversation = house.conversation
    before = len(house.tokenizer.prompt_ids(house.turn("ask").messages))
    conversation.ask("Read it")
    conversation.finish("tool", calls=[ToolCall(id="1", name="read", arguments={"path": "p" * 50, "lines": [1, 2]})])
    conversation.add(Message("tool", (ToolResult(call_id="1", name="read", content=(TextPart("x" * 300),)),)))
    if answered:
        conversation.part("Done")
        conversation.finish("stop")
    turn = house.turn("ask")
    fit = turn.fit(before + 380, turn.messages, house.tokenizer, 400, None)
    assert (fit.full, fit.droppable) == (True, 2)
    [old, read] = exchange_tokens(conversation, turn.messages, house.tokenizer)
    assert read == 7 + 50 + 6 + 300 + 4 * answered
    assert old == exchange_tokens(conversation, house.turn("edit").messages, house.tokenizer)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_calls_that_were_run_are_no_silence(house: House, kind: Kind) -> None:
    turn = house.turn(kind)
    turn.begin(house.opened, PLAIN)
    turn.take(Call("write", {"path": "a.txt"}))
    turn.pause(Stats())
    turn.returned([ToolResult(call_id="1", name="write", content=(TextPart("Done."),))])
    assert turn.end("cancelled", returns=True).said
    assert house.reply == Reply("Old" if kind == "continue" else "", house.reply.thinking, "cancelled")
    assert [call.name for one in house.conversation.exchanges[-1].messages for call in one.calls] == ["write"]


def test_a_turn_needs_nothing_of_the_command_line() -> None:
    code = """
import sys
from mlxmtp.app import open, prompt_cache, turn, worker
from mlxmtp.chat.conversation import Conversation
from mlxmtp.chat.history import Exchange
from mlxmtp.settings import load_settings
loaded = load_settings({"max_tokens": 3})
opener = open.Opener(loaded, tell=print)
pocket = opener.target("pocket")
opened = opener.open(pocket, opener.drafter(pocket, loaded.settings), loaded.settings)
one = turn.Turn(Conversation(), "ask", Exchange("Hi"))
params = open.answer_params(loaded.settings)
one.begin(opened, params)
assert one.run(one.stream(params), lambda _: True).reason == "length"
print(*(name for name in sys.modules if name.startswith(("mlxmtp.cli", "typer", "rich", "prompt_toolkit"))))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
