"""KV caches on disk, of prompt prefixes (`--cache`) and conversations (`--keep-cache`); a bad one only costs time."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlxmtp.chat.conversation import Conversation
from mlxmtp.chat.history import Exchange
from mlxmtp.chat.sessions import CACHE_SUFFIX
from mlxmtp.engine.model import Model
from mlxmtp.engine.tokenizer import Message, Tokenizer, Tool
from mlxmtp.errors import CacheRefused
from mlxmtp.settings import Loaded
from mlxmtp.units import format_bytes

if TYPE_CHECKING:
    from mlxmtp.app.worker import Worker  # which imports logging, for a command without threads

SHORTEST = 256  # tokens from which a text is worth a file: the prefill of fewer takes less time than reading one
_GB = 20.0  # the limit if nobody sets one: 100 pages take 0.3 GB with E2B and some 5 GB with 31B
_OTHER_QUESTIONS = ("?", "A", "9.")  # which begin differently, also as tokens
_NAME = re.compile(r"(?P<model>[0-9a-f]{16})-(?P<tokens>\d+)-(?P<hash>[0-9a-f]{32})\.safetensors")
_STOP_SECONDS = 3.0  # in which a model must hear that its answer is over


@dataclass(frozen=True, slots=True)
class PromptCache:
    """KV caches of prompt prefixes in `folder`, named by all that must be equal; beyond `limit` bytes the oldest go."""

    folder: Path
    limit: int

    @classmethod
    def of(cls, loaded: Loaded) -> PromptCache:
        limit = loaded.settings.cache_gb
        return cls(loaded.places.cache / "prompts", int((_GB if limit is None else limit) * 1e9))

    def load(self, model: Model, ids: Sequence[int], beyond: int = 0) -> tuple[int, str | None]:
        """Load the longest stored prefix that leaves a token; return its length, and why a longer one failed.

        Those of `beyond` tokens and less are not looked at.
        """
        try:
            names = list(filter(None, (_NAME.fullmatch(path.name) for path in self.folder.iterdir())))
        except OSError:
            names = []
        label = model.cache_label()[:16]
        lengths = {int(name["tokens"]) for name in names if name["model"] == label}
        digest, begin, found, note = hashlib.sha256(), 0, [], None
        for length in sorted(length for length in lengths if beyond < length < len(ids)):  # the prompt is hashed once
            digest.update(_bytes(ids[begin:length]))
            begin = length
            found.append((length, self._path(model, length, digest.hexdigest())))
        for length, path in reversed(found):
            if not path.is_file():
                continue
            try:
                model.load_cache(path)
            except CacheRefused as refused:
                note = note or str(refused)
                continue
            with suppress(OSError):  # one that another process has just removed has served all the same
                os.utime(path)
            return length, note
        return 0, note

    def save(self, model: Model, ids: Sequence[int]) -> str | None:
        """Store `ids`, for which `model` has a snapshot, if they are worth it; returns why that failed."""
        if len(ids) < SHORTEST:
            return None
        path = self._path(model, len(ids), hashlib.sha256(_bytes(ids)).hexdigest())
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            size = model.save_cache(path, len(ids))
        except (OSError, RuntimeError) as error:
            return f"The text could not be kept in {self.folder} ({_reason(error)}): it will be read again next time."
        self._evict(path)
        if size > self.limit:  # not `is_file`: another process may have removed it
            return f"The text is larger than the {self.limit / 1e9:g} GB of cache_gb: it will be read again next time."
        return None

    def extend(self, model: Model, ids: Sequence[int]) -> None:
        """Load what is stored of `ids` into a model that holds several texts, if it saves reading."""
        self.load(model, ids, model.reusable(ids) + SHORTEST)

    def keep(self, model: Model) -> None:
        """Store the beginnings of the texts that `model` holds, as far as there is room, of the last one first."""
        found: list[Path] = []

        def path_of(ids: Sequence[int]) -> Path | None:
            if len(ids) < SHORTEST:
                return None
            found.append(self._path(model, len(ids), hashlib.sha256(_bytes(ids)).hexdigest()))
            return None if found[-1].is_file() else found[-1]

        with suppress(OSError, RuntimeError):  # they will be read again then
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                model.save_beginnings(path_of, self.limit)
            finally:
                for path in reversed(found):
                    with suppress(OSError):  # left out, or another process has removed it
                        os.utime(path)  # the last text goes last
                self._evict(found[0] if found else self.folder)

    def remove_unfinished(self) -> None:
        """Remove the file that `keep` is writing on another thread, which ends with the process."""
        from mlxmtp.engine import kv_file

        for path in self.folder.glob(kv_file.unfinished(self.folder / "*").name):
            with suppress(OSError):
                path.unlink()

    def _path(self, model: Model, length: int, digest: str) -> Path:
        return self.folder / f"{model.cache_label()[:16]}-{length}-{digest[:32]}.safetensors"

    def _evict(self, newest: Path) -> None:
        """Remove what has not served for longest; another process may do the same at the same time."""
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


def _reason(error: OSError | RuntimeError) -> object:
    """Return why a file could not be written, without its name, which says nothing to a person."""
    return getattr(error, "strerror", None) or error


def _bytes(ids: Sequence[int]) -> bytes:
    return b"".join(token.to_bytes(4, "little", signed=True) for token in ids)


def prefix_before_question(
    tokenizer: Tokenizer,
    conversation: Conversation,
    asking: Exchange,
    think: bool,
    prepared: Callable[[Sequence[Message]], Sequence[Message]],
    tools: Sequence[Tool] = (),
) -> int:
    """Return how many tokens of the prompt stay the same whatever is asked; `prepared`: messages with their media."""
    prompts = [
        tokenizer.prompt_ids(
            prepared(conversation.messages(replace(asking, question=question))), think=think, tools=tools
        )
        for question in (asking.question, *_OTHER_QUESTIONS)
    ]
    alike = (len(set(column)) == 1 for column in zip(*prompts, strict=False))
    return next((i for i, same in enumerate(alike) if not same), 0)


class SessionCache:
    """The KV cache of a conversation, in a file beside its session."""

    def __init__(self, worker: Worker, sessions: Path) -> None:
        self._worker, self._sessions = worker, sessions
        self._met: Conversation | None = None  # the one that the model has been with since it is there

    def forget(self) -> None:
        self._met = None

    def load(self, conversation: Conversation) -> str | None:
        """Load the file, once for each model and each conversation; returns a remark."""
        if self._met is conversation:
            return None
        self._met = conversation
        path = self._path(conversation)
        if path is None or not path.is_file():
            return None
        try:
            tokens = self._worker.run(lambda opened: opened.model.load_cache(path))
        except CacheRefused as error:
            return str(error)
        return f"{tokens:,} tokens of this conversation are in memory again."

    def save(self, conversation: Conversation, on_write: Callable[[], None] = lambda: None) -> str | None:
        """Write what the model holds of a conversation that ends, return a remark. Raises CacheRefused."""
        path = self._path(conversation)
        if path is None or self._worker.model is None or not conversation.exchanges or self._met is not conversation:
            return None  # what is stored of a conversation that was only looked at is better
        self._worker.stop()
        if not self._worker.idle(_STOP_SECONDS):  # Ctrl+C after Ctrl+C has ended the conversation, not the model
            return "The model does not react: keys and values were not kept."
        from mlxmtp.engine import kv_file

        on_write()
        try:
            size = self._worker.run(lambda opened: opened.model.save_cache(path))
            kv_file.sweep(path.parent)
        except ValueError:  # nothing was prefilled: the file before it, if there is one, is better
            return None
        except (OSError, RuntimeError) as error:  # MLX tells of a full disk by the latter
            raise CacheRefused(f"Keys and values were not kept: {_reason(error)}.") from error
        except KeyboardInterrupt:  # the thread that writes ends with the process, wherever it is
            kv_file.unfinished(path).unlink(missing_ok=True)
            raise
        return f"Kept keys and values ({format_bytes(size)}): {path}"

    def _path(self, conversation: Conversation) -> Path | None:
        session = conversation.session
        return None if session is None else self._sessions / f"{session}{CACHE_SUFFIX}"
