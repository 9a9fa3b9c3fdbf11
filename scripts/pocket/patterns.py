r"""Question patterns: `(what is|explain) (the |)drafter` stands for all of its wordings.

`(a|b|)` chooses one alternative, alternatives may be empty or hold further groups, and
`\(`, `\|`, `\)` are the characters themselves. Everything else is literal.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random


class PatternError(ValueError):
    """A pattern whose parentheses do not match."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several sequences; a sequence is made of literal text and further choices."""

    options: tuple[Sequence_, ...]


Sequence_ = tuple["str | Choice", ...]


def parse(pattern: str) -> Sequence_:
    """Read a pattern; raises PatternError where the parentheses do not match."""
    sequence, end = _sequence(pattern, 0, top=True)
    if end != len(pattern):
        raise PatternError(f"unexpected ')' at character {end}: {pattern!r}")
    return sequence


def _sequence(pattern: str, at: int, *, top: bool) -> tuple[Sequence_, int]:
    parts: list[str | Choice] = []
    text = ""
    while at < len(pattern):
        char = pattern[at]
        if char == "\\" and at + 1 < len(pattern) and pattern[at + 1] in "(|)\\":
            text += pattern[at + 1]
            at += 2
        elif char == "(":
            choice, at = _choice(pattern, at + 1)
            parts += [text, choice]
            text = ""
        elif char == ")" or (char == "|" and not top):
            break
        else:
            text += char
            at += 1
    return (*parts, text), at


def _choice(pattern: str, at: int) -> tuple[Choice, int]:
    options: list[Sequence_] = []
    while True:
        option, at = _sequence(pattern, at, top=False)
        options.append(option)
        if at == len(pattern):
            raise PatternError(f"a '(' is never closed: {pattern!r}")
        at += 1
        if pattern[at - 1] == ")":
            return Choice(tuple(options)), at


def expand(sequence: Sequence_, rng: Random) -> str:
    """One wording, every alternative equally likely."""
    return "".join(part if isinstance(part, str) else expand(rng.choice(part.options), rng) for part in sequence)


def count(sequence: Sequence_) -> int:
    """The number of wordings, duplicates included."""
    total = 1
    for part in sequence:
        if isinstance(part, Choice):
            total *= sum(count(option) for option in part.options)
    return total


def squash(text: str) -> str:
    """What is left of a question when case, spaces and punctuation do not count."""
    return re.sub(r"[\W_]+", "", text.lower())


def matcher(sequence: Sequence_) -> str:
    """A regular expression for `squash`ed wordings of the pattern."""
    return "".join(
        re.escape(squash(part))
        if isinstance(part, str)
        else "(?:" + "|".join(matcher(option) for option in part.options) + ")"
        for part in sequence
    )
