"""Constraints on an answer: JSON Schema, a regular expression or a grammar, checked on token ids by llguidance.

Whatever the constraint, a thought may come first; between its marks every token is free but the one that opens a call
(docs/structured.md).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Literal

from mlxmtp.engine.endless import endless_reference, endless_rule, objects_in
from mlxmtp.engine.events import CLOSE, OPEN
from mlxmtp.errors import MlxmtpError, UsageError

if TYPE_CHECKING:
    import llguidance

    from mlxmtp.engine.tokenizer import Tokenizer

Kind = Literal["schema", "regex", "grammar"]

_OPTIONS = {
    "x-guidance": {
        "whitespace_pattern": r"( |\n{1,2} {0,20})?",  # as models write it, and bounded: some never stop indenting
        "json_allow_general_unicode_escapes": True,
    }
}
_BY_NAME = {"properties", "patternProperties", "$defs", "definitions"}  # their keys are names, not keywords
_DATA = {"const", "enum", "default", "examples"}
_MOST_RULES = 1000  # llguidance follows rules and references by recursion: some 3,000 overflow its stack
_NAMES = {"schema": "JSON schema", "regex": "regular expression", "grammar": "grammar"}


@dataclass(frozen=True, slots=True)
class Constraint:
    """The form of an answer: JSON that a schema allows, text that an expression matches or a Lark grammar derives.

    Expressions are those of Rust's regex library and match the whole answer; grammars begin with `start`. `calls`: the
    rules of tool calls, from `calls` on, which may come in place of that form (`call_grammar.form_or_calls`).
    `call_mark`: the token that opens a call, where there may be some.
    """

    kind: Kind
    source: str
    calls: str = ""
    call_mark: int | None = field(default=None, repr=False)  # the files of `map` hold a hash of what is shown

    @classmethod
    def schema(cls, schema: Mapping[str, Any] | bool) -> Constraint:
        """Return the constraint to JSON of a schema; `{}` and true stand for any JSON."""
        return cls("schema", json.dumps(schema, ensure_ascii=False))

    def check(self) -> None:
        """Raise UsageError, which names the place, for what is not supported, cannot be read or allows no text."""
        try:
            _check(self)
        except RecursionError:
            raise self._unusable("it is nested too deeply") from None

    def check_anew(self) -> None:
        """Do what `check` does, whether or not it was done before."""
        import llguidance

        if self.kind not in _NAMES:
            raise UsageError(f"A constraint is a schema, a regex or a grammar, not {self.kind!r}.")
        if self.kind == "schema":
            try:
                json.loads(self.source)
            except ValueError as error:
                raise self._unusable(f"it is no JSON ({error})") from None
        if self._rules() > _MOST_RULES:
            raise self._unusable(f"it has more than {_MOST_RULES:,} rules or references")
        failed, said = llguidance.LLMatcher.validate_grammar_with_warnings(self._grammar())
        if not failed:
            matcher = self._of_bytes()
            nothing = not any(matcher.compute_bitmask()) or matcher.is_error()
            failed, said = nothing and not matcher.is_accepting(), ["it allows no text at all"]
        if not failed and (place := self._endless()) is not None:
            failed, said = True, [f"{place} comes back to itself on every way, so no text ends"]
        if failed:
            # An expression's fault is the last of several lines, that of a grammar the first, behind its place.
            raise self._unusable(said[0].rpartition("error: ")[2].split("\n")[0].rstrip("."))

    def fits(self, text: str) -> bool:
        """Return whether a whole text has the form."""
        matcher = self._after(text)
        return matcher is not None and matcher.is_accepting()

    def begins(self, text: str) -> bool:
        """Return whether a text of the form may begin like that."""
        return self._after(text) is not None

    def _unusable(self, reason: str) -> UsageError:
        return UsageError(f"This {_NAMES[self.kind]} cannot be used: {reason}. docs/structured.md lists what can.")

    def _after(self, text: str) -> llguidance.LLMatcher | None:
        """Return a matcher that has read a text; None if no text of the form begins like that."""
        matcher, data = self._of_bytes(), list(text.encode("utf-8", "replace"))
        return matcher if matcher.try_consume_tokens(data) == len(data) else None

    def _of_bytes(self) -> llguidance.LLMatcher:
        """Return a matcher whose tokens are bytes: of texts, whatever the model."""
        import llguidance

        return llguidance.LLMatcher(_byte_table(), self._grammar(), log_level=0)

    def _rules(self) -> int:
        """Return how many rules or references there are, each of which may lead to the next."""
        if self.kind == "schema":
            return sum("$ref" in one for one in objects_in(json.loads(self.source)))
        return self.source.count(":") if self.kind == "grammar" else 0  # each has one, also inside a %json

    def _endless(self) -> str | None:
        """Return the place in it that no finite text gets through."""
        if self.kind == "schema":
            return endless_reference(json.loads(self.source))
        return endless_rule(self.source) if self.kind == "grammar" else None

    def _grammar(self, beginning: str = "") -> str:
        """Return llguidance's form of it, behind the rules of a `beginning`."""
        import llguidance

        if self.kind == "schema":
            schema = _reduced(json.loads(self.source))
            own: dict[str, Any] = {"json_schema": {**schema, **_OPTIONS} if isinstance(schema, dict) else schema}
        elif self.kind == "regex":
            (own,) = json.loads(llguidance.LLMatcher.grammar_from_regex(self.source))["grammars"]
        else:
            own = {"lark_grammar": self.source}
        whole = [{"lark_grammar": beginning}] if beginning else []
        return json.dumps({"grammars": [*whole, {**own, "name": "answer"}]})


@dataclass(frozen=True, slots=True)
class _Known:
    """A vocabulary by the names that llguidance reads; called with a text, it returns token ids."""

    tokens: Sequence[bytes]
    special_token_ids: Sequence[int]
    eos_token_id: int
    encode: Callable[[str], list[int]]
    bos_token_id: int | None = None

    def __call__(self, text: str) -> list[int]:
        return self.encode(text)


class TokenTable:
    """The bytes of every token, as llguidance wants them; takes a second or more for 262,144 tokens."""

    def __init__(self, tokenizer: Tokenizer, size: int, stop: Collection[int]) -> None:
        """`size`: the network's vocabulary, of which the tokenizer may know fewer."""
        import llguidance

        self.stop = frozenset(stop)
        self.open, self.close = tokenizer.special_id(OPEN), tokenizer.special_id(CLOSE)
        tokens = [tokenizer.token_bytes(token) for token in range(size)]
        known = _Known(tokens, sorted(tokenizer.special_ids), min(stop), tokenizer.encode_plain)
        self.inner = llguidance.LLTokenizer(llguidance.TokenizerWrapper(known), n_vocab=size, eos_token=sorted(stop))


class Matcher:
    """A constraint at a place in an answer, on the tokens of one model (`decode/constraint.py`)."""

    def __init__(
        self, constraint: Constraint, table: TokenTable, begun: Sequence[int] = (), *, in_thought: bool = False
    ) -> None:
        """`begun`: the answer so far. `in_thought`: the prompt has opened a thought. Raises MlxmtpError."""
        import llguidance

        self._stop, self._ended = table.stop, False
        limits = llguidance.LLParserLimits(verbose_errors=False)
        grammar = constraint._grammar(_beginning(table, constraint, inside=in_thought))
        self._inner = llguidance.LLMatcher(table.inner, grammar, log_level=0, limits=limits)
        self._complain()
        if self.accept(begun) < len(begun):
            raise UsageError("The answer that is to be continued does not fit the constraint: ask for another one.")

    @property
    def complete(self) -> bool:
        """True if the answer may end here."""
        return self._ended or self._inner.is_accepting()

    @property
    def whole(self) -> bool:
        """True if the answer has ended, or may end here and cannot go on. What is cut elsewhere may be half a word."""
        if self._ended or not self._inner.is_accepting():
            return self._ended
        following = int.from_bytes(self._inner.compute_bitmask(), "little")
        return not following & ~sum(1 << token for token in self._stop)

    def accept(self, tokens: Sequence[int]) -> int:
        """Go on by the leading tokens that are allowed; return their number."""
        if self._ended:
            return 0
        end = next((i for i, token in enumerate(tokens) if token in self._stop), len(tokens))
        count = self._inner.try_consume_tokens(list(tokens[:end]))
        if count == end < len(tokens) and self._inner.is_accepting():
            self._ended = True
            return count + 1
        return count

    def forced(self) -> Sequence[int]:
        """Return the tokens, as the tokenizer would cut them, of the text that must follow."""
        return [] if self._ended else self._inner.compute_ff_tokens()

    def mask(self) -> bytes:
        """Return the allowed tokens as bits. Raises MlxmtpError where none is, or the grammar has become too large."""
        bits = self._inner.compute_bitmask()
        self._complain()
        if not any(bits):
            raise MlxmtpError("The constraint allows no way to go on or to end here: check it for a dead end.")
        return bits

    def _complain(self) -> None:
        if self._inner.is_error():
            raise MlxmtpError(f"The constraint failed: {self._inner.get_error().strip()}")


def _reduced(schema: Any, *, by_name: bool = False) -> Any:
    """Return a schema without each `propertyNames` that says only that names are texts, as zod writes it."""
    if isinstance(schema, list):
        return [_reduced(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    kept = dict(schema)
    if not by_name and kept.get("propertyNames") in ({"type": "string"}, {}, True):
        del kept["propertyNames"]
    return {
        key: value if key in _DATA and not by_name else _reduced(value, by_name=key in _BY_NAME and not by_name)
        for key, value in kept.items()
    }


def _beginning(table: TokenTable, constraint: Constraint, *, inside: bool) -> str:
    """Return the rules of a thought that may come first, or that the prompt has begun, and of calls after it."""
    answer = f"(@answer | calls)\n{constraint.calls}" if constraint.calls else "@answer"
    if table.open is None or table.close is None:
        return f"start: {answer}"
    barred = {table.close, *table.stop, *([] if constraint.call_mark is None else [constraint.call_mark])}
    free = f"<[^{','.join(map(str, sorted(barred)))}]>*"
    if inside:
        return f"start: {free} <[{table.close}]> {answer}"
    return f"start: thought? {answer}\nthought: <[{table.open}]> {free} <[{table.close}]>"


@lru_cache(64)
def _check(constraint: Constraint) -> None:
    """Check a constraint once, whoever asks: a file of `map`, a round of tools."""
    constraint.check_anew()


@cache
def _byte_table() -> llguidance.LLTokenizer:
    """Return a tokenizer of single bytes, to look at a constraint before any model is read."""
    import llguidance

    known = _Known([*(bytes([one]) for one in range(256)), b"<end>"], [256], 256, lambda text: list(text.encode()))
    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(known))
