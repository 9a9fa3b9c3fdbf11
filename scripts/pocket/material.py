"""Texts a person might hand over with an instruction: prose, code, logs, tables, lists."""

from __future__ import annotations

from random import Random

from scripts.pocket.outfield import nonsense
from scripts.pocket.words import ADJECTIVES, NOUNS, PEOPLE, PLACES, THINGS, VERBS

_SUMMARIZE = (
    "Summarize this", "Summarize this file in three sentences", "What is this about?", "Give me the gist", "tl;dr",
    "Make a list of the main points", "What does this text say?", "Shorten this", "Read this and tell me what matters",
    "summarise the text above", "What are the key facts?", "Give me a summary", "Which topics are covered here?",
)  # fmt: skip
_CODE = (
    "Explain this code", "What does this code do?", "Find the bug", "Fix this", "Write tests for this",
    "Refactor this function", "Add comments", "Review this", "Port this to Rust", "Why does this fail?",
    "Make it faster", "What is wrong here?",
)  # fmt: skip
_LOG = (
    "What went wrong?", "Why does this crash?", "Explain the error", "Which line is the problem?", "Count the errors",
    "Is this serious?", "Find the cause", "What happened at the end?",
)  # fmt: skip
_WRITE = (
    "Correct the grammar", "Rewrite this politely", "Make this sound better", "Improve this text", "Proofread this",
    "Write a reply", "Turn this into an email",
)  # fmt: skip
_TRANSLATE = (
    "Translate this into German",
    "Translate to French",
    "What does this say in English?",
    "Put this into Spanish",
)


def material(rng: Random, words: int) -> tuple[str, str, str]:
    """(category of the refusal, a text of about `words` words, the instruction after it)."""
    kind = rng.choice(("prose", "prose", "words", "code", "log", "table"))
    if kind == "code":
        return "code", _code(rng, words), rng.choice(_CODE)
    if kind == "log":
        return "code", _log(rng, words), rng.choice(_LOG)
    text = {"prose": _prose, "words": _words, "table": _table}[kind](rng, words)
    draw = rng.random()
    if draw < 0.7:
        return "summarize", text, rng.choice(_SUMMARIZE)
    if draw < 0.85:
        return "email", text, rng.choice(_WRITE)
    return "translate", text, rng.choice(_TRANSLATE)


def path(rng: Random) -> str:
    """A file name for the header of a material."""
    stem = rng.choice((*NOUNS, "notes", "main", "readme", "report", "todo", "server", "test", nonsense(rng).lower()))
    ending = rng.choice(("txt", "md", "py", "rs", "log", "csv", "json", "c", "toml", "html"))
    return rng.choice(("", "src/", "docs/", "/tmp/", "~/", "../")) + f"{stem}.{ending}"


def _sentence(rng: Random) -> str:
    noun, other = rng.choice(NOUNS), rng.choice(NOUNS)
    form = rng.randrange(6)
    if form == 0:
        return f"The {rng.choice(ADJECTIVES)} {noun} {rng.choice(VERBS)}s a {other} in {rng.choice(PLACES)}."
    if form == 1:
        return f"{rng.choice(PEOPLE)} had a {noun} and a {rng.choice(THINGS)}, but no {other}."
    if form == 2:
        return f"In {rng.randrange(1000, 2030)} every {noun} was {rng.choice(ADJECTIVES)}; the {other} was not."
    if form == 3:
        return f"We {rng.choice(VERBS)} the {noun} and then {rng.choice(VERBS)} the {other}."
    if form == 4:
        return f"About {rng.randrange(2, 999)} {noun}s were {rng.choice(ADJECTIVES)} {nonsense(rng)}s."
    return f"{nonsense(rng).capitalize()} says that {rng.choice(PLACES)} is {rng.choice(ADJECTIVES)}."


def _prose(rng: Random, words: int) -> str:
    out: list[str] = []
    while words > 0:
        sentences = [_sentence(rng) for _ in range(rng.randint(2, 6))]
        words -= 10 * len(sentences)
        out.append(" ".join(sentences))
    return "\n\n".join(out)


def _words(rng: Random, words: int) -> str:
    return " ".join(rng.choice(NOUNS) if rng.random() < 0.6 else nonsense(rng).lower() for _ in range(words))


def _code(rng: Random, words: int) -> str:
    lines = [f"import {rng.choice(('os', 're', 'sys', 'json', 'math'))}", ""]
    while words > 0:
        name, arg, verb = rng.choice(NOUNS), rng.choice(NOUNS), rng.choice(VERBS)
        lines += [
            f"def {verb}_{name}({arg}):",
            f"    for {arg[0]} in range({rng.randrange(100)}):",
            f"        {name} = {verb}({arg}[{arg[0]}] {rng.choice('+-*/')} {rng.randrange(100)})",
            f"    return {name}",
            "",
        ]
        words -= 16
    return "\n".join(lines).rstrip()


def _log(rng: Random, words: int) -> str:
    lines = []
    for _ in range(words // 6 + 1):
        stamp = f"2026-{rng.randint(1, 12):02}-{rng.randint(1, 28):02} {rng.randrange(24):02}:{rng.randrange(60):02}"
        level = rng.choice(("INFO", "INFO", "WARN", "ERROR", "DEBUG"))
        lines.append(
            f"{stamp} {level} {rng.choice(NOUNS)}: {rng.choice(VERBS)} {nonsense(rng).lower()} {rng.randrange(9999)}"
        )
    return "\n".join(lines)


def _table(rng: Random, words: int) -> str:
    lines = [",".join(rng.choice(NOUNS) for _ in range(4))]
    lines += [
        f"{rng.choice(NOUNS)},{rng.randrange(999)},{nonsense(rng)},{rng.randrange(99)}.{rng.randrange(10)}"
        for _ in range(words // 4)
    ]
    return "\n".join(lines)
