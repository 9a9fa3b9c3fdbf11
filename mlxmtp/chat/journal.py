"""One session file, locked while open: a header and events, a JSON line and one write each, safe from `kill -9`."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path

from mlxmtp.chat.history import Event
from mlxmtp.chat.message import MediaPart
from mlxmtp.errors import SessionError, SessionInUse, UsageError
from mlxmtp.files import is_full, try_lock, write_atomically
from mlxmtp.media.source import MediaFile, media_file
from mlxmtp.version import installed_version

FORMAT = 2
SUFFIX = ".jsonl"

_STARTS = b'{"type": "session", "format": '
_OLDER = re.compile(rb'[^\n]*?"format": *(1)[,}]')  # the digit that says it, in the first line
_WAIT_FOR_QUESTION = frozenset({"system", "model", "name"})  # nothing worth a file of its own
_WAIT_FOR_MORE = frozenset({"extend", "answer", "model", "system"})  # after opening: nothing has been said yet


class Journal:
    """The end of a session file, which appears with the first event that is worth it; `close` gives the lock back."""

    def __init__(
        self, path: Path, file: int | None, waiting: list[bytes], quiet: frozenset[str], older: int | None = None
    ) -> None:
        self.path = path
        self._file, self._quiet, self._older, self._closed = file, quiet, older, False
        self._waiting = waiting  # lines that are not in the file yet
        self._media: dict[str, MediaFile] = {}  # that are not beside it yet, by the name of the copy
        self._begun = False  # the first event that is worth it has come
        self._trouble: str | None = None
        self._missing: str | None = None  # why copies still wait

    @classmethod
    def new(cls, folder: Path, model: str = "") -> Journal:
        """Return the journal of a conversation that has not begun."""
        path = folder / f"{_fresh_id()}{SUFFIX}"
        return cls(path, None, [_header(path, model)], _WAIT_FOR_QUESTION)

    @classmethod
    def reopen(cls, path: Path) -> tuple[Journal, list[Event]]:
        """Go on with a session: its journal and its events. Raises SessionInUse, SessionError, FileNotFoundError."""
        file = os.open(path, os.O_RDWR | os.O_APPEND)
        try:
            _lock(file, path)
            data = path.read_bytes()
            events = read_events(data, path)
            if not events:  # a header that broke off: nothing is lost by starting again
                os.ftruncate(file, 0)
        except BaseException:
            os.close(file)
            raise
        waiting = [_header(path, "")] if not events else [] if data.endswith(b"\n") else [b"\n"]
        older = _OLDER.match(data) if events else None
        return cls(path, file, waiting, _WAIT_FOR_MORE, None if older is None else older.start(1)), events

    @classmethod
    def fork(cls, path: Path) -> tuple[Journal, list[Event]]:
        """Go on in a file of its own with a session that is open elsewhere, without its name. Raises SessionError."""
        events = [one for one in read_events(path.read_bytes(), path) if one.get("type") != "name"]
        forked = path.with_name(f"{_fresh_id()}{SUFFIX}")
        model = str(events[0].get("model", "")) if events else ""
        lines = [_header(forked, model, forked_from=path.stem), *map(_line, events[1:])]
        _copy_media(path, forked)
        return cls(forked, None, lines, _WAIT_FOR_QUESTION | _WAIT_FOR_MORE), events

    @property
    def id(self) -> str:
        return self.path.name.removesuffix(SUFFIX)

    @property
    def saved(self) -> bool:
        """True if all is on the disk up to now."""
        return self._file is not None and self.trouble is None

    @property
    def trouble(self) -> str | None:
        """The reason why nothing is saved any more, one sentence."""
        if self._removed:
            self._trouble = _not_saved("any more", f"its file was removed ({self.path})", "Begin a new one")
        return self._trouble

    @property
    def _removed(self) -> bool:
        return self._file is not None and not self._closed and os.fstat(self._file).st_nlink == 0

    def write(self, event: Event) -> None:
        """Append one event. A disk that is full or gone does not end the conversation: `trouble` says it."""
        self._waiting.append(_line(event))
        kind = "answer" if event.get("role") == "assistant" else event["type"]
        if self._begun or kind not in self._quiet:
            self._begun = True
            self._flush(media=kind != "part")

    def flush(self) -> None:
        """Write what waits, also what could not be written before: there may be room now."""
        self._flush()

    def _flush(self, *, media: bool = True) -> None:
        if self._closed or not self._begun or not (self._waiting or self._media) or self._removed:
            return
        if media:  # first: lines name what is there; not with each piece of an answer, if there is no room
            self._missing = self._write_media()
        self._write_lines()
        self._trouble = self._trouble or self._missing

    def _write_lines(self) -> None:
        size: int | None = None
        try:
            if self._file is None:
                self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600)
                _lock(self._file, self.path)
            if self._older is not None:
                _mark_format(self._file, self._older)
                self._older = None
            size = os.fstat(self._file).st_size
            _write_all(self._file, b"".join(self._waiting))
            self._waiting, self._trouble = [], None  # last: after Ctrl-C anywhere before, all still waits
        except (OSError, SessionInUse) as error:
            if self._file is not None and size is not None:
                with suppress(OSError):
                    os.ftruncate(self._file, size)  # half a line would spoil the next one
            reason = error.strerror if isinstance(error, OSError) else None
            full = isinstance(error, OSError) and is_full(error)
            first = f"{'Make room' if full else 'Check that folder'}, and all of it is written with the next turn"
            when = "any more" if self._file is not None else ""
            self._trouble = _not_saved(when, f"{reason or error} ({self.path.parent})", first)

    def _write_media(self) -> str | None:
        """Write the copies that wait; return why not, one sentence."""
        folder = media_folder(self.path)
        try:
            for name, file in list(self._media.items()):
                for one in (folder.parent, folder):
                    one.mkdir(mode=0o700, parents=True, exist_ok=True)
                if not (folder / name).is_file():
                    write_atomically(folder / name, file.data, private=True)
                del self._media[name]
        except OSError as error:
            why = f"{file.name} cannot be kept beside this conversation: {error.strerror or error} ({folder})"
            first = "Make room" if is_full(error) else "Check that folder"
            return f"{why}. {first}: in a chat the next turn writes it, else ask again."
        return None

    def keep(self, file: MediaFile) -> str:
        """Take a picture or a sound, for a copy beside the session with the next event; return its path from there.

        It is named by its content, so each is kept once.
        """
        name = f"{file.digest.removeprefix('sha256:')[:32]}.{file.media_type.rpartition('/')[2]}"
        self._media[name] = file
        return f"{media_folder(self.path).name}/{name}"

    def successor(self, model: str) -> Journal:
        """Return the journal of a new conversation in the same folder."""
        return Journal.new(self.path.parent, model)

    def close(self) -> None:
        """Let others continue the session; what is written after that is lost."""
        self.flush()
        if self._file is not None and not self._closed:
            os.close(self._file)
        if self._file is None:  # a fork's media, of which no session tells
            shutil.rmtree(media_folder(self.path), ignore_errors=True)
        self._closed = True


def media_folder(path: Path) -> Path:
    """Return the folder with copies of the images and audio of a session's file."""
    return path.with_name(f"{path.name.removesuffix(SUFFIX)}.media")


def kept(session: Path, part: MediaPart) -> MediaFile | None:
    """Return the copy that a part of a session's file names; None if it is gone or is another file.

    A session that was forked has it in a folder of its own, under the same name.
    """
    name = Path(part.path).name
    if not name or not part.path:
        return None
    try:
        found = media_file((media_folder(session) / name).read_bytes(), part.name)
    except (OSError, UsageError):
        return None
    return found if found is not None and found.digest == part.digest else None


def _copy_media(session: Path, to: Path) -> None:
    """Give a session that is forked images and audio of its own: the first one may be removed."""
    with suppress(OSError):  # there are none, or the disk is full: then a question about one says so
        for file in media_folder(session).iterdir():
            media_folder(to).mkdir(mode=0o700, exist_ok=True)
            shutil.copy2(file, media_folder(to) / file.name)


def read_events(data: bytes, path: Path) -> list[Event]:
    """Return every whole event, the header first, passing over what is no JSON object. Raises SessionError."""
    lines = data.split(b"\n")
    if len(lines) == 1 and (lines[0].startswith(_STARTS) or _STARTS.startswith(lines[0])) and _event(lines[0]) is None:
        return []
    header = _event(lines[0])
    if header is None or header.get("type") != "session":
        raise SessionError(f"{path.name} is not a session of mlxmtp.")
    if header.get("format") not in (1, FORMAT):
        raise SessionError(f"{path.name} was written by another version of mlxmtp: update it to read this session.")
    return [header, *(event for line in lines[1:] if (event := _event(line)) is not None)]


def damaged_lines(data: bytes) -> int:
    """Return how many lines `read_events` passes over."""
    return sum(bool(line.strip()) and _event(line) is None for line in data.split(b"\n"))


def delete(path: Path) -> None:
    """Delete a session file; no window can open it meanwhile. Raises SessionInUse if one has it open."""
    with ExitStack() as stack:
        with suppress(PermissionError):  # no window can open it either
            if path.is_file():  # nobody has a conversation in a named pipe, or a link that leads nowhere
                _lock(stack.enter_context(path.open("r+b")).fileno(), path)  # NFS locks only what is open for writing
        path.unlink()


def _not_saved(when: str, why: str, first: str) -> str:
    way_out = f"{first}; in a chat /export FILE.md writes this one elsewhere."
    return f"This conversation is not saved{when and f' {when}'}: {why}. {way_out}"


def _event(line: bytes) -> Event | None:
    try:
        value = json.loads(line.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _line(event: Event) -> bytes:
    # Surrogates stand for bytes of the command line that were no text; UTF-8 has no place for them.
    return (json.dumps(event, ensure_ascii=False) + "\n").encode("utf-8", "replace")


def _header(path: Path, model: str, **more: str) -> bytes:
    created = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    about = {"id": path.name.removesuffix(SUFFIX), "created": created, "mlxmtp": installed_version()}
    return _line({"type": "session", "format": FORMAT, **about, **({"model": model} if model else {}), **more})


def _mark_format(file: int, at: int) -> None:
    """Write this format's digit, one byte, into an older file's header: an older version refuses it from then on."""
    flags = fcntl.fcntl(file, fcntl.F_GETFL)
    fcntl.fcntl(file, fcntl.F_SETFL, flags & ~os.O_APPEND)  # Linux appends whatever the offset otherwise
    try:
        os.pwrite(file, str(FORMAT).encode(), at)
    finally:
        fcntl.fcntl(file, fcntl.F_SETFL, flags)


def _fresh_id() -> str:
    """Return eight characters, of which the first few are enough to type."""
    return os.urandom(4).hex()


def _lock(file: int, path: Path) -> None:
    if not try_lock(file):
        raise SessionInUse(f"Session {path.stem} is open in another window.")


def _write_all(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]
