"""What a line means, without a conversation."""

from __future__ import annotations

import pytest

from mlxmtp.cli.repl.slash import BY_WORD, COMMANDS, Call, Message, Unknown, is_open, parse


@pytest.mark.parametrize("word", sorted(BY_WORD))
def test_every_word_is_a_command_with_and_without_an_argument(word: str) -> None:
    assert parse(word) == Call(BY_WORD[word], "")
    assert parse(f"{word}  two words ") == Call(BY_WORD[word], "two words")
    assert parse(f"{word}\nnext line") == Call(BY_WORD[word], "next line")


def test_words_are_unique() -> None:
    assert len(BY_WORD) == sum(1 + len(command.aliases) for command in COMMANDS)


@pytest.mark.parametrize(
    "text",
    [
        "/etc/hosts is what?",
        "/usr/nothing",
        "// a comment",
        "/* another */",
        "/",
        "/2 of it",
        "/?",
        " /help",
        "a /help",
    ],
)
def test_what_is_no_command_is_text(text: str) -> None:
    assert parse(text, exists=lambda _: False) == Message(text.strip())


def test_a_path_that_exists_is_text() -> None:
    assert parse("/tmp what is in there", exists=lambda word: word == "/tmp") == Message("/tmp what is in there")


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("/hlep", "/help"),
        ("/Help", "/help"),
        ("/regenerate it", "/regen"),
        ("/helpme", "/help"),
        ("/xyzzy", None),
        ("/Users", None),
        ("/opt", None),
        ("/undo2", "/undo"),
        ("/help?", "/help"),
        ("/clear, please", "/clear"),
    ],
)
def test_an_unknown_command_names_the_nearest(text: str, nearest: str | None) -> None:
    assert parse(text, exists=lambda _: False) == Unknown(text.partition(" ")[0], nearest)


def test_pasted_text_is_never_a_command() -> None:
    assert parse("/exit\n", pasted=True) == Message("/exit")
    assert parse('"""doc"""', pasted=True) == Message('"""doc"""')


@pytest.mark.parametrize(
    ("text", "message"),
    [('"""one"""', "one"), ('"""\n one\n/exit\n"""', " one\n/exit"), ('"""open', "open"), ('""""""', "")],
)
def test_blocks(text: str, message: str) -> None:
    assert parse(text) == Message(message)


def test_a_block_is_open_until_it_is_closed() -> None:
    assert [is_open(text) for text in ('"""', '"""a', '"""a"""', '""""""', 'a """', '"""\n"""')] == [
        True, True, False, False, False, False
    ]  # fmt: skip
