"""The values that settings may have: checks of numbers, words and texts, with the wording of their refusals."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mlxmtp.limits import Range


@dataclass(frozen=True, slots=True)
class Rule:
    """The values a setting may have."""

    wanted: str  # completes "it must be"
    reads: Any  # the type of a flag's value
    check: Callable[[object], Any]  # returns the value in the field's type, None for one that is not allowed


def number(allowed: Range) -> Rule:
    """Allow the numbers of a range."""

    def check(value: Any) -> float | None:
        kinds = int if allowed.whole else int | float
        good = isinstance(value, kinds) and not isinstance(value, bool) and value in allowed
        return None if not good else value if allowed.whole else float(value)

    return Rule(str(allowed), int if allowed.whole else float, check)


def number_or(allowed: Range, word: str) -> Rule:
    """Allow the whole numbers of a range, also as text, and one word."""
    numbers = number(allowed)

    def check(value: object) -> Any:
        if isinstance(value, str) and value.isascii() and value.isdecimal():
            return numbers.check(int(value))
        return word if value == word else numbers.check(value)

    return Rule(f"{allowed}, or {word}", str, check)


def choice(*values: str | int) -> Rule:
    """Allow some words, or some numbers."""

    def check(value: object) -> object:
        return None if isinstance(value, bool) else next((one for one in values if one == value), None)

    return Rule(f"{', '.join(map(str, values[:-1]))} or {values[-1]}", type(values[0]), check)


def name_of(what: str) -> Rule:
    """Allow a text that is not blank."""
    return Rule(f"the name of {what}", str, lambda value: value.strip() or None if isinstance(value, str) else None)


def texts(value: object) -> tuple[str, ...] | None:
    """Return one text or several as a tuple, None for anything else and for an empty text."""
    found = [value] if isinstance(value, str) else value
    good = isinstance(found, list | tuple) and all(isinstance(one, str) and one for one in found)
    return tuple(found) if good and found else None  # type: ignore[arg-type]


TEXTS = Rule("a text, or a list of texts, none of them empty", list[str], texts)
TEXT = Rule("a text", str, lambda value: value if isinstance(value, str) else None)
SWITCH = Rule("true or false", bool, lambda value: value if isinstance(value, bool) else None)
