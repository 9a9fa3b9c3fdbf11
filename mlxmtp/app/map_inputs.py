"""The inputs of `map`: files or lines of JSON, a prompt for each, and answers that an earlier run has written."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import select
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Self

from mlxmtp.chat.material import text_or_kind, whole_text
from mlxmtp.engine.media import FRAME_TOKENS, IMAGE_TOKENS, SOUND_TOKENS, VIDEO_TOKENS
from mlxmtp.engine.tokenizer import Tokenizer
from mlxmtp.errors import MlxmtpError, UsageError
from mlxmtp.files import expand_home, is_full, read_whole, try_lock, write_atomically
from mlxmtp.machine.memory import Largest
from mlxmtp.media.source import Kind

LONGEST = 2**30  # bytes of --input
_BEGINNING = b'{"input": '  # of every line of answers
_PLACE = re.compile(r"\{(\w*)\}")


@dataclass(frozen=True, slots=True)
class Item:
    """One input: a path, or the object of a line. `name` is for people, `prompt` is asked.

    `medium`: a file of `kind` that is seen or heard where `prompt` has `{}`.
    """

    input: str | dict[str, Any]
    name: str
    prompt: str
    medium: Path | None = None
    kind: Kind | None = None

    @property
    def content(self) -> str | list[dict[str, Any]]:
        """The content of the message that asks."""
        if self.kind is None:
            return self.prompt
        found: list[dict[str, Any]] = []
        for text in self.prompt.split("{}"):
            found += [{"type": self.kind, self.kind: self.medium}, {"type": "text", "text": text}]
        return [part for part in found[1:] if part.get("text") != ""]

    def key(self, model: str, settings: dict[str, Any]) -> str:
        """Return a word that is another one for another prompt, model or setting."""
        seen = "" if self.medium is None else hashlib.sha256(self.medium.read_bytes()).hexdigest()
        about = json.dumps([model, self.prompt, settings, *filter(None, [seen])], sort_keys=True, default=str)
        return hashlib.sha256(about.encode()).hexdigest()[:16]


def items_of_files(template: str, files: Sequence[Path], tell: Callable[[str], object]) -> list[Item]:
    """Return an item for each file, whose text or medium stands where the template has `{}`. Raises UsageError.

    Remarks on the files go to `tell`.
    """
    if "{}" not in template:
        raise UsageError('PROMPT needs {} where the text of a file belongs: "Summarise: {}".')
    return [_item_of(template, file, tell) for file in files]


def _item_of(template: str, file: Path, tell: Callable[[str], object]) -> Item:
    name = str(file)
    text, notes, kind = text_or_kind(name)
    for note in notes:
        tell(note)
    if kind is None:
        return Item(name, name, template.replace("{}", text))
    if not expand_home(file).is_file():
        raise UsageError(f"{name} is a pipe: {kind} files are read more than once, so write it to a file first.")
    return Item(name, name, template, expand_home(file), kind)


def items_of_lines(template: str, source: Path | None, tell: Callable[[str], object]) -> list[Item]:
    """Return an item for each object in lines of JSON; `{name}` stands for a field of it. Raises UsageError.

    `source` None is standard input. Remarks on it go to `tell`.
    """
    named = "stdin" if source is None else str(source)
    names = set(_PLACE.findall(template)) - {""}
    if not names:
        raise UsageError('PROMPT needs {name} where a field of the lines belongs: "Translate: {text}".')
    items = []
    for number, line in enumerate(_lines(source, named, tell), 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"Line {number} of {named} is not JSON: {error}.") from None
        if not isinstance(fields, dict):
            raise UsageError(f'Line {number} of {named} must be an object like {{"text": "…"}}.')
        if missing := sorted(names - fields.keys()):
            raise UsageError(f"Line {number} of {named} has no field '{missing[0]}', which PROMPT names.")
        items.append(Item(fields, f"line {number}", _PLACE.sub(partial(_filled, fields), template)))
    return items


def _filled(fields: dict[str, Any], place: re.Match[str]) -> str:
    if not place[1]:
        return place[0]
    value = fields[place[1]]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def most_tokens(items: Sequence[Item], tokenizer: Tokenizer, image_tokens: int | None) -> tuple[int, Largest]:
    """Return the tokens of the longest prompt, about (a sound counts for half a minute), and of the largest media."""
    picture = image_tokens or IMAGE_TOKENS
    counts: dict[Kind | None, int] = {None: 0, "image": picture, "audio": SOUND_TOKENS, "video": VIDEO_TOKENS}
    lengths = [len(tokenizer.encode(one.prompt)) + counts[one.kind] for one in items]
    kinds = {one.kind for one in items}
    seen = picture if "image" in kinds else FRAME_TOKENS if "video" in kinds else 0
    return max(lengths), Largest(seen, SOUND_TOKENS if "audio" in kinds else 0)


def _lines(source: Path | None, named: str, tell: Callable[[str], object]) -> list[str]:
    """Return the lines of a file, of which there may be more than of a text to be read at once."""
    try:
        text, notes = whole_text(_read_stdin() if source is None else read_whole(source, LONGEST), named)
    except OSError as error:
        raise UsageError(f"{named} cannot be read: {error.strerror or error}.") from None
    for note in notes:
        tell(note)
    return text.split("\n")  # no others: a string of JSON may hold them


def _read_stdin() -> bytes:
    """Return what standard input holds, by its descriptor: a socket cannot be opened as /dev/stdin."""
    data = bytearray()
    while len(data) <= LONGEST:
        try:
            chunk = os.read(0, 1 << 20)
        except BlockingIOError:  # whoever made the pipe wants no waiting
            select.select([0], [], [])
            continue
        if not chunk:
            return bytes(data)
        data += chunk
    raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))


class Answers:
    """A file of answers, a line of JSON each, in the order of the inputs. What an earlier run wrote stays.

    But for its errors: the inputs in `failed` may be asked again. It is locked until `close`, or the end of a `with`.
    """

    def __init__(self, path: Path, keys: Sequence[str]) -> None:
        """Raises UsageError if the file cannot be written, or another run writes it, or has other inputs' answers."""
        self._path = path
        self._held: BinaryIO | None = None
        self._renewed: dict[int, str] = {}
        self._renew_after = 0.0  # seconds of the clock
        try:
            self._write("")  # before the first answer has been worked out
            self._hold()
        except OSError as error:
            kind = MlxmtpError if is_full(error) else UsageError
            raise kind(f"{path} cannot be written: {error.strerror or error}.") from None
        try:
            self._take_up(keys)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Put renewed answers in their places, and give the lock back. Raises MlxmtpError."""
        try:
            self._renew()
        finally:
            if self._held is not None:
                self._held.close()

    def _hold(self) -> None:
        """Lock the file that is there now."""
        if not self._path.is_file():
            return
        while True:
            held = self._path.open("ab")  # NFS locks only what is open for writing
            if not try_lock(held.fileno()):
                held.close()
                raise UsageError(f"Another run writes {self._path}: wait until it has ended, or give another -o.")
            if os.path.samestat(os.fstat(held.fileno()), self._path.stat()):
                break
            held.close()  # another run has renewed the file meanwhile: this is the old one
        if self._held is not None:
            self._held.close()
        self._held = held

    def _take_up(self, keys: Sequence[str]) -> None:
        """Read what an earlier run wrote. Raises UsageError for answers to other inputs than these keys'."""
        whole, rest = self._read()
        lines = [_fields(line) for line in whole.splitlines()]
        self.done = len(lines)
        self.responses = [str(line.get("response", "")) for line in lines]
        self.failed = [number for number, line in enumerate(lines) if "error" in line]
        wanted = [*keys, *[""] * (len(lines) + 1)]
        if not (all("key" in line for line in lines) and _is_begun(rest, wanted[self.done])):
            raise UsageError(f"{self._path} holds something else than answers of this command: give another -o.")
        for number, (line, key) in enumerate(zip(lines, wanted, strict=False), 1):
            if line["key"] != key:
                raise UsageError(
                    f"Line {number} of {self._path} is no answer to input {number} of this run (another prompt, model "
                    "or setting): give another -o, or remove the file."
                )
        if rest:  # only now: a file that is refused stays as it is
            os.truncate(self._path, len(whole))

    def put(self, number: int, text: str) -> None:
        """Add the line of an input, or renew one: now, or where that would be too often, with one that comes later.

        Raises MlxmtpError where that is impossible: the lines before stay.
        """
        if number < self.done:
            self._renewed[number] = text
            began = time.monotonic()
            if began >= self._renew_after:  # a twentieth of the time, at most, goes into writing the file anew
                self._renew()
                self._renew_after = time.monotonic() + 20 * (time.monotonic() - began)
            return
        self._renew()
        with self._as_sentence():
            self._write(text)

    def _renew(self) -> None:
        if not self._renewed:
            return
        with self._as_sentence():
            lines = self._path.read_bytes().splitlines(keepends=True)
            for number, text in self._renewed.items():
                lines[number] = text.encode("utf-8", "replace")
            try:
                write_atomically(self._path, b"".join(lines))
                self._hold()
            except PermissionError:  # a file that may be written, in a folder that may not
                self._path.write_bytes(b"".join(lines))
            self._renewed.clear()

    @contextmanager
    def _as_sentence(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            step = "make room" if is_full(error) else "check the file and its disk"
            raise MlxmtpError(
                f"{self._path} cannot be written: {error.strerror or error}. The answers before stay in it: {step}, "
                "and the same command goes on behind them."
            ) from None

    def _write(self, text: str) -> None:
        with self._path.open("a", encoding="utf-8", errors="replace") as file:  # a path may hold other bytes
            file.write(text)

    def _read(self) -> tuple[bytes, bytes]:
        """Return the whole lines that are there, and the rest, half a line that a kill has left. Raises UsageError."""
        if not self._path.is_file():  # a pipe or a terminal holds nothing from an earlier run
            return b"", b""
        try:
            data = self._path.read_bytes()
        except OSError as error:
            raise UsageError(f"{self._path} cannot be read: {error.strerror or error}.") from None
        end = data.rfind(b"\n") + 1
        return data[:end], data[end:]


def _fields(line: bytes) -> dict[str, Any]:
    """Return the object of a line, an empty one if it holds none."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_begun(rest: bytes, key: str) -> bool:
    """Return whether `rest` may be the beginning of the answer with `key`, as `Result.to_json` writes it."""
    if whole := _fields(rest):
        return bool(key) and whole.get("key") == key
    return rest.startswith(_BEGINNING) or _BEGINNING.startswith(rest)
