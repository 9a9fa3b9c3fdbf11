"""Pictures and sounds in a prompt: one placeholder each becomes marks and soft tokens, which are made when read."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from mlxmtp.errors import LoadError, UsageError
from mlxmtp.models.towers import has_vision, vision_config

if TYPE_CHECKING:
    import mlx.core as mx
    from PIL.Image import Image

    from mlxmtp.decode.prefill import SoftTokens
    from mlxmtp.media.image import Picture
    from mlxmtp.models.config import ModelConfig

_KEPT = 2**28  # bytes of soft tokens that are kept for a text that is read again; the newest always are
_PLACEHOLDERS = {"image": ("image_token_id", 258880), "audio": ("audio_token_id", 258881)}
_MARKS = {
    "image": (("boi_token_id", 255999), ("eoi_token_id", 258882)),
    "audio": (("boa_token_id", 256000), ("eoa_token_index", 258883)),
}


@dataclass(frozen=True, slots=True, eq=False)
class Medium:
    """A picture or a sound as the network gets it: `data` is pixels [H, W, 3] or samples [n], `digest` their hash.

    `count`: soft tokens. `about`: its size in words, for a person.
    """

    kind: Literal["image", "audio"]
    name: str
    digest: str
    count: int
    data: Any
    about: str = ""
    notes: tuple[str, ...] = ()

    @property
    def ids(self) -> list[int]:
        """Negative ids that stand for its rows in a prompt, alike for what the network reads alike."""
        content = hashlib.shake_256(f"{self.kind} {self.digest}".encode()).digest(4 * self.count)
        words = (int.from_bytes(content[at : at + 4], "big") for at in range(0, len(content), 4))
        return [-1 - (word >> 1) for word in words]


@dataclass(frozen=True, slots=True)
class Expanded:
    """A prompt whose placeholders have become soft tokens; `places`: of the placeholders, with the tokens added."""

    ids: list[int]
    soft: list[SoftTokens] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)

    def place(self, before: int) -> int:
        """Return where the token `before` of the prompt with placeholders stands now."""
        return before + sum(added for at, added in self.places if at < before)


class Media:
    """Senses of a checkpoint. Its towers are loaded when the first picture or sound is read."""

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._kept: dict[str, mx.array] = {}

    @property
    def sees(self) -> bool:
        """True if the checkpoint reads pictures."""
        return has_vision(self._config)

    def prepare(self, source: object, image_tokens: int = 280, name: str = "") -> Medium:
        """Return the medium in a file (its path), in bytes, or a picture that Pillow has opened.

        Raises UsageError for what is missing, damaged or neither, LoadError if the model lacks the tower.
        """
        from mlxmtp.media.image import digest, open_picture

        if isinstance(source, Medium):
            return source
        if isinstance(source, str | Path):
            name = name or str(source)
            source = _read(Path(source))
        picture = open_picture(cast("bytes | Image", source), name or "the picture")
        side = self._side(picture)
        pixels = picture.pixels(image_tokens, side)
        count = pixels.shape[0] * pixels.shape[1] // side**2
        about = f"{picture.size[0]}x{picture.size[1]}"
        return Medium("image", picture.name, digest(pixels), count, pixels, about, picture.notes)

    def expand(self, ids: Sequence[int], media: Sequence[Medium]) -> Expanded:
        """Put begin mark, soft tokens and end mark where `ids` has a placeholder, one for each of `media` in order.

        Raises ValueError if they are not as many, or a placeholder stands for another kind.
        """
        from mlxmtp.decode.prefill import SoftTokens

        kinds = {self._id(*_PLACEHOLDERS[kind]): kind for kind in _PLACEHOLDERS}
        places = [place for place, token in enumerate(ids) if token in kinds]
        if len(places) != len(media):
            raise ValueError(f"the prompt has {len(places)} placeholders for {len(media)} pictures and sounds")
        made, soft, end = Expanded([]), [], 0
        for place, medium in zip(places, media, strict=True):
            if kinds[ids[place]] != medium.kind:
                raise ValueError(f"{medium.name} is {medium.kind} and its placeholder {kinds[ids[place]]}")
            opening, closing = (self._id(*mark) for mark in _MARKS[medium.kind])
            made.ids.extend([*ids[end:place], opening])
            block = medium.kind == "image" and self._config.sees_ahead
            soft.append(SoftTokens(len(made.ids), medium.count, partial(self._rows, medium), block))
            made.ids.extend([*medium.ids, closing])
            made.places.append((place, medium.count + 1))
            end = place + 1
        made.ids.extend(ids[end:])
        made.soft.extend(soft)
        return made

    def _rows(self, medium: Medium) -> mx.array:
        """Return the soft tokens [S, H] of `medium`, those of the last ones from memory."""
        import mlx.core as mx

        from mlxmtp.models import device

        known = self._kept.pop(medium.digest, None)
        if known is None:
            try:
                known = self._vision(mx.array(medium.data))
                mx.eval(known)
            except RuntimeError as error:
                raise device.failure(error) from error
        self._kept[medium.digest] = known
        while len(self._kept) > 1 and sum(one.nbytes for one in self._kept.values()) > _KEPT:
            del self._kept[next(iter(self._kept))]
        return known

    @cached_property
    def _vision(self) -> Any:
        from mlxmtp.models.load import load_vision

        return load_vision(self._config)

    def _side(self, picture: Picture) -> int:
        """Return the pixels of a soft token's side. Raises LoadError for a model that sees nothing."""
        vision = vision_config(self._config)
        if vision is None or not self.sees:
            raise LoadError(
                f"The model in {self._config.folder} has no vision tower, so it cannot see {picture.name}: take one "
                "that has (e2b and larger, converted without --text-only)."
            )
        return vision.side

    def _id(self, key: str, default: int) -> int:
        """Return a token id of config.json."""
        value = self._config.raw.get(key)
        return value if isinstance(value, int) else default


def media_in(messages: Collection[Mapping[str, Any]]) -> list[tuple[str, Any]]:
    """Return kind and source of every picture and sound in the contents of messages, in order."""
    parts = (part for one in messages if isinstance(one.get("content"), list | tuple) for part in one["content"])
    return [(part["type"], part.get(part["type"])) for part in parts if part.get("type") in _PLACEHOLDERS]


def _read(path: Path) -> bytes:
    try:
        return path.expanduser().read_bytes()
    except FileNotFoundError as error:
        raise UsageError(f"There is no file {path}.") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}.") from error
