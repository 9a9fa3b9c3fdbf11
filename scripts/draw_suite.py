#!/usr/bin/env python3
"""Draw the pictures of the suite `pictures` again, into mlxmtp/bench/suites/pictures: python -m scripts.draw_suite.

They are this project's own: a sign, a chart, shapes, a receipt and a plan, each with something to read or to count.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

FOLDER = Path(__file__).resolve().parents[1] / "mlxmtp/bench/suites/pictures"
_BARS = {"Mon": 12, "Tue": 19, "Wed": 7, "Thu": 23, "Fri": 16}
_BOUGHT = [("2 x Bread", "4.80"), ("Butter", "2.35"), ("6 x Apples", "3.90"), ("Tea", "5.10"), ("Total", "16.15")]
_ROOMS = {
    "Kitchen 12 m2": (40, 40, 300, 260), "Living room 24 m2": (300, 40, 760, 260), "Hall": (40, 260, 240, 460),
    "Bath 6 m2": (240, 260, 420, 460), "Bedroom 15 m2": (420, 260, 760, 460),
}  # fmt: skip


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)  # type: ignore[return-value]


def sign(draw: ImageDraw.ImageDraw) -> None:
    """A street sign with a time."""
    draw.rectangle((60, 60, 740, 380), fill=(20, 70, 140), outline="white", width=10)
    draw.text((100, 100), "Old harbour  1.4 km", font=_font(50), fill="white")
    draw.text((100, 190), "Museum of clocks  600 m", font=_font(50), fill="white")
    draw.text((100, 290), "closed on Tuesdays", font=_font(40), fill=(255, 220, 0))


def chart(draw: ImageDraw.ImageDraw) -> None:
    """Bars with their days."""
    draw.text((60, 20), "Visitors a day", font=_font(40), fill="black")
    for i, (day, value) in enumerate(_BARS.items()):
        left = 80 + 140 * i
        draw.rectangle((left, 420 - 14 * value, left + 90, 420), fill=(200, 80 + 20 * i, 60))
        draw.text((left + 15, 430), day, font=_font(32), fill="black")
        draw.text((left + 25, 380 - 14 * value), str(value), font=_font(32), fill="black")


def shapes(draw: ImageDraw.ImageDraw) -> None:
    """Seven shapes in three colours."""
    for x, y in ((60, 60), (330, 300), (600, 90)):
        draw.ellipse((x, y, x + 120, y + 120), fill=(200, 30, 30))
    for x, y in ((220, 90), (560, 320)):
        draw.rectangle((x, y, x + 110, y + 110), fill=(30, 60, 200))
    for x, y in ((120, 420), (440, 200)):
        draw.polygon(((x, y), (x + 60, y - 110), (x + 120, y)), fill=(20, 150, 60))


def receipt(draw: ImageDraw.ImageDraw) -> None:
    """A receipt whose lines add up."""
    draw.text((200, 20), "CORNER SHOP", font=_font(44), fill="black")
    for i, (what, price) in enumerate(_BOUGHT):
        draw.text((120, 110 + 64 * i), what, font=_font(38), fill="black")
        draw.text((560, 110 + 64 * i), price, font=_font(38), fill="black")
    draw.line((120, 360, 680, 360), fill="black", width=4)


def plan(draw: ImageDraw.ImageDraw) -> None:
    """Rooms of a flat with their sizes."""
    for name, box in _ROOMS.items():
        draw.rectangle(box, outline="black", width=6)
        draw.text((box[0] + 20, (box[1] + box[3]) // 2 - 20), name, font=_font(24), fill="black")


DRAWN: dict[str, Callable[[ImageDraw.ImageDraw], None]] = {
    "sign": sign, "chart": chart, "shapes": shapes, "receipt": receipt, "plan": plan,
}  # fmt: skip


def main() -> None:
    """Draw all of them."""
    FOLDER.mkdir(exist_ok=True)
    for name, draw in DRAWN.items():
        image = Image.new("RGB", (800, 500), "white" if name != "sign" else (150, 190, 220))
        draw(ImageDraw.Draw(image))
        image.quantize(32).save(FOLDER / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
