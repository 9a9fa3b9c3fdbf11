"""Readings: keys and values of texts that were read before, kept on disk, so that a question on one reads only itself.

One file per text (`kv_file.py` writes and checks it), named after what must be the same for it to serve: checkpoint,
MLX, the layout, the number of tokens and a hash of them. The longest stored beginning of a prompt is found by hashing
the prompt once. Files that have not served for longest go when all together are larger than the limit. Anything wrong
with a file costs the time to read the text, and nothing else.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlxmtp.engine.model import Model
from mlxmtp.errors import CacheRefused

if TYPE_CHECKING:
    from mlxmtp.chat.conversation import Conversation
    from mlxmtp.chat.history import Exchange
    from mlxmtp.engine.model import Model
    from mlxmtp.engine.tokenizer import Tokenizer
    from mlxmtp.settings import Loaded


SHORTEST = 256
"""Tokens from which keeping a text is worth a file: fewer are read in less time than a file is."""

_NAME = re.compile(r"(?P<model>[0-9a-f]{16})-(?P<tokens>\d+)-(?P<hash>[0-9a-f]{32})\.safetensors")


@dataclass(frozen=True, slots=True)
class Readings:
    """The readings in `folder` (it need not exist), at most `limit` bytes of them."""

    folder: Path
    limit: int

    def recall(self, model: Model, ids: Sequence[int]) -> tuple[int, str | None]:
        """Takes up the longest beginning of `ids` that is kept and leaves a token to be read: its length, and what was
        wrong with a longer one that did not serve."""
        note = None
        for length, path in self._candidates(model, ids):
            try:
                model.load_cache(path)
            except CacheRefused as refused:
                note = note or str(refused)
                continue
            _touch(path)
            return length, note
        return 0, note

    def keep(self, model: Model, ids: Sequence[int]) -> str | None:
        """Keeps `ids`, read by `model` with `snapshot_at=[len(ids)]`, if they are worth it; returns why that failed."""
        if len(ids) < SHORTEST:
            return None
        path = self._path(model, len(ids), _digest(ids).hexdigest())
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            model.save_cache(path, len(ids))
        except (OSError, RuntimeError) as error:
            return f"The text could not be kept in {self.folder} ({error}): it will be read again next time."
        self._make_room(path)
        if not path.is_file():
            return f"The text is larger than the {self.limit / 1e9:g} GB of cache_gb: it will be read again next time."
        return None

    def _path(self, model: Model, length: int, digest: str) -> Path:
        return self.folder / f"{model.cache_label()[:16]}-{length}-{digest[:32]}.safetensors"

    def _candidates(self, model: Model, ids: Sequence[int]) -> Iterator[tuple[int, Path]]:
        """Kept beginnings of `ids`, longest first."""
        label = model.cache_label()[:16]
        lengths = {int(name["tokens"]) for name in self._names() if name["model"] == label}
        digest, begin, found = _digest([]), 0, []
        for length in sorted(length for length in lengths if length < len(ids)):
            digest.update(_bytes(ids[begin:length]))
            begin = length
            path = self._path(model, length, digest.hexdigest())
            if path.is_file():
                found.append((length, path))
        return reversed(found)

    def _names(self) -> Iterator[re.Match[str]]:
        try:
            names = [path.name for path in self.folder.iterdir()]
        except OSError:
            return iter(())
        return filter(None, map(_NAME.fullmatch, names))

    def _make_room(self, newest: Path) -> None:
        """Removes what has not served for longest; another process may do the same at the same time."""
        from mlxmtp.engine import kv_file

        kv_file.sweep(self.folder)
        files, total = [], 0
        for path in self.folder.iterdir():
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            if _NAME.fullmatch(path.name):  # nothing else in this folder is ours to remove
                hopeless = status.st_size > self.limit  # goes first: it would drive out all others, and then itself
                files.append((not hopeless, path == newest, status.st_mtime_ns, status.st_size, path))
                total += status.st_size
        for *_, size, path in sorted(files):
            if total <= self.limit:
                return
            path.unlink(missing_ok=True)
            total -= size


def _digest(ids: Sequence[int]) -> hashlib._Hash:
    return hashlib.sha256(_bytes(ids))


def _bytes(ids: Sequence[int]) -> bytes:
    return b"".join(token.to_bytes(4, "little") for token in ids)


def _touch(path: Path) -> None:
    """Marks the file as used now; one that another process has just removed has served all the same."""
    try:
        os.utime(path)
    except OSError:
        return


_GB = 20.0
"""What may be kept if nobody says otherwise: 100 pages take 0.3 GB with E2B and some 5 GB with 31B."""

_OTHER = ("?", "A", "9.")  # questions that begin differently, also as tokens


class Repeated:
    """The part of one prompt that comes before the question, taken from disk where it is and kept there afterwards."""

    def __init__(
        self, loaded: Loaded, tell: Callable[[str], None], model: Model, ids: Sequence[int], before: int
    ) -> None:
        """`before`: how many of the prompt's `ids` do not depend on the question."""

        limit = loaded.settings.cache_gb
        self._readings = Readings(loaded.places.cache / "prompts", int((_GB if limit is None else limit) * 1e9))
        self._tell, self._model, self._text, self._ids = tell, model, ids[:before], ids
        self._held = 0

    def recall(self) -> None:
        """Take from disk what is there, before the prompt is read."""
        self._held, note = self._readings.recall(self._model, self._ids)
        if note is not None:
            self._tell(note)

    def keep(self) -> None:
        """Write what was read, when the answer is there."""
        if self._held >= len(self._text):
            return
        note = self._readings.keep(self._model, self._text)
        if note is not None:
            self._tell(note)


def before_question(tokenizer: Tokenizer, conversation: Conversation, asking: Exchange, think: bool) -> int:
    """How many tokens of the prompt stay the same whatever is asked."""
    prompts = [
        tokenizer.prompt_ids(conversation.messages(replace(asking, question=question)), think=think)
        for question in (asking.question, *_OTHER)
    ]
    alike = (len(set(column)) == 1 for column in zip(*prompts, strict=False))
    return next((i for i, same in enumerate(alike) if not same), 0)
