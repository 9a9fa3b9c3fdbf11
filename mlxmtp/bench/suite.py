"""Texts that a benchmark runs on: people's own files, and `suites/*.jsonl`, which were written for this project."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, cycle
from pathlib import Path
from typing import Any

from mlxmtp.errors import ContextOverflow, UsageError
from mlxmtp.files import exists, expand_home, is_folder, read_whole

SUITES = ("code", "chat", "summary", "extract", "rewrite", "edit")
"""Those that are meant if none is named: every model answers them."""
PICTURES = "pictures"
"""The suite for models that see; scripts/draw_suite.py has drawn it."""
_FOLDER = Path(__file__).with_name("suites")
_KEYS = frozenset({"prompt", "text", "name", "kind", "system", "image"})
_TRIES = 12  # steps towards a length in tokens; three or four are usual
_NUDGES = 24  # characters to either side tried in the end

Encode = Callable[[Sequence[Mapping[str, Any]]], list[int]]
"""Messages to the token ids of a prompt."""


@dataclass(frozen=True, slots=True)
class Text:
    """A user's message: `image`, `material` and then `prompt`. `kind` groups texts in the report."""

    kind: str
    name: str
    prompt: str
    material: str = ""
    system: str = ""
    image: Path | None = None

    @property
    def content(self) -> str:
        """Material first, instruction last, as `mlxmtp ask` joins them."""
        return f"{self.material}\n\n{self.prompt}" if self.material else self.prompt

    def messages(self, content: str | None = None) -> list[Mapping[str, Any]]:
        """Return the conversation that asks it, with another `content` if one is given."""
        said: Any = self.content if content is None else content
        if self.image is not None:
            said = [{"type": "image", "image": self.image}, {"type": "text", "text": said}]
        user = {"role": "user", "content": said}
        return [{"role": "system", "content": self.system}, user] if self.system else [user]

    def ids(self, encode: Encode, content: str | None = None) -> list[int]:
        """Encode the prompt, with another `content` if one is given."""
        return encode(self.messages(content))


def read_suites(names: Sequence[str], system: str = "") -> list[Text]:
    """Read suites: names of this package's, `.jsonl` files, text files, folders of text files.

    `system` is the system prompt of every text that brings none. Raises UsageError.
    """
    found = list(chain.from_iterable(_suite(name) for name in names))
    seen: set[tuple[str, str]] = set()
    for text in found:
        if (text.kind, text.name) in seen:
            raise UsageError(f"Two texts of the suites are called {text.kind}/{text.name}: give each suite once.")
        seen.add((text.kind, text.name))
    return [replace(text, system=text.system or system) for text in found]


def _suite(name: str) -> Iterator[Text]:
    path = _FOLDER / f"{name}.jsonl" if name in (*SUITES, PICTURES) else expand_home(name)
    if path.suffix == ".jsonl" and not is_folder(path):
        yield from _lines(path)
        return
    if not exists(path):
        raise UsageError(
            f"There is no suite '{name}': take one of {', '.join([*SUITES, PICTURES])}, or a .jsonl or text file."
        )
    files = sorted(item for item in path.iterdir() if item.suffix in (".txt", ".md")) if path.is_dir() else [path]
    if not files:
        raise UsageError(f"There is no .txt or .md file in {path}: a suite is a text file per prompt, or a .jsonl.")
    kind = path.name if path.is_dir() else path.parent.resolve().name
    for file in files:
        if not (content := _read(file).strip()):
            raise UsageError(f"{file} is empty: a text file of a suite holds one prompt.")
        yield Text(kind, file.stem, content)


def _lines(path: Path) -> Iterator[Text]:
    """Yield a text for each line `{"prompt": …}`; `text` (material before it), `name`, `kind` and `system` may come.

    `image`: the path of a picture, from the folder of the suite.
    """
    # Split at "\n" alone: a string of JSON may hold what `splitlines` takes for the end of a line.
    lines = [(number, line) for number, line in enumerate(_read(path).split("\n"), 1) if line.strip()]
    if not lines:
        raise UsageError(f'{path} is empty: a suite has a line {{"prompt": "…"}} for each prompt.')
    for number, line in lines:
        where = f"{path} line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise UsageError(f"{where} is not JSON: each line is an object with the key prompt.") from None
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
            raise UsageError(f"{where} has no text under the key prompt.")
        if unknown := sorted(row.keys() - _KEYS):
            raise UsageError(f"{where} has the unknown key '{unknown[0]}': there are {', '.join(sorted(_KEYS))}.")
        if not all(isinstance(value, str) for value in row.values()):
            raise UsageError(f"{where} must have texts as values.")
        kind, name = row.get("kind") or path.stem, row.get("name") or str(number)
        image = path.parent / row["image"] if row.get("image") else None
        if image is not None and not image.is_file():
            raise UsageError(f"{where} names the image {row['image']}, and there is no {image}.")
        yield Text(kind, name, row["prompt"], row.get("text", ""), row.get("system", ""), image)


def _read(path: Path) -> str:
    try:
        return read_whole(path).decode("utf-8-sig").replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UsageError(f"{path} cannot be read: {reason}.") from None


def to_length(text: Text, others: Sequence[Text], tokens: int, encode: Encode) -> list[int]:
    """Encode `text` as a prompt of `tokens` tokens: with the `others` in front of it, or cut at its beginning.

    A few tokens less where no cut gives exactly that many. Raises ContextOverflow where the template alone is longer.
    """
    frame = len(text.ids(encode, "a"))
    if frame > tokens:
        raise ContextOverflow(f"A prompt of {tokens} tokens is too short: the chat template alone takes {frame}.")
    whole = text.content
    if len(text.ids(encode)) < tokens:
        # The others in turns, the first nearest to the text. No token has more than 8 characters on average.
        front = cycle([other.content for other in others if other.name != text.name] or [text.content])
        needed = len(whole) + 8 * tokens
        while len(whole) < needed:
            whole = f"{next(front)}\n\n{whole}"

    def ids(characters: int) -> list[int]:
        return text.ids(encode, whole[-characters:])

    best, at = ids(1), 1
    guess = min(len(whole), 4 * tokens)
    for _ in range(_TRIES):
        found = ids(guess)
        if len(best) < len(found) <= tokens:
            best, at = found, guess
        if len(found) == tokens or guess == at + 1:
            break
        pace = guess / max(len(found) - frame + 1, 1)  # characters per token here
        step = (tokens - len(found)) * pace
        guess = max(1, min(len(whole), guess + (round(step) or (1 if step > 0 else -1))))
    for nudge in (sign * by for by in range(1, _NUDGES) for sign in (1, -1)):
        if len(best) == tokens:
            break
        found = ids(max(1, min(len(whole), at + nudge)))
        best = found if len(best) < len(found) <= tokens else best
    return best
