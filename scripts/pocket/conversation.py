"""Conversations for training, drawn from the corpus: deterministic by seed and index."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from zlib import crc32

from pocket import augment, keywords, outfield
from pocket.corpus import Intent
from pocket.material import material, path
from pocket.patterns import expand, squash

_SYSTEMS = (
    "You are a helpful assistant.", "Answer in one sentence.", "Be brief.", "You are a helpful, friendly assistant.",
    "Answer in English.", "You are an expert.", "Keep it short.", "Use markdown.", "You are a terse assistant.",
    "You help people on the command line.", "Be polite and precise.", "You are pocket.", "Answer for a beginner.",
    "You are a pirate.", "Reply as briefly as you can.", "Explain step by step.", "You are a senior engineer.",
)  # fmt: skip
HELD_OUT_EVERY = 40
KEYWORDS_SHARE = 0.2
PLAIN_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Turn:
    """A question, the thought about it and the answer."""

    question: str
    thought: str
    answer: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in order; with thinking only the last turn is learned, and only it shows its thought."""

    turns: tuple[Turn, ...]
    system: str = ""
    thinking: bool = False


class Generator:
    """Draws conversations. Wordings whose hash falls on HELD_OUT_EVERY are kept for validation."""

    def __init__(self, intents: list[Intent], seed: int) -> None:
        self.seed = seed
        self.items = [(i, None) for i in intents if not i.refuses]
        self.items += [(i, f) for i in intents for f in i.follow]  # type: ignore[misc]
        self.refusals = {i.id.removeprefix("refuse-"): i for i in intents if i.refuses}
        self.default = self.refusals.get("trivia") or next(iter(self.refusals.values()))

    def draw(self, index: int, *, held_out: bool = False) -> Conversation:
        """Conversation number `index`; the held-out stream shares no plain wording with the other."""
        rng = Random(f"{self.seed}/{'held-out' if held_out else 'train'}/{index}")
        thinking = rng.random() < 0.25
        turns = self._turns(rng, held_out)
        system = rng.choice(_SYSTEMS) if rng.random() < 0.12 else ""
        return Conversation(turns, system, thinking)

    def _turns(self, rng: Random, held_out: bool) -> tuple[Turn, ...]:
        draw = rng.random()
        if draw < 0.03:
            return (self._material(rng),)
        intent, follow = rng.choice(self.items)
        turns = [self._known(intent, rng, held_out)]
        if draw < 0.17:
            turns = [self._refused(rng)]
        elif follow is not None:
            turns.append(self._known(follow, rng, held_out))
        elif intent.follow and rng.random() < 0.3:
            turns.append(self._known(rng.choice(intent.follow), rng, held_out))
        while len(turns) < 3 and rng.random() < 0.22:
            more = self._refused(rng) if rng.random() < 0.15 else self._known(rng.choice(self.items)[0], rng, held_out)
            turns.insert(0 if rng.random() < 0.7 or follow else len(turns), more)
        return tuple(turns)

    def _known(self, intent: Intent, rng: Random, held_out: bool) -> Turn:
        if not (held_out or intent.refuses) and rng.random() < KEYWORDS_SHARE:
            return Turn(
                augment.question(keywords.wording(intent, rng), rng), intent.thought, rng.choice(intent.answers)
            )
        for _ in range(200):
            plain = intent.plain and rng.random() < PLAIN_SHARE
            wording = expand(rng.choice(intent.plain if plain else intent.questions), rng)
            if (crc32(squash(wording).encode()) % HELD_OUT_EVERY == 0) == held_out:
                break
        return Turn(augment.question(wording, rng), intent.thought, rng.choice(intent.answers))

    def _refused(self, rng: Random) -> Turn:
        """Half from the refusals' own patterns, half from combinations of words."""
        if rng.random() < 0.5:
            return self._known(rng.choice(list(self.refusals.values())), rng, False)
        category, text = outfield.question(rng)
        turn = self._known(self.refusals.get(category, self.default), rng, False)
        return replace(turn, question=augment.question(text, rng))

    def _material(self, rng: Random) -> Turn:
        words = round(8 * 50 ** rng.random())
        category, text, instruction = material(rng, words)
        if rng.random() < 0.2:
            turn = self._known(rng.choice(self.items)[0], rng, False)
            instruction = turn.question
        else:
            turn = self._known(self.refusals.get(category, self.default), rng, False)
        header = f"--- {path(rng)} ---\n" if rng.random() < 0.7 else ""
        return replace(turn, question=f"{header}{text}\n\n{instruction}")
