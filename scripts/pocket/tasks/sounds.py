"""Spoken digits and words of command, synthesized by espeak-ng, and what can be asked about them.

espeak-ng (GPL 3) is a program that is run, no part of this project; what it speaks are our own texts. Three voices are
kept for measuring. Sounds are made once (`synthesize`), and changed a little whenever they are heard.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray

from mlxmtp.media.sound import RATE, open_sound
from scripts.pocket.tasks.task import Ask, Medium, Say, Task

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COMMANDS = (
    "yes", "no", "stop", "go", "open", "close", "start", "pause", "save", "help", "left", "right", "up", "down", "on",
    "off", "next", "back", "again", "louder", "quiet", "cancel", "hello", "thanks",
)  # fmt: skip
WORDS = (*DIGITS, *COMMANDS)
_ACCENTS = ("en-us", "en-gb-scotland", "en-029", "en-gb-x-gbclan", "en-gb-x-gbcwmd")
_VARIANTS = (
    "m1",
    "m2",
    "m3",
    "m5",
    "m7",
    "f1",
    "f2",
    "f3",
    "f5",
    "Andy",
    "Annie",
    "belinda",
    "steph",
    "linda",
    "edward",
)
VOICES = ("en-gb", *(f"{accent}+{variant}" for accent in _ACCENTS for variant in _VARIANTS))
HELD_OUT_VOICES = ("en-gb-x-rp+m4", "en-us-nyc+f4", "en-us+Michael")
TRAINED, MEASURED = 9000, 600
_QUESTIONS = (
    "What do you hear?", "What was said?", "Write down what you hear", "Transcribe this", "what is said here?",
    "Listen: what is it?", "Which words are these?", "Tell me what you hear", "please transcribe", "what did I say?",
)  # fmt: skip
_DIGIT_QUESTIONS = (
    "Which digits are spoken?",
    "Which number was said?",
    "What number do you hear?",
    "Write the digits",
)
_COMMAND_QUESTIONS = ("Which command was given?", "What was the command?", "Which word is it?")


@dataclass(frozen=True, slots=True)
class Spoken:
    """Words of one sound, the voice, its speed in words a minute and its pitch (0 to 99)."""

    words: tuple[str, ...]
    voice: str
    speed: int
    pitch: int


def spoken(medium: Medium) -> Spoken:
    """Return what sound number `medium.index` says, and how."""
    rng = Random(f"sound/{medium.index}/{medium.held_out}")
    if rng.random() < 0.65:
        words = tuple(rng.choice(DIGITS) for _ in range(rng.choice((1, 1, 2, 2, 3, 3, 4))))
    else:
        words = tuple(rng.choice(COMMANDS) for _ in range(rng.choice((1, 1, 1, 2))))
    voice = rng.choice(HELD_OUT_VOICES if medium.held_out else VOICES)
    return Spoken(words, voice, rng.randint(120, 210), rng.randint(25, 75))


def speak(said: Spoken) -> bytes:
    """Return a WAV file. Raises SystemExit where espeak-ng is missing."""
    if shutil.which("espeak-ng") is None:
        raise SystemExit("espeak-ng is needed for spoken words: apt-get install espeak-ng, or brew install espeak-ng")
    command = ["espeak-ng", "--stdout", "-v", said.voice, "-s", str(said.speed), "-p", str(said.pitch)]
    text = ", ".join(said.words) if len(said.words) > 1 else said.words[0]
    return subprocess.run([*command, text], capture_output=True, check=True).stdout


def synthesize(folder: Path, trained: int = TRAINED, measured: int = MEASURED) -> None:
    """Write all sounds into `folder`, unless they are there: samples as whole numbers, and where each begins."""
    for name, count, held_out in (("train", trained, False), ("held-out", measured, True)):
        places = folder / f"{name}.json"
        if places.exists() and len(json.loads(places.read_text())) == count + 1:
            continue
        said = [spoken(Medium("audio", index, held_out)) for index in range(count)]
        with ThreadPoolExecutor(2) as pool:
            clips = [open_sound(data, "audio/wav").samples for data in pool.map(speak, said)]
        samples = np.concatenate([(one * 32767).astype(np.int16) for one in clips])
        np.save(folder / f"{name}.npy", samples)
        places.write_text(json.dumps([0, *np.cumsum([len(one) for one in clips]).tolist()]))


class Sounds:
    """The sounds of a folder, as they are heard: louder or softer, faster or slower, with noise and a wait before."""

    def __init__(self, folder: Path) -> None:
        self._samples = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("train", "held-out")}
        self._places = {name: json.loads((folder / f"{name}.json").read_text()) for name in self._samples}

    @property
    def count(self) -> int:
        """How many there are to train with."""
        return len(self._places["train"]) - 1

    def text(self, medium: Medium) -> Spoken:
        """Return what a sound says; numbers beyond the last sound begin again, with other noise."""
        return spoken(self._first(medium))

    def samples(self, medium: Medium) -> NDArray[np.float32]:
        """Return the samples of a sound at 16 kHz."""
        start, end = self._place(medium)
        clip = self._samples[_name(medium)][start:end].astype(np.float32) / 32767
        return clip if medium.held_out else varied(clip, Random(f"heard/{medium.index}"))

    def length(self, medium: Medium) -> int:
        """Return how many samples it has as it was spoken, before it is varied."""
        start, end = self._place(medium)
        return end - start

    def _place(self, medium: Medium) -> tuple[int, int]:
        number = self._first(medium).index
        start, end = self._places[_name(medium)][number : number + 2]
        return start, end

    def _first(self, medium: Medium) -> Medium:
        count = len(self._places[_name(medium)]) - 1
        return Medium("audio", medium.index % count, medium.held_out)


def _name(medium: Medium) -> str:
    return "held-out" if medium.held_out else "train"


def varied(clip: NDArray[np.float32], rng: Random) -> NDArray[np.float32]:
    """Return a sound as another microphone would hear it."""
    speed = rng.uniform(0.9, 1.1)
    clip = np.interp(np.arange(0, len(clip) - 1, speed), np.arange(len(clip)), clip).astype(np.float32)
    waits = [np.zeros(rng.randrange(RATE // 4), np.float32) for _ in range(2)]
    clip = np.concatenate([waits[0], clip * rng.uniform(0.15, 1.0), waits[1]])
    if rng.random() < 0.6:
        noise = np.random.default_rng(rng.getrandbits(32)).standard_normal(len(clip)).astype(np.float32)
        loud = float(np.sqrt(np.mean(clip**2))) * 10 ** (-rng.uniform(10, 40) / 20)
        clip = clip + noise * loud
    return np.clip(clip, -1, 1)


def task(rng: Random, index: int, text: Callable[[Medium], Spoken], *, held_out: bool = False) -> Task:
    """Return a question about sound number `index`; `text` says what is spoken in it."""
    medium = Medium("audio", index, held_out)
    words = text(medium).words
    return Task((Ask(asked(words, rng), (medium,)), Say(heard(words))))


def asked(words: Sequence[str], rng: Random) -> str:
    """Return a question about a sound."""
    own = _DIGIT_QUESTIONS if words[0] in DIGITS else _COMMAND_QUESTIONS
    return rng.choice(own if rng.random() < 0.4 else _QUESTIONS)


def heard(words: Sequence[str]) -> str:
    """Return the answer to it."""
    return f"I hear: {', '.join(words)}."
