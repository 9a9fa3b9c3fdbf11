from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxmtp.chat.conversation import PART_CHARACTERS, PART_SECONDS, Conversation
from mlxmtp.chat.history import Event, Exchange, History, Reply, Turn, title_of
from mlxmtp.chat.journal import Journal
from mlxmtp.chat.message import (
    AudioPart,
    ImagePart,
    MaterialPart,
    Message,
    Part,
    Role,
    TextPart,
    ToolCall,
    ToolResult,
    read_message,
)
from mlxmtp.chat.transcript import as_markdown, as_table
from mlxmtp.engine.events import FinishReason


class Events(Journal):
    """A journal in memory; what is written passes through JSON, as through a file."""

    def __init__(self, *written: Event) -> None:
        super().__init__(Path("e1.jsonl"), None, [], frozenset())
        self.written: list[Event] = [*written]
        self.closed = False
        self.next: Events | None = None

    def write(self, event: Event) -> None:
        self.written.append(json.loads(json.dumps(event)))

    def successor(self, model: str) -> Events:
        self.next = Events({"type": "session", "model": model})
        return self.next

    def close(self) -> None:
        self.closed = True


def answer(conversation: Conversation, reply: Reply) -> None:
    """The whole of a reply, as it comes."""
    conversation.part(reply.text, reply.thinking)
    conversation.finish(reply.finish_reason, reply.stats)


def talk(*turns: tuple[str, str], **options: Any) -> Conversation:
    conversation = Conversation(**options)
    for question, said in turns:
        conversation.ask(question)
        answer(conversation, Reply(said))
    return conversation


def replayed(events: Sequence[Event]) -> History:
    return Conversation.restore(events).history


def test_a_conversation_is_what_was_asked_and_answered() -> None:
    conversation = talk(("Why?", "So."), ("How?", "Thus."), system="Be brief.")
    assert conversation.messages(Exchange("And now?", attached="--- a ---\nx")) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "So."},
        {"role": "user", "content": "How?"},
        {"role": "assistant", "content": "Thus."},
        {"role": "user", "content": "--- a ---\nx\n\nAnd now?"},
    ]


def test_thoughts_never_reach_the_model() -> None:
    conversation = Conversation()
    conversation.ask("Why?")
    answer(conversation, Reply("So.", thinking="Hm, secret."))
    assert "secret" not in str(conversation.messages(Exchange("And?")))


def test_questions_without_an_answer_are_left_out_unless_they_are_the_last() -> None:
    conversation = talk(("One?", "1"))
    conversation.ask("Two?")
    answer(conversation, Reply("", thinking="Well", finish_reason="cancelled"))
    assert [message["content"] for message in conversation.messages()] == ["One?", "1", "Two?"]
    conversation.ask("Three?")
    assert [message["content"] for message in conversation.messages()] == ["One?", "1", "Three?"]


def test_undo_gives_back_what_it_took() -> None:
    conversation = talk(("1?", "1"), ("2?", "2"), ("3?", "3"))
    assert [one.question for one in conversation.undo(2)] == ["2?", "3?"]
    assert [one.question for one in conversation.undo(5)] == ["1?"]
    assert conversation.undo() == ()


def test_another_answer_and_other_words() -> None:
    conversation = talk(("1?", "1"), ("2?", "2"))
    assert conversation.retract_reply() == "2?"
    assert conversation.exchanges[-1] == Exchange("2?")
    answer(conversation, Reply("two"))
    conversation.replace_question("II?")
    assert conversation.exchanges == (Exchange("1?", Reply("1")), Exchange("II?"))
    assert Conversation().retract_reply() is None


def test_other_words_keep_what_was_attached_and_not_what_was_mentioned() -> None:
    conversation = Conversation()
    conversation.ask("Why?", attached="--- a ---\nx", mentioned="--- b ---\ny")
    conversation.replace_question("How?")
    assert conversation.exchanges[0].content == "--- a ---\nx\n\nHow?"
    conversation.replace_question("When?", "--- c ---\nz")
    assert conversation.exchanges[0].content == "--- a ---\nx\n\n--- c ---\nz\n\nWhen?"


def test_sessions_written_before_mentions_were_told_apart_can_be_read() -> None:
    restored = replayed(
        [
            {"type": "session", "model": "m"},
            {"type": "question", "text": "Why @b?", "attached": "--- b ---\ny"},
            {"type": "edit", "text": "How @c?", "attached": "--- c ---\nz"},
        ]
    )
    assert restored.exchanges[0].content == "--- c ---\nz\n\nHow @c?"


def test_a_continuation_makes_the_reply_longer() -> None:
    conversation = Conversation()
    conversation.ask("Count.")
    answer(conversation, Reply("1, 2", finish_reason="length", stats={"a": 1}))
    conversation.part(", 3")
    conversation.finish("stop", {"a": 2})
    assert conversation.exchanges[-1].reply == Reply("1, 2, 3", stats={"a": 2})


def test_a_full_context_drops_the_oldest_and_keeps_them_in_the_transcript() -> None:
    conversation = talk(("1?", "1"), ("2?", "2"), ("3?", "3"))
    conversation.drop_oldest(2)
    assert [message["content"] for message in conversation.messages()] == ["3?", "3"]
    assert [one.question for one in conversation.dropped] == ["1?", "2?"]
    assert conversation.history.title == "1?"


def test_every_operation_is_one_event() -> None:
    journal = Events()
    conversation = Conversation(model="m", journal=journal)
    conversation.set_system("Be brief.")
    conversation.ask("1?", "x")
    answer(conversation, Reply("1"))
    conversation.ask("2?")
    answer(conversation, Reply("2", stats={"a": 1}))
    answer(conversation, Reply(", 3"))
    conversation.retract_reply()
    conversation.replace_question("II?")
    conversation.undo()
    conversation.rename("talk")
    conversation.use_model("n")
    conversation.drop_oldest(1)
    assert [event.get("role", event["type"]) for event in journal.written if event["type"] != "part"] == [
        "system", "user", "assistant", "user", "assistant", "assistant", "retract", "edit", "undo", "name",
        "model", "drop",
    ]  # fmt: skip
    assert replayed([{"type": "session", "model": "m"}, *journal.written]) == conversation.history
    turn = (
        Message("user", (MaterialPart("x"), TextPart("1?"))),
        Message("assistant", (TextPart("1"),), "", "stop", None, "m"),
    )
    assert conversation.history == History("n", "Be brief.", "talk", (Turn(turn),), left_out=1)
    assert conversation.dropped == (Exchange("1?", Reply("1"), "x"),)


def test_an_answer_reaches_the_journal_while_it_comes() -> None:
    now = [0.0]
    journal = Events()
    conversation = Conversation(journal=journal, clock=lambda: now[0])
    conversation.ask("Why?")
    conversation.part("a")
    conversation.part("b")
    assert [event.get("text") for event in journal.written] == [None, "a"]
    now[0] = PART_SECONDS
    conversation.part("c")
    assert [event.get("text") for event in journal.written] == [None, "a", "bc"]
    conversation.part(thinking="d" * PART_CHARACTERS)
    assert journal.written[-1]["thinking"] == "d" * PART_CHARACTERS
    conversation.finish("stop")
    assert conversation.exchanges[-1].reply == Reply("abc", "d" * PART_CHARACTERS)
    assert replayed(journal.written) == conversation.history


@pytest.mark.parametrize("replied", [False, True])
def test_an_answer_that_broke_off_is_kept_as_cancelled(replied: bool) -> None:
    events: list[Event] = [{"type": "question", "text": "Why?"}]
    if replied:
        events.append({"type": "reply", "text": "Because", "finish_reason": "length"})
    events += [{"type": "part", "text": " o", "thinking": "h"}, {"type": "part", "text": "f", "thinking": "m"}]
    expected = Reply("Because of" if replied else " of", "hm", "cancelled")
    journal = Events()
    conversation = Conversation.restore(events, journal)
    assert conversation.exchanges[-1].reply == expected
    assert [event["type"] for event in journal.written] == ["extend" if replied else "message"]
    assert replayed([*events, *journal.written]) == conversation.history


@pytest.mark.parametrize(
    "then",
    [
        {"type": "question", "text": "And?"},
        {"type": "drop", "count": 1},
    ],
)
def test_what_follows_a_lost_end_of_an_answer_keeps_it(then: Event) -> None:
    history = replayed([{"type": "question", "text": "Why?"}, {"type": "part", "text": "So"}, then])
    assert (history.dropped + history.exchanges)[0].reply == Reply("So", finish_reason="cancelled")


def test_a_question_that_was_lost_does_not_cost_the_answer_before() -> None:
    events = [{"type": "question", "text": "1?"}, {"type": "reply", "text": "1"}]
    lost = [{"type": "part", "text": "2"}, {"type": "reply", "text": "2"}]
    assert replayed([*events, *lost]) == replayed(events)


def test_clearing_starts_a_session_of_its_own() -> None:
    journal = Events()
    conversation = talk(("1?", "1"), model="m", system="Be brief.", journal=journal)
    conversation.clear()
    assert journal.closed
    assert conversation.history == History(model="m", system="Be brief.")
    assert replayed(journal.written[1:]).exchanges == (Exchange("1?", Reply("1")),)
    assert journal.next is not None
    assert replayed(journal.next.written) == conversation.history


def test_closing_keeps_the_answer_that_did_not_finish() -> None:
    journal = Events()
    conversation = Conversation(journal=journal)
    conversation.ask("Why?")
    conversation.part("So")
    conversation.close()
    assert journal.closed
    assert journal.written[-1] == {
        "type": "message", "role": "assistant", "parts": [{"type": "text", "text": "So"}], "finish_reason": "cancelled",
    }  # fmt: skip


WORDS = st.text(max_size=5)
PARTS: st.SearchStrategy[Part] = st.one_of(
    st.builds(TextPart, WORDS),
    st.builds(MaterialPart, WORDS, name=WORDS, mentioned=st.booleans()),
    st.builds(
        ImagePart, WORDS, WORDS, st.tuples(st.integers(1, 9), st.integers(1, 9)), st.integers(0, 9), WORDS, WORDS
    ),
    st.builds(AudioPart, WORDS, shape=st.just((1,)), more=st.just({"later": [1]})),
    st.just(Part(more={"type": "hologram", "frames": [{"at": 0.5}]})),
)
CALLS = st.builds(ToolCall, WORDS, WORDS, st.dictionaries(WORDS, st.integers() | st.none() | WORDS), WORDS)
RESULTS = st.builds(ToolResult, WORDS, WORDS, st.lists(PARTS, max_size=2).map(tuple), st.booleans())
ANSWERS = st.builds(
    Message,
    st.just("assistant"),
    st.lists(PARTS | CALLS, min_size=1, max_size=3).map(tuple),
    WORDS,
    st.sampled_from(get_args(FinishReason)),
    st.none() | st.just({"seed": 1}),
    st.just("m"),
    st.none() | st.just({"temp": 0.5, "top_k": 64}),
)
MESSAGES = st.one_of(
    st.builds(Message, st.just("user"), st.lists(PARTS, max_size=3).map(tuple)),
    st.builds(Message, st.just("tool"), st.lists(RESULTS, min_size=1, max_size=2).map(tuple)),
    ANSWERS,
)
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), WORDS, st.text(max_size=3), st.text(max_size=3)),
        st.tuples(st.just("add"), MESSAGES),
        st.tuples(st.just("part"), st.text(max_size=300), st.text(max_size=300)),
        st.tuples(
            st.just("finish"),
            st.sampled_from(get_args(FinishReason)),
            st.none() | st.just({"seed": 1}),
            st.none() | st.just({"temp": 0.5, "seed": None}),
        ),
        st.tuples(st.just("retract_reply")),
        st.tuples(st.just("replace_question"), WORDS, st.text(max_size=3)),
        st.tuples(st.just("undo"), st.integers(0, 3)),
        st.tuples(st.just("drop_oldest"), st.integers(0, 3)),
        st.tuples(st.just("take_back_oldest"), st.integers(0, 3)),
        st.tuples(st.just("set_system"), WORDS),
        st.tuples(st.just("use_model"), WORDS),
    ),
    max_size=30,
)


def apply(conversation: Conversation, operation: tuple[Any, ...]) -> None:
    """Do it where it can be done, as the commands do."""
    name, *arguments = operation
    needs_question = name in ("part", "finish", "replace_question") or (name == "add" and arguments[0].role != "user")
    if not needs_question or conversation.exchanges:
        getattr(conversation, name)(*arguments)


@given(OPERATIONS)
def test_a_file_replays_to_the_conversation_that_wrote_it(operations: list[tuple[Any, ...]]) -> None:
    journal = Events()
    conversation = Conversation(model="m", journal=journal, clock=lambda: 0.0)
    for operation in operations:
        apply(conversation, operation)
    conversation.close()
    assert replayed([{"type": "session", "model": "m"}, *journal.written]) == conversation.history


VALUES = st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.text(max_size=3), st.lists(st.integers()))
TYPES = [
    "session", "message", "question", "part", "reply", "extend", "retract", "edit", "undo", "drop", "take back",
    "system", "name", "odd",
]  # fmt: skip
KEYS = ["text", "thinking", "count", "finish_reason", "stats", "name", "model", "attached", "mentioned", "sampling"]
DAMAGED = st.lists(
    st.dictionaries(
        st.sampled_from(["type", "text", "name", "content", "arguments", "shape", "is_error"]),
        VALUES
        | st.sampled_from(["text", "material", "image", "tool_call", "tool_result"])
        | st.just([{"type": "text"}]),
    )
)


@given(
    st.lists(
        st.builds(
            lambda kind, rest, more: {**rest, **more, "type": kind},
            st.sampled_from(TYPES),
            st.dictionaries(st.sampled_from(KEYS), VALUES),
            st.fixed_dictionaries(
                {}, optional={"role": st.sampled_from([*get_args(Role), "odd", 3]), "parts": VALUES | DAMAGED}
            ),
        )
    )
)
def test_no_event_can_break_it(events: list[Event]) -> None:
    conversation = Conversation.restore(events)
    assert conversation.history.coming is None
    conversation.messages()
    assert isinstance(conversation.history.title, str)
    json.dumps(as_table(conversation.history))
    as_markdown(conversation.history)


@given(MESSAGES)
def test_a_message_is_read_as_it_was_written(message: Message) -> None:
    assert read_message(json.loads(json.dumps(message.to_dict())), message.role) == message


def test_parts_of_another_type_or_with_damaged_values_are_kept_as_they_are() -> None:
    odd = [
        {"type": "video", "frames": 3},
        {"type": "image", "digest": 7, "name": "a.png"},
        {"type": "tool_result", "content": [{"type": "tool_result", "content": []}, {"type": "pdf", "pages": 2}]},
        {"type": "text", "text": "So.", "later": {"x": [1]}},
    ]
    message = read_message({"parts": odd}, "user")
    assert message.to_dict()["parts"] == odd
    assert message.text == "So."


def test_each_answer_says_what_made_it() -> None:
    journal = Events()
    conversation = Conversation(model="e2b", journal=journal)
    conversation.ask("Why?")
    conversation.part("So", "Hm.")
    conversation.finish("length", {"seed": 7}, {"temp": 1.0, "top_k": None, "num_draft_tokens": "auto"})
    conversation.use_model("12b")
    conversation.part(".")
    conversation.finish("stop", {"seed": 8}, {"temp": 0.5})
    assert [event["sampling"] for event in journal.written if "sampling" in event] == [
        {"temp": 1.0, "num_draft_tokens": "auto"}, {"temp": 0.5},
    ]  # fmt: skip
    assert conversation.history.turns[-1][-1] == Message(
        "assistant", (TextPart("So."),), "Hm.", "stop", {"seed": 8}, "12b", {"temp": 0.5}
    )
    assert replayed(journal.written).turns == conversation.history.turns


def test_calls_and_results_of_tools_belong_to_the_answer() -> None:
    journal = Events()
    conversation = Conversation(journal=journal)
    conversation.ask("How warm is it?")
    conversation.part("Let me see.")
    call = ToolCall("c1", "weather", {"city": "Köln"}, "call:weather{city:Köln}")
    conversation.add(Message("assistant", (TextPart("Let me see."), call), finish_reason="tool"))
    conversation.add(Message("tool", (ToolResult("c1", "weather", (TextPart("21 °C"),)),)))
    conversation.part("21 de")
    conversation.part("grees.")
    conversation.finish("stop")
    conversation.ask("Thanks.")
    first, second = conversation.exchanges
    assert first == Exchange("How warm is it?", Reply("Let me see.\n\n21 degrees."))
    assert [one.role for one in first.messages] == ["user", "assistant", "tool", "assistant"]
    assert second == Exchange("Thanks.")
    assert replayed(journal.written) == conversation.history
    conversation.undo()
    conversation.retract_reply()
    assert conversation.exchanges == (Exchange("How warm is it?"),)


def test_other_words_keep_pictures() -> None:
    conversation = Conversation()
    picture = ImagePart("sha256:1", "image/png", (640, 480), 1000, "photo.png", "a.media/1.png")
    conversation.add(Message("user", (picture, MaterialPart("--- b ---\ny", mentioned=True), TextPart("What is it?"))))
    conversation.replace_question("Who?", "--- c ---\nz")
    ((asked,),) = conversation.history.turns
    assert asked.parts == (MaterialPart("--- c ---\nz", mentioned=True), picture, TextPart("Who?"))


def test_what_came_to_nothing_is_put_back_as_it_was() -> None:
    journal = Events()
    conversation = Conversation(model="m", journal=journal)
    conversation.add(Message("user", (MaterialPart("x", "x.txt", mentioned=True), TextPart("Why?"))))
    conversation.part("So.", "Hm.")
    conversation.finish("stop", {"seed": 7}, {"temp": 1.0})
    before = conversation.history
    (exchange,) = conversation.exchanges
    for change in (lambda: conversation.replace_question("How?", "y"), conversation.retract_reply):
        change()
        conversation.part(thinking="Well")
        conversation.put_back(exchange)
        assert conversation.history == before
    assert replayed([{"type": "session", "model": "m"}, *journal.written]) == before


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("What  is\na drafter?\n", "What is a drafter?"),
        ("x" * 60, "x" * 60),
        ("x" * 61, "x" * 59 + "…"),
        ("漢" * 31, "漢" * 29 + "…"),
        ("red \x1b[31m text\x07", "red [31m text"),
        ("", ""),
    ],
)
def test_titles_are_one_line_of_sixty_columns(text: str, title: str) -> None:
    assert title_of(text) == title
