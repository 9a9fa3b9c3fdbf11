"""Lines, dots and words on a page, as SVG, or as PNG where Pillow is installed (the `plot` extra)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, Literal
from xml.sax.saxutils import escape, quoteattr

from mlxmtp.errors import UsageError

Anchor = Literal["start", "middle", "end"]
_PILLOW = {"start": "l", "middle": "m", "end": "r"}
_SCALE = 2  # pixels of a PNG for one unit of the page


@dataclass(frozen=True, slots=True)
class Line:
    """Through points (x, y), y downwards."""

    points: tuple[tuple[float, float], ...]
    color: str
    width: float = 1.0
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Dot:
    """A filled circle."""

    x: float
    y: float
    radius: float
    color: str


@dataclass(frozen=True, slots=True)
class Words:
    """Text whose baseline is at y."""

    x: float
    y: float
    text: str
    size: float = 12
    anchor: Anchor = "start"
    color: str = "#333333"


Shape = Line | Dot | Words


@dataclass(frozen=True, slots=True)
class Page:
    """Shapes on white paper, later ones over earlier ones."""

    width: int
    height: int
    shapes: tuple[Shape, ...]

    def svg(self) -> str:
        """As an SVG document."""
        size = f'width="{self.width}" height="{self.height}" viewBox="0 0 {self.width} {self.height}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="Helvetica, Arial, sans-serif">'
        paper = f'<rect width="{self.width}" height="{self.height}" fill="#ffffff"/>'
        return "\n".join([head, paper, *(_element(shape) for shape in self.shapes), "</svg>", ""])

    def png(self) -> bytes:
        """As a PNG file. Raises UsageError without Pillow."""
        require_png()
        from PIL import Image, ImageDraw, ImageFont

        image = Image.new("RGB", (self.width * _SCALE, self.height * _SCALE), "#ffffff")
        pen = ImageDraw.Draw(image)
        for shape in self.shapes:
            if isinstance(shape, Words):
                font = ImageFont.load_default(shape.size * _SCALE)
                place = (shape.x * _SCALE, shape.y * _SCALE)
                pen.text(place, shape.text, shape.color, font, anchor=f"{_PILLOW[shape.anchor]}s")
            else:
                _draw(pen, shape)
        file = io.BytesIO()
        image.save(file, "PNG", optimize=True)
        return file.getvalue()


def require_png() -> None:
    """Raises UsageError where no PNG can be drawn."""
    if find_spec("PIL") is None:
        raise UsageError(
            "A PNG needs Pillow: pip install 'mlxmtp[plot]', or draw --plot FILE.svg, which needs nothing."
        )


def _element(shape: Shape) -> str:
    if isinstance(shape, Words):
        where = f'x="{shape.x:.1f}" y="{shape.y:.1f}" font-size="{shape.size:g}" text-anchor="{shape.anchor}"'
        return f"<text {where} fill={quoteattr(shape.color)}>{escape(_printable(shape.text))}</text>"
    if isinstance(shape, Dot):
        return f'<circle cx="{shape.x:.1f}" cy="{shape.y:.1f}" r="{shape.radius:g}" fill={quoteattr(shape.color)}/>'
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in shape.points)
    dashes = ' stroke-dasharray="5 4"' if shape.dashed else ""
    look = f'fill="none" stroke={quoteattr(shape.color)} stroke-width="{shape.width:g}"{dashes}'
    return f'<polyline points="{points}" {look}/>'


def _printable(text: str) -> str:
    """Without the control characters that XML forbids."""
    return "".join(character for character in text if character >= " ")


def _draw(pen: Any, shape: Line | Dot) -> None:
    if isinstance(shape, Dot):
        x, y, r = (value * _SCALE for value in (shape.x, shape.y, shape.radius))
        pen.ellipse((x - r, y - r, x + r, y + r), fill=shape.color)
        return
    points = [(x * _SCALE, y * _SCALE) for x, y in shape.points]
    pieces = _dashes(points) if shape.dashed else [points]
    for piece in pieces:
        pen.line(piece, fill=shape.color, width=round(shape.width * _SCALE), joint="curve")


def _dashes(points: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """Pieces of 5 units with gaps of 4 along straight lines; each corner begins a new one."""
    found = []
    for (x0, y0), (x1, y1) in pairwise(points):
        length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
        at = 0.0
        while at < length:
            ends = [(x0 + (x1 - x0) * t / length, y0 + (y1 - y0) * t / length) for t in (at, min(at + 10, length))]
            found.append(ends)
            at += 18
    return found
