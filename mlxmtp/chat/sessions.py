"""The folder of saved conversations: `ID.jsonl`, and `ID.kv.safetensors` for a KV cache saved beside it."""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from mlxmtp.chat.conversation import Conversation
from mlxmtp.chat.history import History
from mlxmtp.chat.journal import SUFFIX, Journal, damaged_lines, delete, media_folder, read_events
from mlxmtp.errors import MlxmtpError, SessionError, SessionInUse, UsageError
from mlxmtp.units import nearest

CACHE_SUFFIX = ".kv.safetensors"
NOTHING_TO_CONTINUE = "There is no session to continue: mlxmtp chat saves one, and so does mlxmtp ask --save."
_LIST = "Run: mlxmtp sessions"
_ANSWERS = re.compile(rb'(?m)^\{"type": "(?:part|reply|extend|retract|message", "role": "(?:assistant|tool))".*\n')


@dataclass(frozen=True, slots=True)
class Summary:
    """One session in a list. Times are seconds since 1970, `turns` are questions, `size` is bytes on disk."""

    id: str
    path: Path
    name: str | None
    title: str
    model: str
    created: float
    updated: float
    turns: int
    size: int


@dataclass(frozen=True, slots=True)
class Listing:
    """Sessions, newest first, and a sentence about each file that is none."""

    sessions: tuple[Summary, ...]
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Resumed:
    """A conversation that goes on, and what the user should know about it, one sentence each."""

    conversation: Conversation
    remarks: tuple[str, ...] = ()


class Sessions:
    """Saved conversations in `folder`, which need not exist."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def create(self, model: str = "") -> Journal:
        """Return the journal of a new conversation; its file appears with the first question."""
        return Journal.new(self.folder, model)

    def listing(self) -> Listing:
        """Return every session, newest first."""
        remarks: list[str] = []
        found = [one for path in self._files() if (one := _summary(path, remarks.append)) is not None]
        found.sort(key=lambda one: (one.updated, one.id), reverse=True)
        return Listing(tuple(found), tuple(remarks))

    def latest(self, tell: Callable[[str], object] = lambda _: None) -> Summary:
        """Return the session that was last written to (UsageError: none); `tell` hears of files that are damaged."""

        def modified(path: Path) -> float:
            with suppress(OSError):  # removed since the folder was read
                return path.stat().st_mtime
            return 0.0

        for path in sorted(self._files(), key=modified, reverse=True):
            if (summary := _summary(path, tell)) is not None:
                return summary
        raise UsageError(NOTHING_TO_CONTINUE)

    def find(self, wanted: str, *, list_with: str = _LIST) -> Summary:
        """Return the session with that name, id, or beginning of an id. Raises UsageError with the nearest ones.

        `list_with`: the next step where none is near. Raises SessionError or MlxmtpError for a file that has the id but
        cannot be gone on with.
        """
        match = self._match(wanted, list_with)
        if isinstance(match, Summary):
            return match
        try:
            if (summary := summarize(match)) is not None:
                return summary
        except OSError as error:
            raise MlxmtpError(f"{match} cannot be read: {error.strerror or error}.") from error
        name = _id_of(match)
        raise UsageError(f"Session {name} has no questions left. To delete it: mlxmtp sessions rm {name}")

    def find_any(self, wanted: str) -> Summary:
        """As `find`, but by its whole id also a file that cannot be read or in which nothing is asked: to remove it."""
        match = self._match(wanted)
        if isinstance(match, Summary):
            return match
        try:
            summarize(match)
            title = "(nothing asked)"
        except (SessionError, OSError):
            title = "(cannot be read)"
        try:
            status = match.lstat()
        except OSError as error:
            raise UsageError(f"Session {_id_of(match)} has been removed already.") from error
        times = status.st_mtime, status.st_mtime
        return Summary(_id_of(match), match, None, title, "", *times, 0, _size(match, status))

    def open(self, summary: Summary) -> Resumed:
        """Go on with a session in its own file, in a copy if it is open elsewhere. Raises SessionError, MlxmtpError."""
        remarks: tuple[str, ...] = ()
        with _as_sentences(summary, "has been removed", f"{summary.path} cannot be opened"):
            try:
                journal, events = Journal.reopen(summary.path)
            except SessionInUse:
                journal, events = Journal.fork(summary.path)
                remarks = (f"Session {summary.id} is open in another window, so this goes on in a copy, {journal.id}.",)
            remarks += _damage(summary, summary.path.read_bytes())
        return Resumed(Conversation.restore(events, journal), remarks)

    def read(self, summary: Summary) -> Resumed:
        """Return a session without claiming it: what follows is not saved. Raises as `open`."""
        with _as_sentences(summary, "has been removed", f"{summary.path} cannot be read"):
            data = summary.path.read_bytes()
            return Resumed(
                Conversation.restore(read_events(data, summary.path), session=summary.path), _damage(summary, data)
            )

    def check_name(self, name: str, own_id: str) -> str:
        """Return `name`, trimmed, if the session `own_id` can have it. Raises UsageError."""
        name = name.strip()
        if not name or len(name) > 60 or not name.isprintable():
            raise UsageError("A session's name is one line of at most 60 characters.")
        for other in self.listing().sessions:
            if other.id != own_id and name in (other.name, other.id):
                raise UsageError(f"'{name}' is session {other.id} already: take another name.")
        return name

    def remove(self, summary: Summary) -> int:
        """Delete a session and its KV cache; return the bytes freed. Raises MlxmtpError (SessionInUse)."""
        with _as_sentences(summary, "has been removed already", f"Session {summary.id} cannot be removed"):
            try:
                delete(summary.path)
            except SessionInUse as error:
                raise SessionInUse(f"Session {summary.id} is open in another window: close it there first.") from error
            _cache_of(summary.path).unlink(missing_ok=True)
            shutil.rmtree(media_folder(summary.path), ignore_errors=True)
        return summary.size

    def _match(self, wanted: str, list_with: str = _LIST) -> Summary | Path:
        """Return the session that is meant, or the file that has exactly that id but is in no list."""
        sessions = self.listing().sessions
        named = [one for one in sessions if one.name == wanted]
        whole = [path for path in self._files() if _id_of(path) == wanted]
        if whole and not named:
            return next((one for one in sessions if one.id == wanted), whole[0])
        for matches in (named, [one for one in sessions if wanted and one.id.startswith(wanted)]):
            if len(matches) == 1:
                return matches[0]
            if matches:
                ids = ", ".join(one.id for one in matches[:5])
                raise UsageError(f"'{wanted}' fits {len(matches)} sessions ({ids}): give more of the id.")
        near = nearest(wanted, [name for one in sessions for name in (one.id, one.name) if name])
        hint = f": did you mean '{near}'?" if near else f". {list_with}"
        raise UsageError(f"There is no session '{wanted}'{hint}")

    def _files(self) -> Iterator[Path]:
        with suppress(FileNotFoundError, NotADirectoryError):
            yield from (path for path in self.folder.iterdir() if path.name.endswith(SUFFIX))


def summarize(path: Path) -> Summary | None:
    """Return the list's entry for a session file; None if nothing is asked in it. Raises SessionError, OSError."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # opening a named pipe would wait for whoever writes into it
        raise SessionError(f"{path.name} is not a session of mlxmtp.")
    events = read_events(_ANSWERS.sub(b"", path.read_bytes()), path)  # most of a file, and no news to a list
    history = History()
    for event in events:
        history = history.after(event)
    if not history.turns:
        return None
    created = status.st_mtime
    with suppress(ValueError):
        created = datetime.fromisoformat(str(events[0].get("created"))).timestamp()
    about = (history.name, history.title, history.model, created, status.st_mtime, len(history.turns))
    return Summary(_id_of(path), path, *about, _size(path, status))


def _summary(path: Path, tell: Callable[[str], object]) -> Summary | None:
    """As `summarize`, but a file that cannot be read is a sentence for `tell`."""
    try:
        return summarize(path)
    except (SessionError, OSError) as error:
        tell(f"{path.name}: {error.strerror}." if isinstance(error, OSError) else str(error))
    return None


@contextmanager
def _as_sentences(summary: Summary, gone: str, refused: str) -> Iterator[None]:
    """Raise UsageError for a session that is not there, MlxmtpError for other refusals of the system."""
    try:
        yield
    except FileNotFoundError as error:
        raise UsageError(f"Session {summary.id} {gone}.") from error
    except OSError as error:
        raise MlxmtpError(f"{refused}: {error.strerror or error}.") from error


def _damage(summary: Summary, data: bytes) -> tuple[str, ...]:
    """Return a remark about lines of a session's file that cannot be read, if there are any."""
    if not (lines := damaged_lines(data)):
        return ()
    what = "One line" if lines == 1 else f"{lines:,} lines"
    return (f"{what} of session {summary.id} cannot be read, so what stood there is missing ({summary.path}).",)


def _id_of(path: Path) -> str:
    return path.name.removesuffix(SUFFIX)


def _cache_of(path: Path) -> Path:
    return path.with_name(f"{_id_of(path)}{CACHE_SUFFIX}")


def _size(path: Path, status: os.stat_result) -> int:
    """Return the bytes of a session, of its KV cache, and of its images and audio."""
    beside = [_cache_of(path), *media_folder(path).glob("*")]
    return status.st_size + sum(file.stat().st_size for file in beside if file.exists())
