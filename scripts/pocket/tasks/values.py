"""Values that a person may name in a request or a sentence, most of them never seen before."""

from __future__ import annotations

from random import Random

from scripts.pocket.words import ADJECTIVES, NOUNS, PEOPLE, PLACES, SYLLABLES, THINGS

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday", "today", "tomorrow")
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
COLOURS = ("red", "green", "blue", "yellow", "black", "white", "orange", "purple", "grey", "brown", "pink")
JOBS = (
    "teacher", "nurse", "doctor", "lawyer", "farmer", "painter", "pilot", "cook", "writer", "driver", "engineer",
    "baker", "singer", "judge", "plumber", "dentist", "gardener", "librarian",
)  # fmt: skip
_ENDINGS = ("txt", "md", "py", "rs", "log", "csv", "json", "toml", "html")
_DOMAINS = ("example.com", "mail.org", "post.net", "home.io")


def word(rng: Random) -> str:
    """Return a word that nobody has ever seen."""
    return "".join(rng.choice(SYLLABLES) for _ in range(rng.choice((2, 2, 3))))


def place(rng: Random) -> str:
    """Return a town or country, known or not."""
    return rng.choice(PLACES) if rng.random() < 0.5 else word(rng).capitalize()


def person(rng: Random) -> str:
    """Return a name, of one or two words."""
    if rng.random() < 0.3:
        return rng.choice(PEOPLE)
    names = [word(rng).capitalize() for _ in range(rng.choice((1, 2, 2)))]
    return " ".join(names)


def day(rng: Random) -> str:
    """Return a day of the week, or a date."""
    draw = rng.random()
    if draw < 0.4:
        return rng.choice(DAYS)
    if draw < 0.7:
        return f"{rng.randint(2019, 2031)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
    return f"{rng.randint(1, 28)} {rng.choice(MONTHS)}"


def clock(rng: Random) -> str:
    """Return a time of day."""
    return f"{rng.randrange(24)}:{rng.choice((0, 5, 10, 15, 20, 30, 40, 45, 50)):02}"


def count(rng: Random) -> int:
    """Return a whole number from 1 on, most of them small."""
    return rng.randint(1, 10 ** rng.choice((1, 1, 2, 2, 3, 4)))


def amount(rng: Random) -> float | int:
    """Return a number, half of them with decimals."""
    whole = rng.randrange(1, 10 ** rng.choice((1, 2, 2, 3)))
    return whole if rng.random() < 0.5 else float(f"{whole}.{rng.choice(('5', '25', '75', '99', '4', '8'))}")


def thing(rng: Random) -> str:
    """Return something that can be had, with or without an adjective."""
    noun = rng.choice(THINGS if rng.random() < 0.5 else NOUNS)
    return f"{rng.choice(ADJECTIVES)} {noun}" if rng.random() < 0.3 else noun


def phrase(rng: Random) -> str:
    """Return a few words, as of a title or message."""
    return " ".join(
        rng.choice((rng.choice(NOUNS), rng.choice(ADJECTIVES), word(rng))) for _ in range(rng.randint(1, 4))
    )


def path(rng: Random) -> str:
    """Return the path of a file."""
    stem = rng.choice((*NOUNS, "notes", "main", "readme", "todo", word(rng)))
    return rng.choice(("", "", "src/", "docs/", f"{rng.choice(NOUNS)}/")) + f"{stem}.{rng.choice(_ENDINGS)}"


def address(rng: Random) -> str:
    """Return an e-mail address."""
    return f"{word(rng)}@{rng.choice(_DOMAINS)}"


def url(rng: Random) -> str:
    """Return a web address."""
    return f"https://{word(rng)}.{rng.choice(('com', 'org', 'net'))}/{rng.choice(NOUNS)}"


def number(rng: Random) -> str:
    """Return the number of an order, a room or a ticket."""
    return f"{rng.choice(('', '', 'A-', 'K', 'X-', '#'))}{rng.randrange(10, 99999)}"


def colour(rng: Random) -> str:
    """Return a colour."""
    return rng.choice(COLOURS)


def job(rng: Random) -> str:
    """Return what somebody works as."""
    return rng.choice(JOBS)
