"""The folder of saved conversations: `ID.jsonl`, and `ID.kv.safetensors` where keys and values were kept beside it."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from mlxmtp.chat.conversation import Conversation, title
from mlxmtp.chat.history import Event, History
from mlxmtp.chat.journal import SUFFIX, Journal, delete, read_events
from mlxmtp.errors import MlxmtpError, SessionError, SessionInUse, UsageError
from mlxmtp.units import nearest

CACHE_SUFFIX = ".kv.safetensors"

NOTHING_TO_CONTINUE = "There is no session to continue: mlxmtp chat saves one, and so does mlxmtp ask --save."

_ANSWERS = re.compile(rb'^\{"type": "(?:part|reply|extend|retract)".*\n', re.MULTILINE)

_LIST = "Run: mlxmtp sessions"


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

    @property
    def cache(self) -> Path:
        """Where keys and values of the session are, if they were kept."""
        return self.path.with_name(f"{self.id}{CACHE_SUFFIX}")


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
        """The journal of a new conversation; its file appears with the first question.

        The model can be said later, with `Conversation.use_model`.
        """
        return Journal.new(self.folder, model)

    def listing(self) -> Listing:
        """Every session, newest first."""
        found: list[Summary] = []
        remarks: list[str] = []
        for path in self._files():
            try:
                summary = summarize(path)
            except (SessionError, OSError) as error:
                remarks.append(_remark(path, error))
                continue
            if summary is not None:
                found.append(summary)
        found.sort(key=lambda one: (one.updated, one.id), reverse=True)
        return Listing(tuple(found), tuple(remarks))

    def latest(self, tell: Callable[[str], object] = lambda _: None) -> Summary:
        """The session that was last written to. Raises UsageError if there is none.

        `tell` hears of each file that was written to later but cannot be read, one sentence.
        """
        for path in sorted(self._files(), key=_modified, reverse=True):
            try:
                summary = summarize(path)
            except (SessionError, OSError) as error:
                tell(_remark(path, error))
                continue
            if summary is not None:
                return summary
        raise UsageError(NOTHING_TO_CONTINUE)

    def find(self, wanted: str, *, list_with: str = _LIST) -> Summary:
        """The session with that name, id, or beginning of an id. Raises UsageError with the nearest ones.

        `list_with`: the next step where none is near.
        Where the id is that of a file that cannot be gone on with, raises what is wrong with it.
        """
        match = self._match(wanted, list_with)
        return match if isinstance(match, Summary) else _readable(match)

    def find_any(self, wanted: str) -> Summary:
        """As `find`, but by its whole id also a file that cannot be read or in which nothing is asked: to remove it."""
        match = self._match(wanted)
        return match if isinstance(match, Summary) else _unlisted(match)

    def open(self, summary: Summary) -> Resumed:
        """Continue a session in its own file, or in a copy if another window has it open.

        Raises UsageError if it has been removed meanwhile, SessionError, MlxmtpError if it cannot be read.
        """
        remarks: tuple[str, ...] = ()
        try:
            try:
                journal, events = Journal.reopen(summary.path)
            except SessionInUse:
                journal, events = Journal.fork(summary.path)
                remarks = (f"Session {summary.id} is open in another window, so this goes on in a copy, {journal.id}.",)
        except FileNotFoundError as error:
            raise UsageError(f"Session {summary.id} has been removed.") from error
        except OSError as error:
            raise MlxmtpError(f"{summary.path} cannot be opened: {error.strerror or error}.") from error
        return Resumed(Conversation.restore(events, journal), remarks)

    def history(self, summary: Summary) -> History:
        """What was said in a session. Raises as `open`."""
        return self.read(summary).history

    def read(self, summary: Summary) -> Conversation:
        """A session without claiming it: what follows is not kept. Raises as `open`."""
        try:
            return Conversation.restore(read_events(summary.path.read_bytes(), summary.path))
        except FileNotFoundError as error:
            raise UsageError(f"Session {summary.id} has been removed.") from error
        except OSError as error:
            raise MlxmtpError(f"{summary.path} cannot be read: {error.strerror or error}.") from error

    def check_name(self, name: str, own_id: str) -> str:
        """`name`, trimmed, if the session `own_id` can have it. Raises UsageError."""
        name = name.strip()
        if not name or len(name) > 60 or not name.isprintable():
            raise UsageError("A session's name is one line of at most 60 characters.")
        for other in self.listing().sessions:
            if other.id != own_id and name in (other.name, other.id):
                raise UsageError(f"'{name}' is session {other.id} already: take another name.")
        return name

    def remove(self, summary: Summary) -> int:
        """Delete a session and what is kept beside it; returns the bytes freed. Raises MlxmtpError (SessionInUse)."""
        try:
            delete(summary.path)
            summary.cache.unlink(missing_ok=True)
        except SessionInUse as error:
            raise SessionInUse(f"Session {summary.id} is open in another window: leave it there first.") from error
        except FileNotFoundError as error:
            raise UsageError(f"Session {summary.id} has been removed already.") from error
        except OSError as error:
            raise MlxmtpError(f"Session {summary.id} cannot be removed: {error.strerror or error}.") from error
        return summary.size

    def _match(self, wanted: str, list_with: str = _LIST) -> Summary | Path:
        """The session that is meant, or the file that has exactly that id but is in no list."""
        sessions = self.listing().sessions
        named = [one for one in sessions if one.name == wanted]
        whole = [path for path in self._files() if path.name == f"{wanted}{SUFFIX}"]
        if whole and not named:
            return next((one for one in sessions if one.id == wanted), whole[0])
        for matches in (named, [one for one in sessions if wanted and one.id.startswith(wanted)]):
            if len(matches) == 1:
                return matches[0]
            if matches:
                ids = ", ".join(one.id for one in matches[:5])
                raise UsageError(f"'{wanted}' fits {len(matches)} sessions ({ids}): give more of the id.")
        raise UsageError(f"There is no session '{wanted}'{_suggestion(wanted, sessions, list_with)}")

    def _files(self) -> Iterator[Path]:
        try:
            yield from (path for path in self.folder.iterdir() if path.name.endswith(SUFFIX))
        except (FileNotFoundError, NotADirectoryError):
            return


def summarize(path: Path) -> Summary | None:
    """What a list says of a session file; None for one in which nothing was asked. Raises SessionError, OSError."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # opening a named pipe would wait for whoever writes into it
        raise SessionError(f"{path.name} is not a session of mlxmtp.")
    events = read_events(_ANSWERS.sub(b"", path.read_bytes()), path)  # most of a file, and no news to a list
    history = History()
    for event in events:
        history = history.after(event)
    if not (history.exchanges or history.dropped):
        return None
    return Summary(
        id=path.name.removesuffix(SUFFIX),
        path=path,
        name=history.name,
        title=title(history),
        model=history.model,
        created=_created(events[0], status.st_mtime),
        updated=status.st_mtime,
        turns=len(history.dropped + history.exchanges),
        size=_size(path, status),
    )


def _readable(path: Path) -> Summary:
    """What a list says of a file, or why it says nothing. Raises MlxmtpError (SessionError, UsageError)."""
    try:
        summary = summarize(path)
    except OSError as error:
        raise MlxmtpError(f"{path} cannot be read: {error.strerror or error}.") from error
    if summary is None:
        name = path.name.removesuffix(SUFFIX)
        raise UsageError(f"Nothing is asked in session {name} any more. To delete it: mlxmtp sessions rm {name}")
    return summary


def _unlisted(path: Path) -> Summary:
    """What is known of a file without reading it. Raises UsageError for one that is gone."""
    try:
        summarize(path)
        said = "(nothing asked)"
    except (SessionError, OSError):
        said = "(cannot be read)"
    name = path.name.removesuffix(SUFFIX)
    try:
        status = path.lstat()
    except OSError as error:
        raise UsageError(f"Session {name} has been removed already.") from error
    return Summary(name, path, None, said, "", status.st_mtime, status.st_mtime, 0, _size(path, status))


def _size(path: Path, status: os.stat_result) -> int:
    """Bytes of a session and of what is kept beside it."""
    beside = path.with_name(f"{path.name.removesuffix(SUFFIX)}{CACHE_SUFFIX}")
    return status.st_size + (beside.stat().st_size if beside.exists() else 0)


def _remark(path: Path, error: SessionError | OSError) -> str:
    return str(error) if isinstance(error, SessionError) else f"{path.name}: {error.strerror}."


def _created(header: Event, otherwise: float) -> float:
    try:
        return datetime.fromisoformat(str(header.get("created"))).timestamp()
    except ValueError:
        return otherwise


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # removed since the folder was read
        return 0.0


def _suggestion(wanted: str, sessions: tuple[Summary, ...], list_with: str) -> str:
    known = [name for one in sessions for name in (one.id, one.name) if name]
    near = nearest(wanted, known)
    return f": did you mean '{near}'?" if near else f". {list_with}"
