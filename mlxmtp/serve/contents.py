"""Contents of messages with pictures and sounds in them; every protocol has its own form for those."""

import base64
import binascii
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote_to_bytes

from mlxmtp.errors import UsageError
from mlxmtp.media.source import Kind, MediaFile, media_file
from mlxmtp.serve.fields import Fields, Refused

Part = dict[str, Any]
Content = str | list[Part]
"""A text, or parts as chat templates read them, where a picture is `{"type": "image", "image": MediaFile}`.

A sound is `{"type": "audio", "audio": MediaFile}`.
"""

MOST_MEDIA = 100
"""Pictures and sounds of a request."""
_TEXTS = ("text",)
_READ: dict[Kind, tuple[str, str]] = {
    "image": ("picture", "JPEG, PNG, WebP or GIF"),
    "audio": ("sound", "WAV, MP3, FLAC or Ogg"),
}
_DETAILS: dict[str, int | None] = {"auto": None, "original": None, "low": 70, "high": 1120}
"""Tokens of a picture by OpenAI's `detail`; None: the server's."""


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
    if kind == "input_audio":  # chat completions and responses; `format` is not asked, the bytes tell it
        sound = part.object(kind)
        if sound is None:
            raise part.wrong(kind, "an object")
        path = sound.path("data")
        return _part(_file(_decoded(sound.text("data"), path), path, "audio"))
    told = f"{part.path('type')}: '{kind}' cannot be read here, only text, pictures and sounds."
    raise Refused(told, part.path("type"))


def encoded_medium(text: str, path: str) -> Part:
    """Return the picture or sound in base64, or in a data URI: Ollama has one field for both. Raises Refused."""
    return _part(_file(_decoded(text, path), path, "image", "audio"))


def _picture(holder: Fields, name: str, detailed: Fields) -> Part:
    """Return the picture at `name`; `detailed` may say how closely it is looked at."""
    path = holder.path(name)
    found = _part(_file(_decoded(holder.text(name), path), path, "image"))
    detail = detailed.choice("detail", *_DETAILS, default="auto")
    return found if _DETAILS[detail] is None else {**found, "image_tokens": _DETAILS[detail]}


def _decoded(text: str, path: str) -> bytes:
    scheme, _, rest = text[:64].partition(":")
    if scheme.lower() in ("http", "https", "file", "ftp"):
        raise Refused(
            f"{path}: nothing is fetched from an address here: send the file itself, in base64 as a data: URI.",
            path,
            code="unsupported_parameter",
        )
    if scheme.lower() == "data" and rest:
        head, comma, text = text[len("data:") :].partition(",")
        if not comma:
            raise Refused(f"{path} must be a data: URI with a comma before its data.", path, code="invalid_value")
        if not head.lower().endswith(";base64"):
            return unquote_to_bytes(text)
    try:
        plain = "".join(text.split()).rstrip("=")
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise Refused(f"{path} must be base64, which it is not.", path, code="invalid_value") from None


def _part(file: MediaFile) -> Part:
    return {"type": file.kind, file.kind: file}


def _file(data: bytes, path: str, *kinds: Kind) -> MediaFile:
    """Return the picture or sound in a file's bytes. Raises Refused for anything else."""
    try:
        found = media_file(data, path)
    except UsageError as error:
        raise Refused(str(error), path) from error
    if found is None or found.kind not in kinds:
        names, formats = (" or ".join(words) for words in zip(*(_READ[kind] for kind in kinds), strict=True))
        raise Refused(f"{path} is no {names} that can be read: send {formats}.", path)
    return found
