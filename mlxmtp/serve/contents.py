"""Contents of messages with media and documents in them; every protocol has its own form for those."""

import base64
import binascii
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import Event
from typing import Any
from urllib.parse import unquote_to_bytes

from mlxmtp.errors import UsageError
from mlxmtp.media.pdf import MARK, read_pages
from mlxmtp.media.source import Kind, MediaFile, media_file
from mlxmtp.serve.fetching import Fetcher
from mlxmtp.serve.fields import Fields, Refused

Part = dict[str, Any]
Content = str | list[Part]
"""A text, or parts as chat templates read them, where a picture is `{"type": "image", "image": MediaFile}`.

A sound is `{"type": "audio", "audio": MediaFile}`. What takes time to get is `{"type": "unread", "unread": Unread}`
until `read_all`.
"""

MOST_MEDIA = 100
"""Pictures and sounds of a request."""
_SECONDS = 60.0
"""Until the last file of a request must have begun to be read."""
_TEXTS = ("text",)
_READ: dict[Kind, tuple[str, str]] = {
    "image": ("image", "JPEG, PNG, WebP or GIF"),
    "audio": ("audio", "WAV, MP3, FLAC or Ogg"),
}
_UNREAD = "unread"
_DETAILS: dict[str, int | None] = {"auto": None, "original": None, "low": 70, "high": 1120}
"""Tokens of a picture by OpenAI's `detail`; None: the server's."""


@dataclass(frozen=True, slots=True)
class Unread:
    """A file at an address, or a PDF, in the field `path` of a request; `name` is what people call it."""

    path: str
    name: str = ""
    url: str = ""
    pdf: bytes = b""

    def read(self, fetch: Fetcher | None, most: int = MOST_MEDIA) -> list[str | Part]:
        """Return its texts and pictures, at most so many of these.

        Raises Refused for what cannot be had, or if nothing is to be fetched.
        """
        if not self.url:
            return self._pages(self.pdf, most)
        if fetch is None:
            raise Refused(
                f"{self.path}: nothing is fetched from an address here (who runs the server can allow it, with "
                "--fetch-media): send the file itself, in base64 as a data: URI.",
                self.path,
                code="unsupported_parameter",
            )
        data = fetch(self.url, self.path)
        return self._pages(data, most) if data.startswith(MARK) else [_part(_file(data, self.path, "image", "audio"))]

    def _pages(self, data: bytes, most: int) -> list[str | Part]:
        name = self.name or "document.pdf"
        try:
            pages = read_pages(data, name, most)
        except UsageError as error:
            raise Refused(f"{self.path}: {error}", self.path) from error
        found: list[str | Part] = []
        for page in pages:
            title = f"{name}, page {page.number}"
            found.append(
                f"--- {title} ---\n{page.text}" if page.text else _part(MediaFile(title, "image/png", page.picture))
            )
        return found


def read_all(
    messages: Sequence[Mapping[str, Any]], *, fetches: bool, over: Event | None = None
) -> list[dict[str, Any]]:
    """Return messages with the content of what was still to be read; it may take a while.

    `over` ends it before the next file: nobody wants them any more. Raises Refused.
    """
    end, found = time.monotonic() + _SECONDS, []
    fetch = Fetcher() if fetches else None
    left = MOST_MEDIA - sum(part["type"] not in ("text", _UNREAD) for part in _parts_of(messages))
    for one in messages:
        if not isinstance(content := one.get("content"), list):
            found.append(dict(one))
            continue
        parts: list[str | Part] = []
        for part in content:
            if part["type"] == _UNREAD:
                if time.monotonic() > end or (over is not None and over.is_set()):
                    raise Refused(f"The files took longer than {_SECONDS:.0f} seconds: send fewer.", "messages")
                read = _read(part, fetch, left)
                left -= sum(not isinstance(each, str) for each in read)
                parts += read
            else:
                parts.append(part["text"] if part["type"] == "text" else part)
        found.append({**one, "content": in_order(parts)})
    return found


def files_in(messages: Sequence[Mapping[str, Any]]) -> int:
    """Return how many pictures and sounds the messages name, files at addresses included; not PDFs, of which some have
    none."""
    return sum(
        part["type"] != "text" and not (part["type"] == _UNREAD and part[_UNREAD].pdf) for part in _parts_of(messages)
    )


def has_unread(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Return True if `read_all` has something to do."""
    return any(part["type"] == _UNREAD for part in _parts_of(messages))


def _parts_of(messages: Sequence[Mapping[str, Any]]) -> Iterator[Part]:
    return (part for one in messages if isinstance(one.get("content"), list) for part in one["content"])


def _read(part: Part, fetch: Fetcher | None, most: int) -> list[str | Part]:
    """Return what a part was to be read for, with what the part says of its pictures."""
    more = {key: value for key, value in part.items() if key not in ("type", _UNREAD)}
    read = part[_UNREAD].read(fetch, most)
    return [one if isinstance(one, str) else {**one, **more} for one in read]


def content_of(fields: Fields, name: str = "content", kinds: Sequence[str] = _TEXTS) -> Content:
    """Return a content: one text, or with media in it parts in their order. Raises Refused for other parts.

    `kinds`: types of parts that hold a text.
    """
    value = fields.table.get(name)
    if value is None or isinstance(value, str):
        return value or ""
    return in_order([part_of(part, kinds) for part in fields.objects(name)])


def in_order(parts: Sequence[str | Part]) -> Content:
    """Return texts and media as one content: texts that follow each other are one, a line apart."""
    if all(isinstance(part, str) for part in parts):
        return "\n".join(part for part in parts if isinstance(part, str))
    found: list[Part] = []
    for part in parts:
        if not isinstance(part, str):
            found.append(part)
        elif found and found[-1]["type"] == "text":
            found[-1]["text"] += f"\n{part}"
        else:
            found.append({"type": "text", "text": part})
    return found


def part_of(part: Fields, kinds: Sequence[str] = _TEXTS) -> str | Part:
    """Return the text, picture or sound that a part of a content is. Raises Refused for anything else."""
    kind = part.text("type")
    if kind in kinds:
        return part.text("refusal" if kind == "refusal" else "text")
    if kind == "image_url":  # chat completions
        holder = part.object(kind) if isinstance(part.table.get(kind), dict) else part
        assert holder is not None
        return _picture(holder, "image_url" if holder is part else "url", holder)
    if kind == "input_image":  # responses
        part.refuse("file_id")
        return _picture(part, "image_url", part)
    if kind == "image":  # messages
        source = part.object("source")
        if source is None:
            raise part.wrong("source", "an object")
        source.choice("type", "base64", "url", default=source.text("type"))
        return _picture(source, "url" if source.text("type") == "url" else "data", part)
    if kind in ("file", "input_file", "document"):  # chat completions, responses, messages
        return _document(part, kind)
    if kind == "input_audio":  # chat completions and responses; `format` is not asked, the bytes tell it
        sound = part.object(kind)
        if sound is None:
            raise part.wrong(kind, "an object")
        path = sound.path("data")
        return _part(_file(_decoded(sound.text("data"), path), path, "audio"))
    told = f"{part.path('type')}: '{kind}' cannot be read here, only text, images, audio and PDFs."
    raise Refused(told, part.path("type"))


def encoded_medium(text: str, path: str) -> Part:
    """Return the image or audio in base64, or in a data URI: Ollama has one field for both. Raises Refused."""
    return _part(_file(_decoded(text, path), path, "image", "audio"))


def _picture(holder: Fields, name: str, detailed: Fields) -> Part:
    """Return the picture at `name`; `detailed` may say how closely it is looked at."""
    path = holder.path(name)
    text = holder.text(name)
    found = _at(text, path) if _is_address(text) else _part(_file(_decoded(text, path), path, "image"))
    detail = detailed.choice("detail", *_DETAILS, default="auto")
    return found if _DETAILS[detail] is None else {**found, "image_tokens": _DETAILS[detail]}


def _document(part: Fields, kind: str) -> Part:
    """Return a document, by its bytes or its address; a text of it is no matter of this function."""
    holder = part if kind == "input_file" else part.object("source" if kind == "document" else kind)
    if holder is None:
        raise part.wrong("source" if kind == "document" else kind, "an object")
    holder.refuse("file_id")
    address = "url" if kind == "document" else "file_url"
    name = part.text("title", "") if kind == "document" else holder.text("filename", "")
    if holder.has(address):
        return _at(holder.text(address), holder.path(address), name)
    field = "data" if kind == "document" else "file_data"
    path = holder.path(field)
    data = _decoded(holder.text(field), path)
    return (
        _unread(Unread(path, name, pdf=data)) if data.startswith(MARK) else _part(_file(data, path, "image", "audio"))
    )


def _is_address(text: str) -> bool:
    return text[:8].lower().startswith(("http://", "https://"))


def _at(url: str, path: str, name: str = "") -> Part:
    return _unread(Unread(path, name, url=url))


def _unread(unread: Unread) -> Part:
    return {"type": _UNREAD, _UNREAD: unread}


def _decoded(text: str, path: str) -> bytes:
    scheme, _, rest = text[:64].partition(":")
    if scheme.lower() in ("http", "https", "file", "ftp"):
        raise Refused(
            f"{path}: nothing is fetched from such an address: send the file itself, in base64 as a data: URI.",
            path,
            code="unsupported_parameter",
        )
    if scheme.lower() == "data" and rest:
        head, comma, text = text[len("data:") :].partition(",")
        if not comma:
            raise Refused(f"{path} must be a data: URI with a comma before its data.", path, code="invalid_value")
        if not head.lower().endswith(";base64"):
            return unquote_to_bytes(text.encode("utf-8", "replace"))
    try:
        plain = "".join(text.split()).rstrip("=")
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise Refused(f"{path} is not valid base64.", path, code="invalid_value") from None


def _part(file: MediaFile) -> Part:
    return {"type": file.kind, file.kind: file}


def _file(data: bytes, path: str, *kinds: Kind) -> MediaFile:
    """Return the image or audio in a file's bytes. Raises Refused for anything else."""
    try:
        found = media_file(data, path)
    except UsageError as error:
        raise Refused(str(error), path, code="invalid_value") from error
    if found is None or found.kind not in kinds:
        names, formats = (" or ".join(words) for words in zip(*(_READ[kind] for kind in kinds), strict=True))
        raise Refused(f"{path} is no {names} that can be read: send {formats}.", path, code="invalid_value")
    return found
