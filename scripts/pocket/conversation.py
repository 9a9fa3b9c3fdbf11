"""Conversations for training, drawn from the corpus: deterministic by seed and index."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate
from random import Random
from zlib import crc32

from scripts.pocket import augment, keywords, outfield
from scripts.pocket.corpus import Intent, Link
from scripts.pocket.material import material, path
from scripts.pocket.patterns import expand, squash
from scripts.pocket.tasks import edits, extraction, pictures, sounds, tools
from scripts.pocket.tasks.task import Ask, Medium, Say, Task

_SYSTEMS = (
    "You are a helpful assistant.", "Answer in one sentence.", "Be brief.", "You are a helpful, friendly assistant.",
    "Answer in English.", "You are an expert.", "Keep it short.", "Use markdown.", "You are a terse assistant.",
    "You help people on the command line.", "Be polite and precise.", "You are pocket.", "Answer for a beginner.",
    "You are a pirate.", "Reply as briefly as you can.", "Explain step by step.", "You are a senior engineer.",
)  # fmt: skip
HELD_OUT_EVERY = 40
KEYWORDS_SHARE = 0.2
PLAIN_SHARE = 0.65
LINKED_SHARE = 0.45
DRILL_SHARE = 0.65
TASK_SHARE = 0.18
_TASKS = {"tools": 28, "questions beside tools": 4, "extraction": 16, "edits": 14, "pictures": 30, "sounds": 8}
"""How often each kind of task is drawn, of a hundred tasks. Tools take half of all positions: declarations are long."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A question, the thought about it and the answer; `subject` is the number of the intent it belongs to."""

    question: str
    thought: str
    answer: str
    subject: int


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in order; with thinking only the last turn is learned, and only it shows its thought.

    A drill is one question of which nothing but the first words of the answer are learned: to tell the subjects apart
    is what takes longest, and a drill costs a third of a conversation.
    """

    turns: tuple[Turn, ...]
    system: str = ""
    thinking: bool = False
    drill: bool = False


class Generator:
    """Draws conversations. Wordings whose hash falls on HELD_OUT_EVERY are kept for validation."""

    def __init__(
        self,
        intents: list[Intent],
        seed: int,
        clips: int = sounds.TRAINED,
        task_share: float = TASK_SHARE,
        new_share: float = 1.0,
        drill_share: float = DRILL_SHARE,
    ) -> None:
        """`clips`: how many sounds have been synthesized; `task_share`: how many of the rows are tasks.

        `new_share`: how often a new subject is drawn for every other one; `drill_share`: how many conversations are
        drills.
        """
        self.seed, self._clips, self._task_share, self._drill_share = seed, clips, task_share, drill_share
        self._single = [i for i in intents if not i.refuses]
        self._often = [*accumulate(new_share if i.new else 1.0 for i in self._single)]
        self.items = [(i, None) for i in self._single]
        self.items += [(i, f) for i in intents for f in i.follow]  # type: ignore[misc]
        self.subjects = {i.id: n for n, i in enumerate(one for top in intents for one in (top, *top.follow))}
        self._by_id = {intent.id: intent for intent in intents}
        self.refusals = {i.id.removeprefix("refuse-"): i for i in intents if i.refuses}
        self.default = self.refusals.get("trivia") or next(iter(self.refusals.values()))

    def draw(self, index: int, *, held_out: bool = False) -> Conversation | Task:
        """Conversation number `index`; the held-out stream shares no plain wording with the other."""
        rng = Random(f"{self.seed}/{'held-out' if held_out else 'train'}/{index}")
        if rng.random() < self._task_share:
            return self._task(rng, held_out)
        thinking = rng.random() < 0.3
        if not held_out and rng.random() < self._drill_share:
            turn = self._refused(rng) if rng.random() < 0.14 else self._known(self._one(rng), rng, False)
            return Conversation((turn,), "", thinking, drill=True)
        turns = self._turns(rng, held_out)
        system = rng.choice(_SYSTEMS) if rng.random() < 0.12 else ""
        return Conversation(turns, system, thinking)

    def _task(self, rng: Random, held_out: bool) -> Task:
        kind = rng.choices([*_TASKS], [*_TASKS.values()])[0]
        number = rng.randrange(10**9)
        match kind:
            case "tools":
                return tools.task(rng, held_out=held_out)
            case "questions beside tools":
                turn = self._refused(rng) if rng.random() < 0.3 else self._known(self._one(rng), rng, held_out)
                return Task((Ask(turn.question), Say(turn.answer)), tools.some_tools(rng))
            case "extraction":
                return extraction.task(rng, held_out=held_out)
            case "edits":
                return edits.task(rng, held_out=held_out)
            case "pictures":
                return pictures.task(rng, number, held_out=held_out)
        return sounds.task(rng, number, self._spoken, held_out=held_out)

    def _one(self, rng: Random) -> Intent:
        """Return a subject."""
        return rng.choices(self._single, cum_weights=self._often)[0]

    def _spoken(self, medium: Medium) -> sounds.Spoken:
        clips = sounds.MEASURED if medium.held_out else self._clips
        return sounds.spoken(replace(medium, index=medium.index % clips))

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
        elif intent.links and rng.random() < LINKED_SHARE:
            turns.append(self._linked(rng.choice(intent.links), rng))
        while len(turns) < 3 and rng.random() < 0.22:
            more = self._refused(rng) if rng.random() < 0.15 else self._known(rng.choice(self.items)[0], rng, held_out)
            turns.insert(0 if rng.random() < 0.7 or follow else len(turns), more)
        return tuple(turns)

    def _known(self, intent: Intent, rng: Random, held_out: bool) -> Turn:
        if not (held_out or intent.refuses) and rng.random() < KEYWORDS_SHARE:
            return self._turn(intent, keywords.wording(intent, rng), rng)
        for _ in range(200):
            plain = intent.plain and rng.random() < PLAIN_SHARE
            wording = expand(rng.choice(intent.plain if plain else intent.questions), rng)
            if (crc32(squash(wording).encode()) % HELD_OUT_EVERY == 0) == held_out:
                break
        return self._turn(intent, wording, rng)

    def _linked(self, link: Link, rng: Random) -> Turn:
        """A second turn that leans on the first, answered as the intent it leads to."""
        return self._turn(self._by_id[link.to], rng.choice(link.questions), rng)

    def _turn(self, intent: Intent, wording: str, rng: Random) -> Turn:
        question = augment.question(wording, rng)
        return Turn(question, intent.thought, rng.choice(intent.answers), self.subjects[intent.id])

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
