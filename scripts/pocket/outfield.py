# ruff: noqa: E501  (a pattern is read best as one line)
"""Questions outside the field, made by combination, so that refusing generalizes.

Each comes with the name of the refusal that fits; the answers are in the corpus (`refuse-*`).
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from scripts.pocket.patterns import Sequence_, expand, parse
from scripts.pocket.words import ADJECTIVES, NOUNS, PEOPLE, PLACES, SYLLABLES, THINGS, VERBS

# category of the refusal -> patterns; {x} is replaced by a word of that list
_PATTERNS: dict[str, tuple[str, ...]] = {
    "geography": (
        "(what is|what's|name) the (capital|population|area|currency|flag|highest mountain|longest river|time zone) (of|in) {place}",
        "(where|how far) is {place}(| from {place})",
        "(which|what) (countries|rivers|cities|lakes) (are|lie) (in|near|around) {place}",
        "(tell me|what do you know|something) about {place}",
        "how (big|large|old|cold|far) is {place}",
    ),
    "history": (
        "(who is|who was|tell me about) {person}",
        "(when|where) (was|is) {person} born",
        "(what did|why did) {person} (do|write|invent|paint|discover|win|say)",
        "when did the {noun} (war|empire|revolution|age) (begin|end|start)",
        "(who|when) (invented|discovered|founded|built) the {thing}",
    ),
    "science": (
        "(why|how) (does|do|can|did) (a|the) {noun} {verb}",
        "(what is|what are|explain|define) (a |the |){noun}(s|) (made of|in physics|in biology|in chemistry)",
        "how (does|do) (a|the) {thing} work",
        "(why|how come) (is|are) (the |){noun} {adjective}",
    ),
    "maths": (
        "(what is|what's|compute|calculate|how much is|) {number} (+|-|*|/|plus|minus|times|divided by) {number}",
        "(what is|) the (square root|square|cube|factorial|half|double) of {number}",
        "(solve|simplify|integrate|differentiate) {letter}(^2|) (+|-) {number}{letter} = {number}",
        "{number} percent of {number}", "is {number} (a prime|even|odd|divisible by {number})",
        "convert {number} (miles|pounds|inches|euros|degrees) to (kilometres|kilograms|centimetres|dollars|celsius)",
    ),
    "translate": (
        "(translate|say|how do I say|what is) (\"|'|)(the |my |){adjective} {noun}(\"|'|) (in|into|to) (French|German|Spanish|Italian|Polish|Japanese|Latin|Greek)",
        "what does (\"|'|){nonsense}(\"|'|) mean in (English|French|Arabic|Turkish)",
    ),
    "poem": (
        "(write|make|compose|tell|sing) (me |)(a|another|a short|a funny) (poem|story|song|haiku|limerick|fairy tale|novel|rap) about (a |the |)({adjective} |){noun}(s|)",
        "(continue|finish|invent) (the|a) story (about|of) (a|the) {adjective} {noun}",
    ),
    "news": ("(what is|what's) (new|happening|going on) in {place}", "who (won|lost) the (match|election|race|game|cup) in {place}"),
    "weather": ("(what is|how is|what's) the (weather|temperature|time|forecast) (in|like in) {place}", "(will it|does it) (rain|snow) in {place}( tomorrow| today|)"),
    "code": (
        "(write|give me|make|code) (a|some) (function|program|script|class|loop|code|regex) (in (Java|Rust|C|Go|JavaScript|Haskell|Python)|) (that|to) {verb}(s|) (a|the) {thing}(s|)",
        "(how do I|how to) {verb} (a|the) (list|array|string|{noun}) in (Java|Rust|C|Go|JavaScript|Python|SQL|Bash)",
        "(fix|debug|explain|review) (this|my) (code|function|bug|query|css)",
        "what does {nonsense}\\(\\) do in (Java|Rust|C|Go|JavaScript|Python)",
    ),
    "email": ("(write|draft|improve|correct) (a|an|my) (letter|email|speech|essay|application|report|invitation) (to|about|for) (the |my |a |){noun}",),
    "recommend": (
        "(how do I|how to|how long do I) (cook|bake|boil|fry|clean|fix|plant|paint|store|wash) (a |the |my |){noun}(s|)",
        "(recommend|suggest|which is|what is) (me |)(a|the best|some) (good |){thing}(s|)( for {place}|)",
        "(where|what) should I (eat|buy|visit|see|wear|watch|read) in {place}",
        "how much (does a|is a|for a) {thing} (cost|weigh)",
        "how many (calories|grams|litres|people) (are in|fit in) (a|the) {noun}",
    ),
    "opinion": ("(do you like|what do you think (of|about)|is it good to love|are you for or against) (the |){noun}s", "who is better, {person} or {person}"),
    "other-software": ("(how do I|how to|how can I) (install|update|open|remove|configure|restart|reset) ({nonsense}|my {thing}|Photoshop|Excel|Docker|Windows)", "my {thing} (is broken|does not work|is slow|makes noise)"),
    "trivia": (
        "(what is|what's|what are|explain|describe|tell me about|define|who is|have you heard of) (a |the |){nonsense}",
        "(what is|what are|tell me about|explain|describe|what do you know about) (a |the |){adjective} {noun}(s|)",
        "(what is|what are|tell me about|explain|describe) (a |the |){noun}(s|)",
        "(can|could) you {verb} (a|the|my) {noun}(| for me)",
        "(which|what) {noun} is the most {adjective}(| of all| in {place})",
        "why (do|did|should) {noun}s {verb}( in {place}|)", "how (do|can) I {verb} (a|the|my) {adjective} {noun}",
        "I (need|want|have) (a|to {verb} a|the) {adjective} {noun}", "{adjective} {noun}(s|)", "{nonsense}( {nonsense}|)", "{noun}",
        "where can I (find|get|buy|see) {adjective} {noun}s", "how many {noun}s (are there|exist|live) in {place}",
    ),
}  # fmt: skip
_PARSED: dict[str, tuple[Sequence_, ...]] = {
    category: tuple(parse(p) for p in patterns) for category, patterns in _PATTERNS.items()
}


def nonsense(rng: Random) -> str:
    """A word nobody has ever seen: what the model does not know must look like this to it, too."""
    word = "".join(rng.choice(SYLLABLES) for _ in range(rng.choice((1, 2, 2, 3, 3, 4))))
    return word.capitalize() if rng.random() < 0.5 else word


def _number(rng: Random) -> str:
    return str(rng.randrange(10 ** rng.randint(1, 5)))


_SLOTS: dict[str, Callable[[Random], str]] = {
    "noun": lambda rng: rng.choice(NOUNS),
    "verb": lambda rng: rng.choice(VERBS),
    "adjective": lambda rng: rng.choice(ADJECTIVES),
    "place": lambda rng: rng.choice(PLACES) if rng.random() < 0.8 else nonsense(rng).capitalize(),
    "person": lambda rng: rng.choice(PEOPLE) if rng.random() < 0.7 else f"{nonsense(rng)} {nonsense(rng)}".title(),
    "thing": lambda rng: rng.choice(THINGS),
    "number": _number,
    "letter": lambda rng: rng.choice("xyznk"),
    "nonsense": nonsense,
}


def question(rng: Random) -> tuple[str, str]:
    """(category of the refusal, question)."""
    category = rng.choice(_CATEGORIES)
    text = expand(rng.choice(_PARSED[category]), rng)
    while "{" in text:
        head, _, rest = text.partition("{")
        slot, _, tail = rest.partition("}")
        text = head + _SLOTS[slot](rng) + tail
    return category, text


_CATEGORIES = tuple(c for c in _PATTERNS for _ in range(4 if c == "trivia" else 1))
