"""Contents of messages with pictures in them; every protocol has its own form for those."""

import base64
import binascii
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote_to_bytes

from mlxmtp.errors import UsageError
from mlxmtp.media.source import MediaFile, media_file
from mlxmtp.serve.fields import Fields, Refused

Part = dict[str, Any]
Content = str | list[Part]
"""A text, or parts as chat templates read them, where a picture is `{"type": "image", "image": MediaFile}`."""

MOST_MEDIA = 100
"""Pictures of a request."""
_TEXTS = ("text",)
_DETAILS: dict[str, int | None] = {"auto": None, "original": None, "low": 70, "high": 1120}
"""Tokens of a picture by OpenAI's `detail`; None: the server's."""


def content_of(fields: Fields, name: str = "content", kinds: Sequence[str] = _TEXTS) -> Content:
    """Return a content: one text, or with pictures in it parts in their order. Raises Refused for other parts.

    `kinds`: types of parts that hold a text.
    """
    value = fields.table.get(name)
    if value is None or isinstance(value, str):
        return value or ""
    return in_order([part_of(part, kinds) for part in fields.objects(name)])


def in_order(parts: Sequence[str | Part]) -> Content:
    """Return texts and pictures as one content: texts that follow each other are one, a line apart."""
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
    """Return the text or the picture that a part of a content is. Raises Refused for anything else."""
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
    raise Refused(f"{part.path('type')}: '{kind}' cannot be read here, only text and pictures.", part.path("type"))


def encoded_image(text: str, path: str) -> Part:
    """Return the picture in base64, or in a data URI. Raises Refused."""
    return {"type": "image", "image": _file(_decoded(text, path), path)}


def _picture(holder: Fields, name: str, detailed: Fields) -> Part:
    """Return the picture at `name`; `detailed` may say how closely it is looked at."""
    found = encoded_image(holder.text(name), holder.path(name))
    detail = detailed.choice("detail", *_DETAILS, default="auto")
    return found if _DETAILS[detail] is None else {**found, "image_tokens": _DETAILS[detail]}


def _decoded(text: str, path: str) -> bytes:
    scheme, _, rest = text[:64].partition(":")
    if scheme.lower() in ("http", "https", "file", "ftp"):
        raise Refused(
            f"{path}: nothing is fetched from an address here: send the picture itself, in base64 as a data: URI.",
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


def _file(data: bytes, path: str) -> MediaFile:
    """Return the picture in a file's bytes. Raises Refused for anything else."""
    try:
        found = media_file(data, path)
    except UsageError as error:
        raise Refused(str(error), path) from error
    if found is None or found.kind != "image":
        raise Refused(f"{path} is no picture that can be read: send JPEG, PNG, WebP or GIF.", path)
    return found
