# ruff: noqa: E501  (a row of a table is read best as one line)
"""Pictures of shapes, digits and words, drawn by Pillow, and what can be asked about them.

A picture is described by its number, so it can be drawn again. One font and an eighth of the arrangements are kept for
measuring.
"""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from scripts.pocket.tasks.task import Ask, Medium, Say, Task

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond")
COLOURS = {
    "red": (214, 40, 40), "green": (40, 160, 60), "blue": (40, 80, 210), "yellow": (240, 215, 40),
    "orange": (245, 140, 30), "purple": (140, 60, 170), "black": (25, 25, 25), "white": (245, 245, 245),
}  # fmt: skip
DIGITS = "0123456789"
WORDS = (
    "YES", "NO", "STOP", "GO", "OPEN", "EXIT", "MLX", "MTP", "HOT", "COLD", "SALE", "CAFE", "TAXI", "BUS", "BANK", "HELP",
    "LEFT", "RIGHT", "UP", "DOWN", "ON", "OFF", "NEW", "OLD",
)  # fmt: skip
THINGS = (*SHAPES, *DIGITS, *WORDS)
"""Classes of what stands at a place of a picture."""
NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
SIZES = ((480, 360), (360, 480), (400, 400), (320, 240), (432, 336), (384, 288))
_PAPERS = ((255, 255, 255), (250, 245, 230), (200, 215, 230), (230, 230, 230), (60, 60, 70), (20, 30, 50))


@dataclass(frozen=True, slots=True)
class Thing:
    """A shape, a digit or a word of a colour; `x`, `y`: its centre, `size`: its radius or height, as parts of the width."""

    what: str
    colour: str
    x: float
    y: float
    size: float
    turn: float = 0.0


@dataclass(frozen=True, slots=True)
class Picture:
    """Things on a paper; their order is that in which a reader meets their centres."""

    width: int
    height: int
    paper: tuple[int, int, int]
    things: tuple[Thing, ...]
    font: int
    noise: float
    grain: int

    def draw(self) -> Image.Image:
        """Return the picture."""
        scale = 2  # drawn twice as large: Pillow does not smooth edges
        image = Image.new("RGB", (self.width * scale, self.height * scale), self.paper)
        pen = ImageDraw.Draw(image)
        for thing in self.things:
            _draw(pen, thing, self.width * scale, self.font)
        image = image.resize((self.width, self.height), Image.Resampling.BOX)
        if not self.noise:
            return image
        grain = np.random.default_rng(self.grain).standard_normal((self.height, self.width, 1)) * (255 * self.noise)
        return Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))

    @property
    def kind(self) -> str:
        """`shapes`, `digits` or `word`."""
        what = self.things[0].what
        return "shapes" if what in SHAPES else "digits" if what in DIGITS else "word"


def picture(medium: Medium) -> Picture:
    """Return the picture of that number."""
    rng = Random(f"picture/{medium.index}/{medium.held_out}")
    width, height = rng.choice(SIZES)
    paper = rng.choice(_PAPERS)
    draw = rng.random()
    if draw < 0.62:
        things = _shapes(rng, paper, height / width)
    elif draw < 0.86:
        things = _digits(rng, paper, height / width)
    else:
        things = _word(rng, paper, height / width)
    font = len(_fonts()) - 1 if medium.held_out and rng.random() < 0.3 else rng.randrange(max(1, len(_fonts()) - 1))
    noise = rng.choice((0.0, 0.0, rng.uniform(0.01, 0.06)))
    return Picture(width, height, paper, things, font, noise, rng.getrandbits(32))


def crowded(index: int) -> Picture:
    """Return a picture full of things of all kinds: a tower learns from each of them, nobody asks about it."""
    rng = Random(f"crowd/{index}")
    width, height = rng.choice(SIZES)
    paper = rng.choice(_PAPERS)
    things = _crowd(rng, paper, height / width)
    font = rng.randrange(max(1, len(_fonts()) - 1))
    return Picture(width, height, paper, things, font, rng.choice((0.0, rng.uniform(0.01, 0.06))), rng.getrandbits(32))


def encoded(image: Image.Image, rng: Random) -> bytes:
    """Return the picture as a file: PNG, JPEG, or JPEG that is stored on its side."""
    file = io.BytesIO()
    draw = rng.random()
    if draw < 0.5:
        image.save(file, "PNG", compress_level=1)
    elif draw < 0.9:
        image.save(file, "JPEG", quality=rng.randint(60, 95))
    else:
        exif = Image.Exif()
        exif[0x0112] = 6
        image.transpose(Image.Transpose.ROTATE_90).save(file, "JPEG", quality=90, exif=exif)
    return file.getvalue()


def task(rng: Random, index: int, *, held_out: bool = False) -> Task:
    """Return a question about picture number `index` with its answer; in training, sometimes up to three of them."""
    medium = Medium("image", index, held_out)
    seen = picture(medium)
    steps: list[Ask | Say] = []
    for number in range(1 if held_out else rng.choice((1, 2, 3))):
        question, answer = asked(seen, rng)
        steps += (Ask(question, () if number else (medium,)), Say(answer))
    return Task(tuple(steps))


def asked(seen: Picture, rng: Random) -> tuple[str, str]:
    """Return a question about a picture and the answer."""
    draw = rng.random()
    if seen.kind == "shapes" and draw < 0.25:
        return rng.choice(_HOW_MANY), f"There {_are(len(seen.things), 'shape')}."
    if seen.kind == "shapes" and draw < 0.40:
        shape = rng.choice((rng.choice(seen.things).what, rng.choice(SHAPES)))
        count = sum(thing.what == shape for thing in seen.things)
        return rng.choice(_HOW_MANY_OF).format(s=_plural(shape)), f"There {_are(count, shape)}."
    if seen.kind == "shapes" and draw < 0.5 and len({thing.what for thing in seen.things}) == len(seen.things):
        thing = rng.choice(seen.things)
        return rng.choice(_COLOUR).format(s=thing.what), f"The {thing.what} is {thing.colour}."
    own = {"shapes": _WHAT, "digits": _NUMBER, "word": _TEXT}[seen.kind]
    return rng.choice(own if rng.random() < 0.5 else _WHAT), described(seen)


_WHAT = (
    "What is in the picture?", "What do you see?", "Describe the picture", "Describe this image", "what is this",
    "What does the picture show?", "what can you see here?", "Tell me what is in this picture", "and what is in this image?",
)  # fmt: skip
_HOW_MANY = ("How many shapes are there?", "How many shapes do you see?", "Count the shapes", "how many things are in the picture?", "how many shapes")  # fmt: skip
_HOW_MANY_OF = ("How many {s} are there?", "Count the {s}", "how many {s} do you see?")
_COLOUR = ("What colour is the {s}?", "Which colour has the {s}?", "what color is the {s}", "The {s}: which colour?")
_NUMBER = ("Which number is this?", "What number do you see?", "Read the number", "what digits are these?", "Which digit is it?")  # fmt: skip
_TEXT = ("What does it say?", "Read the word", "Which word is this?", "What is written there?", "read the text")


def described(seen: Picture) -> str:
    """Return one sentence on all that a picture shows."""
    if seen.kind == "digits":
        return f"The picture shows the number {''.join(thing.what for thing in seen.things)}."
    if seen.kind == "word":
        return f"The picture says {seen.things[0].what}."
    counts = Counter((thing.colour, thing.what) for thing in seen.things)
    said = []
    for (colour, what), count in counts.items():
        article = "an" if colour[0] in "aeio" else "a"
        said.append(f"{article} {colour} {what}" if count == 1 else f"{NUMBERS[count]} {colour} {_plural(what)}")
    joined = ", ".join(said[:-1]) + f" and {said[-1]}" if len(said) > 1 else said[0]
    return f"{joined[0].upper()}{joined[1:]}."


def _plural(what: str) -> str:
    return what + ("es" if what.endswith("s") else "s")


def _are(count: int, what: str) -> str:
    return f"is one {what}" if count == 1 else f"are {NUMBERS[count]} {_plural(what)}"


def _inks(paper: tuple[int, int, int]) -> list[str]:
    """Return the colours that can be told from the paper."""
    return [name for name, ink in COLOURS.items() if sum(abs(a - b) for a, b in zip(ink, paper, strict=True)) > 170]


def _shapes(rng: Random, paper: tuple[int, int, int], ratio: float) -> tuple[Thing, ...]:
    """Return one to five shapes that do not touch: several alike, or every one of a kind and a colour of its own."""
    inks, things = _inks(paper), list[Thing]()
    many = rng.choice((1, 1, 2, 2, 3, 3, 4, 5))
    if rng.random() < 0.4:
        kinds = list(zip(rng.sample(SHAPES, many), rng.sample(inks, min(many, len(inks))), strict=False))
    else:
        some = [(rng.choice(SHAPES), rng.choice(inks)) for _ in range(rng.choice((1, 2, 2, 3)))]
        kinds = [rng.choice(some) for _ in range(many)]
    for what, colour in kinds:
        size = rng.uniform(0.07, 0.17)
        if place := _room(rng, ratio, size, [(one.x, one.y, one.size) for one in things]):
            things.append(Thing(what, colour, *place, size, rng.uniform(-0.3, 0.3)))
    return ordered(things, ratio)


def _room(
    rng: Random, ratio: float, reach: float, taken: Sequence[tuple[float, float, float]]
) -> tuple[float, float] | None:
    """Return a place for a thing where it touches none of the others (x, y, reach), if one is soon found."""
    for _ in range(30):
        x, y = rng.uniform(reach, 1 - reach), rng.uniform(reach, ratio - reach) if ratio > 2 * reach else ratio / 2
        if all(math.hypot(x - a, y - b) > 1.1 * (reach + other) for a, b, other in taken):
            return x, y
    return None


def _crowd(rng: Random, paper: tuple[int, int, int], ratio: float) -> tuple[Thing, ...]:
    inks, things, taken = _inks(paper), list[Thing](), list[tuple[float, float, float]]()
    for _ in range(rng.randint(5, 14)):
        what = rng.choice(rng.choice((SHAPES, SHAPES, DIGITS, DIGITS, WORDS)))
        if what in SHAPES:
            size = reach = rng.uniform(0.07, 0.14)
        else:
            size = rng.uniform(0.12, 0.3)
            reach = min(0.45, max(0.5, 0.36 * len(what)) * size)
        if place := _room(rng, ratio, reach, taken):
            things.append(Thing(what, rng.choice(inks), *place, size, rng.uniform(-0.3, 0.3)))
            taken.append((*place, reach))
    return ordered(things, ratio)


def ordered(things: Sequence[Thing], ratio: float) -> tuple[Thing, ...]:
    """Return things in the order of the soft tokens at their centres: by row, then by column."""
    rows = _rows(ratio)
    return tuple(sorted(things, key=lambda one: (int(one.y / ratio * rows), one.x)))


def _rows(ratio: float) -> int:
    """Rows of soft tokens of a picture with that height by width, at a budget of 70."""
    return math.floor(math.sqrt(70 * ratio))


def _digits(rng: Random, paper: tuple[int, int, int], ratio: float) -> tuple[Thing, ...]:
    many = rng.choice((1, 1, 1, 2, 2, 3))
    size = rng.uniform(0.2, min(0.6 * ratio, 0.8 / many))
    colour, step = rng.choice(_inks(paper)), 0.72 * size
    left = rng.uniform(0.36 * size, 1 - 0.36 * size - step * (many - 1))
    y = rng.uniform(0.5 * size, ratio - 0.5 * size)
    return tuple(Thing(rng.choice(DIGITS), colour, left + step * i, y, size) for i in range(many))


def _word(rng: Random, paper: tuple[int, int, int], ratio: float) -> tuple[Thing, ...]:
    word = rng.choice(WORDS)
    size = rng.uniform(0.12, min(0.5 * ratio, 1.15 / len(word)))
    half = 0.36 * size * len(word)
    x, y = rng.uniform(half, 1 - half) if half < 0.5 else 0.5, rng.uniform(0.5 * size, ratio - 0.5 * size)
    return (Thing(word, rng.choice(_inks(paper)), x, y, size),)


@cache
def _fonts() -> tuple[str, ...]:
    """Return fonts that Pillow finds, its own first; without DejaVu's the pictures have that one only."""
    found = []
    for name in ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSerif-Bold.ttf", "DejaVuSansMono-Bold.ttf"):
        try:
            ImageFont.truetype(name, 20)
        except OSError:
            continue
        found.append(name)
    return ("", *found)


def _draw(pen: ImageDraw.ImageDraw, thing: Thing, width: int, font: int) -> None:
    x, y, size, ink = thing.x * width, thing.y * width, thing.size * width, COLOURS[thing.colour]
    if thing.what not in SHAPES:
        name = _fonts()[font]
        face = ImageFont.truetype(name, size) if name else ImageFont.load_default(size)
        pen.text((x, y), thing.what, fill=ink, font=face, anchor="mm")
    elif thing.what == "circle":
        pen.ellipse((x - size, y - size, x + size, y + size), fill=ink)
    elif thing.what == "ring":
        pen.ellipse((x - size, y - size, x + size, y + size), outline=ink, width=max(2, round(0.3 * size)))
    else:
        turned = [_turned(a, b, thing.turn) for a, b in _CORNERS[thing.what]]
        pen.polygon([(x + a * size, y + b * size) for a, b in turned], fill=ink)


def _turned(a: float, b: float, turn: float) -> tuple[float, float]:
    return a * math.cos(turn) - b * math.sin(turn), a * math.sin(turn) + b * math.cos(turn)


def _star() -> list[tuple[float, float]]:
    radii = (1.0, 0.42) * 5
    return [(r * math.sin(i * math.pi / 5), -r * math.cos(i * math.pi / 5)) for i, r in enumerate(radii)]


_THIRD = 0.3
_CORNERS: dict[str, Sequence[tuple[float, float]]] = {
    "square": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
    "triangle": [(0, -1), (0.9, 0.7), (-0.9, 0.7)],
    "diamond": [(0, -1), (0.6, 0), (0, 1), (-0.6, 0)],
    "cross": [
        (-_THIRD, -1), (_THIRD, -1), (_THIRD, -_THIRD), (1, -_THIRD), (1, _THIRD), (_THIRD, _THIRD), (_THIRD, 1),
        (-_THIRD, 1), (-_THIRD, _THIRD), (-1, _THIRD), (-1, -_THIRD), (-_THIRD, -_THIRD),
    ],
    "star": _star(),
}  # fmt: skip
