"""How people really type: case, punctuation, courtesies and slips, for questions only."""

from __future__ import annotations

from random import Random

from scripts.pocket.loosen import loosen

_BEFORE = (
    "hey, ", "hey ", "hi, ", "hi! ", "hello, ", "hello! ", "please ", "please tell me, ",
    "could you tell me ", "can you tell me, ", "can you explain, ", "I wonder, ", "quick question: ",
    "question: ", "one more question: ", "I am new to this. ", "sorry, ", "so, ", "so ", "ok, ", "okay, ",
    "and ", "well, ", "just curious: ", "tell me: ", "help: ", "explain: ", "in short: ", "briefly, ",
    "for my notes: ", "I have a question. ", "Good morning. ", "I'd like to know, ", "dear pocket, ",
)  # fmt: skip
_AFTER = (
    " please", ", please", " thanks", ", thanks", ", thank you", " Thanks in advance", " in short", ", in short",
    " briefly", " in one sentence", " exactly", " again", ", in simple words", " right now", " for me",
    ", I forgot", ", can you tell me", ", do you know", ", any idea", " with mlxmtp", " in mlxmtp", " here",
    " quickly", ", in a few words", " then", " by the way", ", exactly",
)  # fmt: skip
_KEYS = {
    "a": "sq", "b": "vn", "c": "xv", "d": "sf", "e": "wr", "f": "dg", "g": "fh", "h": "gj", "i": "uo",
    "j": "hk", "k": "jl", "l": "k", "m": "n", "n": "bm", "o": "ip", "p": "o", "q": "w", "r": "et", "s": "ad",
    "t": "ry", "u": "yi", "v": "cb", "w": "qe", "x": "zc", "y": "tu", "z": "x",
}  # fmt: skip
_SHORT = (
    ("do not", "don't"), ("cannot", "can't"), ("does not", "doesn't"), ("what is", "what's"), ("is not", "isn't"),
    ("I am", "I'm"), ("you", "u"), ("are", "r"), ("and", "&"), ("it is", "it's"), ("what's", "whats"),
    ("don't", "dont"),
)  # fmt: skip


def question(text: str, rng: Random) -> str:
    """The wording `text` the way somebody might type it."""
    if rng.random() < 0.6:
        text = loosen(text, rng)
    text = _courtesies(text, rng)
    text = _case(text, rng)
    if rng.random() < 0.08:
        old, new = rng.choice(_SHORT)
        text = text.replace(f" {old} ", f" {new} ")
    if rng.random() < 0.10:
        text = text.replace("`", "")
    if rng.random() < 0.18:
        for _ in range(rng.choice((1, 1, 2))):
            text = _slip(text, rng)
    return _punctuation(text, rng)


def _courtesies(text: str, rng: Random) -> str:
    draw = rng.random()
    if draw < 0.14:
        text = rng.choice(_BEFORE) + text
    elif draw < 0.26:
        text = text.rstrip("?.! ") + rng.choice(_AFTER)
    elif draw < 0.28:
        text = rng.choice(_BEFORE) + text.rstrip("?.! ") + rng.choice(_AFTER)
    return text


def _case(text: str, rng: Random) -> str:
    draw = rng.random()
    if draw < 0.45:
        return text[:1].upper() + text[1:]
    if draw < 0.60:
        return text.lower()
    if draw < 0.61:
        return text.upper()
    return text


def _punctuation(text: str, rng: Random) -> str:
    text = text.strip()
    draw = rng.random()
    if text[-1:] in "?.!" or draw < 0.35:
        return text.rstrip("?.") if draw < 0.15 else text
    return text + rng.choice(("?", "?", "?", "?", "?", ".", "!", "??", " ?"))


def _slip(text: str, rng: Random) -> str:
    """One typing mistake in a lower-case word of at least four letters."""
    places = [
        i for i in range(1, len(text) - 1) if text[i - 1 : i + 2].isalpha() and text[i].islower() and text[i] in _KEYS
    ]
    if not places:
        return text
    i = rng.choice(places)
    kind = rng.randrange(4)
    if kind == 0:
        return text[:i] + text[i + 1] + text[i] + text[i + 2 :]
    if kind == 1:
        return text[:i] + text[i + 1 :]
    if kind == 2:
        return text[:i] + text[i] + text[i:]
    return text[:i] + rng.choice(_KEYS[text[i]]) + text[i + 1 :]
