"""Pictures for a server's model: sent as data URIs; how many tokens they take there is estimated."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

from mlxmtp.engine.media import IMAGE_TOKENS, Media, Medium
from mlxmtp.errors import UsageError
from mlxmtp.media.source import MediaFile

_SENT = ("image/jpeg", "image/png", "image/webp", "image/gif")
"""Types that every server reads; others are sent as PNG."""


class Sent(Media):
    """Senses of a server's model, which alone knows if it has any."""

    def __init__(self) -> None:
        pass

    def prepare(self, source: object, image_tokens: int | None = None) -> Medium:
        """Return a picture with the tokens that it may take. Raises UsageError for one that cannot be read or sent."""
        if not isinstance(source, MediaFile) or source.kind != "image":
            raise UsageError("Sounds are heard by a model on this machine: leave out --url.")
        about = "{}x{}".format(*source.picture.size)
        notes = source.picture.notes
        return Medium("image", source.name, source.digest, image_tokens or IMAGE_TOKENS, None, about, notes)

    def prepared(self, messages: Sequence[Mapping[str, Any]], image_tokens: int | None) -> list[Mapping[str, Any]]:
        def part(one: Mapping[str, Any]) -> Mapping[str, Any]:
            kind = one["type"]
            return one if kind == "text" else {"type": kind, kind: self.prepare(one[kind], image_tokens)}

        return [_with_parts(message, part) for message in messages]


def as_sent(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return messages as OpenAI's chat completions have them."""

    def part(one: Mapping[str, Any]) -> Mapping[str, Any]:
        if one["type"] != "image":
            return one
        file: MediaFile = one["image"]
        data, media_type = file.data, file.media_type
        if media_type not in _SENT:
            buffer = io.BytesIO()
            file.picture.image.save(buffer, "PNG", compress_level=1)
            data, media_type = buffer.getvalue(), "image/png"
        return {
            "type": "image_url",
            "image_url": {"url": f"data:{media_type};base64,{base64.b64encode(data).decode()}"},
        }

    return [_with_parts(message, part) for message in messages]


def _with_parts(message: Mapping[str, Any], part: Any) -> Mapping[str, Any]:
    content = message.get("content")
    return {**message, "content": [part(one) for one in content]} if isinstance(content, list) else message
