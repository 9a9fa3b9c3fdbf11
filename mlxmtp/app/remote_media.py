"""Media for a server's model: sent as data URIs and in base64; how many tokens they take there is estimated."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

from mlxmtp.engine.media import IMAGE_TOKENS, Media, Medium, file_of
from mlxmtp.errors import UsageError
from mlxmtp.media.source import MediaFile

_SENT = ("image/jpeg", "image/png", "image/webp", "image/gif")
"""Types of pictures that every server reads; others are sent as PNG."""
_HEARD = {"audio/wav": "wav", "audio/mpeg": "mp3"}
"""Types of sounds that every server reads, with their names there; others are sent as WAV."""
_A_SECOND = 25  # tokens


class Sent(Media):
    """Senses of a server's model, which alone knows if it has any."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int | None], Medium] = {}

    def prepare(self, source: object, image_tokens: int | None = None) -> Medium:
        """Return a medium with the tokens that it may take. Raises UsageError for one that cannot be read or sent."""
        if isinstance(source, Medium):
            return source
        file = file_of(source)
        if file.kind == "video":
            raise UsageError("Videos are seen by a model on this machine: name one with -m.")
        key = file.digest, image_tokens
        if key not in self._known:
            self._known[key] = self._estimated(file, image_tokens)
        return self._known[key]

    def _estimated(self, file: MediaFile, image_tokens: int | None) -> Medium:
        if file.kind == "audio":
            from mlxmtp.media.sound import open_sound

            sound = open_sound(file.data, file.media_type, file.name)
            count, about = int(sound.seconds * _A_SECOND) + 1, f"{sound.seconds:.1f} s"
            return Medium("audio", file.name, file.digest, count, None, about, sound.notes)
        from mlxmtp.media.image import open_picture

        picture = open_picture(file.data, file.name)
        about = "{}x{}".format(*picture.size)
        return Medium("image", file.name, file.digest, image_tokens or IMAGE_TOKENS, None, about, picture.notes)

    def prepared(self, messages: Sequence[Mapping[str, Any]], image_tokens: int | None) -> list[Mapping[str, Any]]:
        def part(one: Mapping[str, Any]) -> Mapping[str, Any]:
            if one["type"] == "text":
                return one
            medium = self.prepare(one[one["type"]], image_tokens)
            return {"type": medium.kind, medium.kind: medium}

        return [_with_parts(message, part) for message in messages]


def as_sent(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return messages as OpenAI's chat completions have them. Raises UsageError for media that cannot be read."""

    def part(one: Mapping[str, Any]) -> Mapping[str, Any]:
        if one["type"] == "text":
            return one
        file = file_of(one[one["type"]])
        if file.kind == "audio":
            data, name = _heard(file)
            return {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": name}}
        data, media_type = file.data, file.media_type
        if media_type not in _SENT:
            from mlxmtp.media.image import open_picture

            buffer = io.BytesIO()
            open_picture(file.data, file.name).image.save(buffer, "PNG", compress_level=1)
            data, media_type = buffer.getvalue(), "image/png"
        url = f"data:{media_type};base64,{base64.b64encode(data).decode()}"
        return {"type": "image_url", "image_url": {"url": url}}

    return [_with_parts(message, part) for message in messages]


def _heard(file: MediaFile) -> tuple[bytes, str]:
    """Return a sound as servers read it, and the name of its format."""
    if file.media_type in _HEARD:
        return file.data, _HEARD[file.media_type]
    from mlxmtp.media.sound import as_wav, open_sound

    return as_wav(open_sound(file.data, file.media_type, file.name)), "wav"


def _with_parts(message: Mapping[str, Any], part: Any) -> Mapping[str, Any]:
    content = message.get("content")
    return {**message, "content": [part(one) for one in content]} if isinstance(content, list) else message
