"""Tool calls read from token ids, by Gemma's format to the letter: what departs from it is text and never a command.

    <|tool_call>call:NAME{KEY:VALUE,…}<tool_call|>
    VALUE = <|"|>any text<|"|> | number | true | false | null | {KEY:VALUE,…} | [VALUE,…]

The marks are token ids and never their spelling, so a file that spells them, in a string of a call, does not end it.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mlxmtp.engine.events import Call

if TYPE_CHECKING:
    from mlxmtp.engine.tokenizer import Tokenizer

CALL_OPEN, CALL_CLOSE, QUOTE = "<|tool_call>", "<tool_call|>", '<|"|>'

_STRING = "\0"  # stands for a quoted string in the text between the strings
_HEAD = re.compile(r"\s*call:\s*([^\0\s{}\[\],]+)\s*(?=\{)")
_PIECE = re.compile(r"[\0{}\[\]:,]|[^\0{}\[\]:,]+")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_MARKS = frozenset("{}[]:,")
_WORDS: dict[str, Any] = {"true": True, "false": False, "null": None}
_DEEPEST = 64


class CallReader:
    """Feed token ids; get back those that are no part of a call, and a `Call` in place of the ids of each."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._open, self._close, self._quote = map(tokenizer.special_id, (CALL_OPEN, CALL_CLOSE, QUOTE))
        self._held: list[int] = []
        self._quoted = False

    @property
    def inside(self) -> bool:
        """True while a call is being written."""
        return bool(self._held)

    def feed(self, token: int) -> Sequence[int | Call]:
        """Return what is certain now: nothing while a call is not complete."""
        if not self._held:
            if token != self._open:
                return (token,)
            self._held, self._quoted = [token], False
            return ()
        if token == self._quote:
            self._quoted = not self._quoted
        elif token == self._open and not self._quoted:
            damaged, self._held = self._held, [token]
            return damaged
        self._held.append(token)
        return self.finish() if token == self._close and not self._quoted else ()

    def finish(self) -> Sequence[int | Call]:
        """Return what was held, when nothing more will come; a call may lack its closing mark, and nothing else."""
        held, self._held = self._held, []
        if not held:
            return ()
        inner = held[1:-1] if held[-1] == self._close else held[1:]
        try:
            return (Call(*self._parse(inner), tuple(held)),)
        except ValueError:
            return held

    def _parse(self, ids: Sequence[int]) -> tuple[str, dict[str, Any]]:
        parts: list[list[int]] = [[]]
        for token in ids:
            if token == self._quote:
                parts.append([])
            else:
                parts[-1].append(token)
        texts = [self._text(part) for part in parts]
        if len(texts) % 2 == 0 or any(_STRING in text for text in texts[::2]):
            raise ValueError("a string is not closed")
        return parse_call(_STRING.join(texts[::2]), texts[1::2])

    def _text(self, ids: Sequence[int]) -> str:
        detokenizer = self._tokenizer.detokenizer()
        return "".join(map(detokenizer.add, ids)) + detokenizer.flush()


def strict_json(text: str | bytes) -> Any:
    """Return what JSON says. Raises ValueError for anything else, NaN and infinite numbers among it, and RecursionError
    for absurd nesting."""
    return json.loads(text, parse_constant=_finite, parse_float=_finite)


def _finite(word: str) -> float:
    if not math.isfinite(number := float(word)):
        raise ValueError(f"{word} is no number of JSON")
    return number


def parse_call(structure: str, strings: Sequence[str] = ()) -> tuple[str, dict[str, Any]]:
    """Return name and arguments of a call; `structure` has NUL where each of `strings` stood. Raises ValueError."""
    head = _HEAD.match(structure)
    if head is None:
        raise ValueError("no call")
    parser = _Parser(structure[head.end() :], strings)
    arguments = parser.value(0)
    if parser.next is not None or not isinstance(arguments, dict):
        raise ValueError("something follows the arguments")
    return head[1], arguments


class _Parser:
    """Recursive descent over the pieces of a call; `next` is the first that was not taken, None at the end."""

    def __init__(self, structure: str, strings: Sequence[str]) -> None:
        stripped = (piece if piece == _STRING else piece.strip() for piece in _PIECE.findall(structure))
        self._pieces: Iterator[str] = iter([piece for piece in stripped if piece])
        self._strings = iter(strings)
        self.next = next(self._pieces, None)

    def value(self, depth: int) -> Any:
        piece = self._take()
        if depth > _DEEPEST:
            raise ValueError("nested too deeply")
        if piece == _STRING:
            return next(self._strings)
        if piece == "{":
            return self._object(depth)
        if piece == "[":
            return self._array(depth)
        if piece in _WORDS:
            return _WORDS[piece]
        if not _NUMBER.fullmatch(piece):
            raise ValueError(f"no value: {piece}")
        number = json.loads(piece)
        if abs(number) > sys.float_info.max:
            raise ValueError(f"{piece} is no number that a program can hold")
        return number

    def _object(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while self.next != "}":
            if found:
                self._expect(",")
            piece = self._take()
            key = next(self._strings) if piece == _STRING else piece
            if piece in _MARKS or key in found:
                raise ValueError(f"no key, or one that is there twice: {key}")
            self._expect(":")
            found[key] = self.value(depth + 1)
        self._take()
        return found

    def _array(self, depth: int) -> list[Any]:
        found: list[Any] = []
        while self.next != "]":
            if found:
                self._expect(",")
            found.append(self.value(depth + 1))
        self._take()
        return found

    def _take(self) -> str:
        if self.next is None:
            raise ValueError("it ends too early")
        taken, self.next = self.next, next(self._pieces, None)
        return taken

    def _expect(self, mark: str) -> None:
        if self._take() != mark:
            raise ValueError(f"no {mark}")
