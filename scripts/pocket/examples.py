"""Write assets/shapes.png and assets/digits.wav, for the examples of the README: drawn and spoken by our scripts.

Needs Pillow and espeak-ng: `python -m scripts.pocket.examples`. Text and picture are our own, under the licence of the
project; espeak-ng (GPL 3) is a program that is run, and puts no licence on what it speaks.
"""

from __future__ import annotations

from pathlib import Path

import soundfile

from mlxmtp.media.sound import RATE, open_sound
from scripts.pocket.tasks.pictures import Picture, Thing
from scripts.pocket.tasks.sounds import Spoken, speak

ASSETS = Path(__file__).parents[2] / "assets"
SHAPES = Picture(
    width=480,
    height=360,
    paper=(255, 255, 255),
    things=(
        Thing("circle", "red", 0.22, 0.35, 0.14),
        Thing("square", "blue", 0.55, 0.40, 0.13, 0.1),
        Thing("triangle", "green", 0.82, 0.42, 0.14),
    ),
    font=0,
    noise=0.0,
    grain=0,
)
DIGITS = Spoken(("three", "one", "four"), "en-gb", 150, 50)


def main() -> None:
    """Write both files."""
    SHAPES.draw().save(ASSETS / "shapes.png", optimize=True)
    soundfile.write(ASSETS / "digits.wav", open_sound(speak(DIGITS), "audio/wav").samples, RATE, subtype="PCM_16")


if __name__ == "__main__":
    main()
