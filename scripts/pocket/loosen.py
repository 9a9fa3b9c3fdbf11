"""Other words for the same question: everyday synonyms, other openings, dropped and swapped words.

The corpus gives each question a few dozen forms; people use more. What is left of a question after this is often bad
English, but it still says what is asked, and the model learns which words matter.
"""

from __future__ import annotations

import re
from random import Random

_GROUPS = tuple(
    tuple(group.split("/"))
    for group in """show/display/print/present/see/view/look at
remove/delete/erase/get rid of/throw away/drop
quit/exit/leave/close/end/get out of
stop/halt/interrupt/cancel/abort
fast/quick/speedy/rapid
slow/sluggish
big/large/huge
small/little/tiny
choose/pick/select/decide on
get/obtain/fetch/have
turn off/switch off/disable/deactivate/get rid of/not use
turn on/switch on/enable/activate/use
answer/reply/response/output
question/prompt/query
machine/computer/laptop/Mac/hardware
folder/directory/place
file/document/text file
start/begin/launch/open/run
continue/resume/go on with/carry on with/pick up
explain/describe/tell me about/say something about/define
memory/RAM
save/store/keep/write
change/alter/modify/adjust
set/specify/define/give/choose
allow/let/permit
need/require/want
difference/distinction
mean/stand for/signify/say
limit/cap/restrict
several/multiple/many/more than one
last/latest/previous/most recent
fix/repair/solve
error/problem/failure/trouble/mistake
make/create/produce/build
happens/occurs/goes on
check/verify/test/inspect/find out
find/locate/look up/discover
possible/doable/feasible
model/network
command/subcommand
flag/option/switch/parameter
conversation/chat/dialogue
settings/configuration/preferences
size/bytes/space
number/amount/count
often/frequently
always/every time
whole/entire/complete
without/with no
instead of/rather than
help/assist/support
purpose/point/use/job
write/type/put/enter
know/understand/learn
faster/quicker/speedier
better/nicer/stronger
measure/test/time
compare/contrast
add/append/attach/include
send/pass/pipe/feed
terminal/shell/console/command line
thinking/reasoning/thoughts
randomness/creativity/variation
identical/the same/equal
wrong/incorrect/broken
works/functions/behaves""".splitlines()
)
_SWAPS = {word: tuple(w for w in group if w != word) for group in _GROUPS for word in group}
_KNOWN = re.compile(r"\b(" + "|".join(sorted(map(re.escape, _SWAPS), key=len, reverse=True)) + r")\b")
_WANTS = (
    "how do I ", "how can I ", "how would I ", "what is the way to ", "is there a way to ", "I want to ",
    "I'd like to ",
    "which command lets me ", "what do I type to ", "how does one ", "can I ", "I need to ", "I am trying to ",
    "what should I do to ", "what would I use to ", "is it possible to ", "tell me how to ", "how to ",
    "show me how to ", "any way to ", "what lets me ", "how could somebody ", "what is the trick to ",
    "which option do I need to ",
)  # fmt: skip
_OPENING = re.compile(
    "^(" + "|".join(re.escape(want) for want in sorted(_WANTS, key=len, reverse=True)) + ")", re.IGNORECASE
)
_SMALL = frozenset(
    """a an the of is are do does did i to can could my me in it for that this be with on at would should will and
    there have has which what how you your its these those or so from""".split()
)
_ASIDES_BEFORE = (
    "I just installed it. ", "I read the page but still wonder: ", "a colleague asks: ", "for a script of mine: ",
    "I forgot. ", "not sure I understand this. ", "hm, ", "maybe a silly question, ", "my friend wants to know: ",
    "I have tried a few things. ", "something I never understood: ", "before I start, ", "one thing: ", "say, ",
    "suppose I work on a Mac, ", "it is late and I forget: ", "remind me: ", "now ", "then ", "in general, ",
)  # fmt: skip
_ASIDES_AFTER = (
    ". Any idea?", ". What do I type?", ". How?", ". Which one?", ". Is that possible?", ". Can it do that?",
    ". What now?", ", is that so?", ", or not?", ". I could not find it", ". Where is that?", ". Please explain",
    ", if at all", ". Help",
)  # fmt: skip


def loosen(text: str, rng: Random) -> str:
    """`text` in other words, by chance; often unchanged."""
    if rng.random() < 0.5:
        text = _synonyms(text, rng)
    if rng.random() < 0.35:
        text = _OPENING.sub(lambda _: rng.choice(_WANTS), text)
    if rng.random() < 0.25:
        text = _fewer(text, rng)
    draw = rng.random()
    if draw < 0.08:
        text = rng.choice(_ASIDES_BEFORE) + text
    elif draw < 0.14:
        text = text.rstrip("?.! ") + rng.choice(_ASIDES_AFTER)
    return text


def _synonyms(text: str, rng: Random) -> str:
    def swap(match: re.Match[str]) -> str:
        return rng.choice(_SWAPS[match[1]]) if rng.random() < 0.4 else match[1]

    return _KNOWN.sub(swap, text)


def _fewer(text: str, rng: Random) -> str:
    """Leave out small words, and let two neighbours change places."""
    words = [word for word in text.split(" ") if word.lower() not in _SMALL or rng.random() < 0.55]
    if len(words) > 3 and rng.random() < 0.4:
        i = rng.randrange(len(words) - 1)
        words[i], words[i + 1] = words[i + 1], words[i]
    return " ".join(words) or text
