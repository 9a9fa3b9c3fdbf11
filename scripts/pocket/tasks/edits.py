# ruff: noqa: E501  (a row of a table is read best as one line)
"""Short code and text to be changed in one place: rename, correct a word, repeat with one change."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from zlib import crc32

from scripts.pocket.tasks import values
from scripts.pocket.tasks.task import Ask, Say, Task
from scripts.pocket.words import ADJECTIVES, NOUNS, PLACES, VERBS

HELD_OUT_EVERY = 8
_RENAME = (
    "Rename {a} to {b}",
    "Replace {a} by {b}",
    "Change {a} to {b}",
    "Call {a} {b} instead",
    "{a} should be called {b}",
)
_REPEAT = ("Repeat this with {b} instead of {a}", "The same with {b} in place of {a}", "Write it again, but with {b} for {a}", "Again, with {b} instead of {a}")  # fmt: skip
_FIX = ("Fix the typo", "Correct the spelling", "There is a misspelled word, fix it", "Fix the word {a}", "Correct the spelling of {a}")  # fmt: skip
_PLAIN = ("Repeat this", "Repeat it word for word", "Write this again", "Copy this")


@dataclass(frozen=True, slots=True)
class Edit:
    """A text, what is asked of it, and the text that is wanted."""

    text: str
    asked: str
    wanted: str

    @property
    def question(self) -> str:
        """Material first, as `ask` writes it."""
        return f"{self.text}\n\n{self.asked}"


def edit(rng: Random, *, held_out: bool = False) -> Edit:
    """Return an edit; texts whose hash falls on HELD_OUT_EVERY are kept for measuring."""
    while True:
        is_code = rng.random() < 0.5
        text, old = _code(rng) if is_code else _prose(rng)
        if (crc32(text.encode()) % HELD_OUT_EVERY == 0) == held_out:
            break
    shown = f"```python\n{text}\n```" if is_code and rng.random() < 0.6 else text
    draw = rng.random()
    if draw < 0.2:
        word = max(text.replace("\n", " ").split(), key=lambda one: one.isalpha() * len(one))
        i = rng.randrange(max(1, len(word) - 1))
        wrong = word[:i] + word[i + 1 : i + 2] + word[i : i + 1] + word[i + 2 :]
        if word.isalpha() and wrong != word and not is_code:
            return Edit(shown.replace(word, wrong, 1), rng.choice(_FIX).format(a=wrong), shown)
    if draw < 0.3:
        return Edit(shown, rng.choice(_PLAIN), shown)
    new = rng.choice(
        (
            rng.choice(NOUNS),
            values.word(rng),
            f"{rng.choice(NOUNS)}_{rng.choice(NOUNS)}" if is_code else rng.choice(PLACES),
        )
    )
    asked = rng.choice(_RENAME if is_code or draw < 0.6 else _REPEAT).format(a=old, b=new)
    return Edit(shown, asked, "".join(_replaced(shown, old, new)))


def _replaced(text: str, old: str, new: str) -> str:
    """Whole words only."""
    parts, end = [], 0
    while (at := text.find(old, end)) >= 0:
        around = text[at - 1 : at] + text[at + len(old) : at + len(old) + 1]
        parts += [text[end:at], old if any(one.isalnum() or one == "_" for one in around) else new]
        end = at + len(old)
    return "".join([*parts, text[end:]])


def _code(rng: Random) -> tuple[str, str]:
    """Return a few lines of Python and a name in them."""
    name, argument, verb = (rng.choice((rng.choice(NOUNS), values.word(rng))) for _ in range(3))
    other = rng.choice(NOUNS)
    sign, number = rng.choice("+-*"), rng.randrange(100)
    text = rng.choice(
        (
            f"def {verb}({argument}):\n    {name} = {argument} {sign} {number}\n    return {name}",
            f"{name} = {number}\nfor {argument} in range({name}):\n    print({argument} {sign} {name})",
            f"def {verb}_{other}({name}):\n    return [{name}.{other}() for _ in range({number})]",
            f"if {name} > {number}:\n    {verb}({name})\nelse:\n    {verb}({argument})",
            f"class {name.capitalize()}:\n    {argument} = {number}\n\n    def {verb}(self):\n        return self.{argument}",
            f"{name} = {{'{argument}': {number}, '{other}': {name}_{verb}}}",
        )
    )
    return text, rng.choice([one for one in (name, argument, verb) if one in text])


def _prose(rng: Random) -> tuple[str, str]:
    """Return a sentence or two and a word in them."""
    noun, other, place = rng.choice(NOUNS), rng.choice(NOUNS), values.place(rng)
    sentence = rng.choice(
        (
            f"The {rng.choice(ADJECTIVES)} {noun} went to {place} with a {other}.",
            f"We {rng.choice(VERBS)} the {noun} and then the {other} in {place}.",
            f"{values.person(rng)} has a {noun} and {rng.randrange(2, 99)} {other}s.",
            f"A {noun} in {place} is better than a {rng.choice(ADJECTIVES)} {other}.",
            f"Please bring the {noun} on {rng.choice(values.DAYS)}, and the {other} at {values.clock(rng)}.",
        )
    )
    if rng.random() < 0.3:
        sentence += f" The {noun} was {rng.choice(ADJECTIVES)}."
    return sentence, rng.choice((noun, other))


def task(rng: Random, *, held_out: bool = False) -> Task:
    """Return a text with an edit, answered by the changed text."""
    made = edit(rng, held_out=held_out)
    return Task((Ask(made.question), Say(made.wanted)))
