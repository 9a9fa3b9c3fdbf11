from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxmtp.engine.tokenizer import Detokenizer, Tokenizer
from tests.text_checkpoint import write_text_checkpoint

# U+2581 is how the scheme writes a space, so it alone cannot survive a round trip; marks like <pad> have no text.
ANY_TEXT = st.text().filter(lambda text: not re.search(r"\u2581|<\||\|>|<\w+>", text))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(write_text_checkpoint(tmp_path_factory.mktemp("text")))


@settings(deadline=None)
@given(text=ANY_TEXT)
def test_any_text_comes_back_and_no_piece_shows_a_broken_character(tokenizer: Tokenizer, text: str) -> None:
    detokenizer = tokenizer.detokenizer()
    pieces = [detokenizer.add(token) for token in tokenizer.encode(text)]
    assert "".join(pieces) + detokenizer.flush() == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@settings(deadline=None)
@given(data=st.binary())
def test_bytes_decode_as_python_decodes_them(data: bytes) -> None:
    detokenizer = Detokenizer(lambda token: f"<0x{token:02X}>")
    assert "".join(map(detokenizer.add, data)) + detokenizer.flush() == data.decode("utf-8", "replace")


def test_a_character_is_held_back_until_its_last_byte(tokenizer: Tokenizer) -> None:
    detokenizer = tokenizer.detokenizer()
    assert [detokenizer.add(token) for token in tokenizer.encode("🦀")] == ["", "", "", "🦀"]


def test_a_broken_character_ends_where_the_next_token_starts(tokenizer: Tokenizer) -> None:
    detokenizer = tokenizer.detokenizer()
    first_byte, letter = tokenizer.encode("🦀")[0], tokenizer.encode("a")[0]
    assert [detokenizer.add(first_byte), detokenizer.add(letter)] == ["", "\ufffda"]


def test_special_tokens_are_left_out_except_those_that_mean_something(tokenizer: Tokenizer) -> None:
    detokenizer = tokenizer.detokenizer()
    text = "".join(
        detokenizer.add(token) for token in tokenizer.encode("<bos>a<|think|><|tool_call>b<turn|><|channel>")
    )
    assert text == "a<|tool_call>b<|channel>"


def test_an_id_beyond_the_vocabulary_has_no_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.detokenizer().add(10**6) == ""
