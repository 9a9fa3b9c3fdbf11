"""Questions made from what an intent says itself: its topic, or a handful of the words of its answer.

People often ask with the words of the answer ("resume a broken download"); the patterns cannot hold them all.
"""

from __future__ import annotations

import re
from random import Random

from scripts.pocket.corpus import Intent

_TOPIC = (
    "{}", "tell me about {}", "what about {}", "explain {}", "I have a question about {}", "I wonder about {}",
    "{}, how?", "what do you know about {}", "help me with {}", "is there something about {}",
    "how does that work: {}", "about {}", "I need {}", "what is there to know about {}", "can you say more about {}",
)  # fmt: skip
_WORDS = (
    "{}", "{}?", "how {}", "what {}", "which command {}", "which flag {}", "I want {}", "does it {}", "can I {}",
    "why {}", "is it true that {}", "something with {}", "when {}", "where {}", "how is that: {}", "what if {}",
    "can it {}", "I need {}", "is there {}", "my {}", "the {}",
)  # fmt: skip
_FENCE = re.compile(r"```.*?```", re.DOTALL)
_WORD = re.compile(r"[\w/+.@:-]*\w")


def wording(intent: Intent, rng: Random) -> str:
    """A question from the topic, from a stretch of the answer, or from a few words of it in order."""
    draw = rng.random()
    if draw < 0.35:
        return rng.choice(_TOPIC).format(intent.topic)
    source = f"{intent.topic} {intent.think}" if draw < 0.6 else _FENCE.sub(" ", rng.choice(intent.answers))
    words = _WORD.findall(source) or [intent.topic]
    many = rng.randint(4, 9)
    if rng.random() < 0.5:
        start = rng.randrange(max(1, len(words) - many))
        chosen = words[start : start + many]
    else:
        chosen = [words[i] for i in sorted(rng.sample(range(len(words)), min(many, len(words))))]
    return rng.choice(_WORDS).format(" ".join(chosen))
