from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxmtp.chat.conversation import PART_CHARACTERS, PART_SECONDS, Conversation
from mlxmtp.chat.history import Event, Exchange, History, Reply, title_of


@dataclass
class Events:
    """A journal in memory."""

    id: str = "e1"
    saved: bool = True
    trouble: str | None = None
    written: list[Event] = field(default_factory=list)
    closed: bool = False
    next: Events | None = None

    def write(self, event: Event) -> None:
        self.written.append(event)

    def successor(self, model: str) -> Events:
        self.next = Events(written=[{"type": "session", "model": model}])
        return self.next

    def close(self) -> None:
        self.closed = True


def talk(*turns: tuple[str, str], **options: Any) -> Conversation:
    conversation = Conversation(**options)
    for question, answer in turns:
        conversation.ask(question)
        conversation.reply(Reply(answer))
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
    conversation.reply(Reply("So.", thinking="Hm, secret."))
    assert "secret" not in str(conversation.messages(Exchange("And?")))


def test_questions_without_an_answer_are_left_out_unless_they_are_the_last() -> None:
    conversation = talk(("One?", "1"))
    conversation.ask("Two?")
    conversation.reply(Reply("", thinking="Well", finish_reason="cancelled"))
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
    conversation.reply(Reply("two"))
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
    conversation.reply(Reply("1, 2", finish_reason="length", stats={"a": 1}))
    conversation.part(", 3")
    conversation.finish("stop", {"a": 2})
    assert conversation.exchanges[-1].reply == Reply("1, 2, 3", stats={"a": 2})


def test_a_full_context_drops_the_oldest_and_keeps_them_in_the_transcript() -> None:
    conversation = talk(("1?", "1"), ("2?", "2"), ("3?", "3"))
    conversation.drop_oldest(2)
    assert [message["content"] for message in conversation.messages()] == ["3?", "3"]
    assert [one.question for one in conversation.dropped] == ["1?", "2?"]
    assert conversation.title == "1?"


def test_every_operation_is_one_event() -> None:
    journal = Events()
    conversation = Conversation(model="m", journal=journal)
    conversation.set_system("Be brief.")
    conversation.ask("1?", "x")
    conversation.reply(Reply("1"))
    conversation.ask("2?")
    conversation.reply(Reply("2", stats={"a": 1}))
    conversation.extend(Reply(", 3"))
    conversation.retract_reply()
    conversation.replace_question("II?")
    conversation.undo()
    conversation.rename("talk")
    conversation.use_model("n")
    conversation.drop_oldest(1)
    assert [event["type"] for event in journal.written] == [
        "system", "question", "reply", "question", "reply", "extend", "retract", "edit", "undo", "name",
        "model", "drop",
    ]  # fmt: skip
    assert replayed(journal.written) == conversation.history
    assert conversation.history == History("n", "Be brief.", "talk", (), (Exchange("1?", Reply("1"), "x"),), None)


def test_an_answer_reaches_the_journal_while_it_comes() -> None:
    now = [0.0]
    journal = Events()
    conversation = Conversation(journal=journal, clock=lambda: now[0])
    conversation.ask("Why?")
    conversation.part("a")
    conversation.part("b")
    assert [event.get("text") for event in journal.written] == ["Why?", "a"]
    now[0] = PART_SECONDS
    conversation.part("c")
    assert [event.get("text") for event in journal.written] == ["Why?", "a", "bc"]
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
    assert [event["type"] for event in journal.written] == ["extend" if replied else "reply"]
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
    assert journal.written[-1] == {"type": "reply", **Reply("So", finish_reason="cancelled").to_dict()}


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.text(max_size=5), st.text(max_size=3), st.text(max_size=3)),
        st.tuples(st.just("reply"), st.builds(Reply, st.text(max_size=5), st.text(max_size=5))),
        st.tuples(st.just("part"), st.text(max_size=300), st.text(max_size=300)),
        st.tuples(st.just("finish"), st.sampled_from(["stop", "length", "cancelled"])),
        st.tuples(st.just("extend"), st.builds(Reply, st.text(max_size=5))),
        st.tuples(st.just("retract_reply")),
        st.tuples(st.just("replace_question"), st.text(max_size=5), st.text(max_size=3)),
        st.tuples(st.just("undo"), st.integers(0, 3)),
        st.tuples(st.just("drop_oldest"), st.integers(0, 3)),
        st.tuples(st.just("set_system"), st.text(max_size=5)),
        st.tuples(st.just("use_model"), st.text(max_size=5)),
    ),
    max_size=30,
)


def apply(conversation: Conversation, operation: tuple[Any, ...]) -> None:
    """Do it where it can be done, as the commands do."""
    name, *arguments = operation
    if name in ("reply", "part", "finish", "replace_question", "extend") and not conversation.exchanges:
        return
    if name in ("reply", "extend") and (conversation.exchanges[-1].reply is None) != (name == "reply"):
        return
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
    "session", "question", "part", "reply", "extend", "retract", "edit", "undo", "drop", "take back",
    "system", "name", "odd",
]  # fmt: skip
KEYS = ["text", "thinking", "count", "finish_reason", "stats", "name", "model", "attached", "mentioned"]


@given(
    st.lists(
        st.builds(
            lambda kind, rest: {**rest, "type": kind},
            st.sampled_from(TYPES),
            st.dictionaries(st.sampled_from(KEYS), VALUES),
        )
    )
)
def test_no_event_can_break_it(events: list[Event]) -> None:
    conversation = Conversation.restore(events)
    assert conversation.history.coming is None
    conversation.messages()
    assert isinstance(conversation.title, str)


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
