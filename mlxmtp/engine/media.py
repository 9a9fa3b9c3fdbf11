"""Pictures and sounds in a prompt: one placeholder each becomes marks and soft tokens, which are made when read.

Rows of a medium have negative ids made of what the network gets of it, so prompts can be compared as before: equal ids
mean equal rows.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

from mlxmtp.errors import LoadError, UsageError
from mlxmtp.files import expand_home
from mlxmtp.limits import IMAGE_TOKENS as BUDGETS
from mlxmtp.machine.memory import Largest
from mlxmtp.media.source import Kind, MediaFile, digest, media_file
from mlxmtp.models.towers import AudioConfig, VisionConfig, stored_audio, stored_vision

if TYPE_CHECKING:
    import mlx.core as mx

    from mlxmtp.decode.prefill import SoftTokens
    from mlxmtp.models.config import ModelConfig

_IN_CONTENTS = ("image", "audio", "video")  # types of parts
IMAGE_TOKENS = 280  # of a picture, at most, unless somebody says otherwise; the published default
SOUND_TOKENS = 750  # of 30 s, the longest piece of a sound
FRAMES, FRAME_TOKENS = 32, 70  # of a video, at most, and of a frame
VIDEO_TOKENS = FRAMES * (FRAME_TOKENS + 8)  # with times and marks
LARGEST: dict[Kind, Largest] = {"image": Largest(picture=max(BUDGETS)), "audio": Largest(sound=SOUND_TOKENS)}
"""The most of each kind that may be read."""
_KEPT = 2**28  # bytes of soft tokens, and of pixels, that are kept for a text that is read again; the newest always are


class Marks(NamedTuple):
    """Ids of a medium's placeholder in a prompt and of the marks around its soft tokens."""

    placeholder: int | None
    begin: int | None
    end: int | None


SPELLINGS: dict[Kind, tuple[str, str, str]] = {
    "image": ("<|image|>", "<|image>", "<image|>"),
    "audio": ("<|audio|>", "<|audio>", "<audio|>"),
}
_IN_CONFIG: dict[Kind, tuple[tuple[str, int], ...]] = {
    "image": (("image_token_id", 258880), ("boi_token_id", 255999), ("eoi_token_id", 258882)),
    "audio": (("audio_token_id", 258881), ("boa_token_id", 256000), ("eoa_token_index", 258883)),
}


@dataclass(frozen=True, slots=True, eq=False)
class Medium:
    """A picture or a sound as the network gets it: `data` is pixels [H, W, 3] or frames [n, W], `digest` their hash.

    `count`: soft tokens. `about`: its size in words. `notes`: sentences on what was left out of the file. `pieces`: of
    a long sound, or the frames of a video, each with marks of its own; `times` of frames are written before them.
    """

    kind: Kind
    name: str
    digest: str
    count: int
    data: Any
    about: str = ""
    notes: tuple[str, ...] = ()
    pieces: tuple[Medium, ...] = ()
    times: tuple[str, ...] = ()

    @property
    def written(self) -> str:
        """The text that stands for it in a prompt: a placeholder, for a video one behind the time of each frame."""
        placeholder = SPELLINGS[self.kind][0]
        return " ".join(f"{time} {placeholder}" for time in self.times) or placeholder

    @property
    def placed(self) -> tuple[Medium, ...]:
        """Those of its parts that have a placeholder of their own in `written`."""
        return self.pieces if self.times else (self,)

    @property
    def parts(self) -> tuple[Medium, ...]:
        """The pieces, or the whole: each has marks around it."""
        return self.pieces or (self,)

    @property
    def nbytes(self) -> int:
        return sum(int(one.data.nbytes) for one in self.parts)

    @property
    def ids(self) -> list[int]:
        """Negative ids of its rows, alike for what the network reads alike."""
        content = hashlib.shake_256(f"{self.kind} {self.digest}".encode()).digest(4 * self.count)
        words = (int.from_bytes(content[at : at + 4], "big") for at in range(0, len(content), 4))
        return [-1 - (word >> 1) for word in words]


class Media:
    """Senses of a checkpoint. Its towers are loaded when the first picture or sound is read."""

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._soft: dict[str, mx.array] = {}
        self._prepared: dict[tuple[str, int], Medium] = {}
        self._preparing = Lock()  # one picture after another: each takes its own size of memory

    @property
    def sees(self) -> bool:
        """True if the checkpoint reads pictures. Raises LoadError."""
        return self._sizes is not None

    @property
    def hears(self) -> bool:
        """True if the checkpoint reads sounds. Raises LoadError."""
        return self._audio_sizes is not None

    @property
    def marks(self) -> dict[Kind, Marks]:
        """Ids of placeholders and marks by config.json."""
        raw = self._config.raw
        return {
            kind: Marks(*(value if isinstance(value := raw.get(key), int) else default for key, default in keys))
            for kind, keys in _IN_CONFIG.items()
        }

    @property
    def _published_budget(self) -> int:
        """Tokens of a picture, at most, that the checkpoint was published with."""
        value = self._config.raw.get("vision_soft_tokens_per_image")
        return value if isinstance(value, int) and value in BUDGETS else IMAGE_TOKENS

    def prepare(self, source: object, image_tokens: int | None = None) -> Medium:
        """Return what the network gets of a file: its path, its bytes, or a picture that Pillow has opened.

        `image_tokens`: at most so many for a picture. Raises UsageError for what is missing, damaged or neither,
        LoadError if the model lacks the sense, ValueError for a number of tokens that no picture can have.
        """
        from PIL.Image import Image

        from mlxmtp.media.image import open_picture

        budget = image_tokens or self._published_budget
        if isinstance(source, Medium):
            return source
        if isinstance(source, Image):
            return self._see(open_picture(source), budget)
        file = file_of(source)
        key = file.digest, budget
        known = self._prepared.pop(key, None)
        if known is None:
            if file.kind == "image":
                known = self._see(open_picture(file.data, file.name), budget)
            else:
                known = self._hear(file) if file.kind == "audio" else self._watch(file)
        _keep(self._prepared, key, known, lambda one: one.nbytes)
        return known

    def prepared(self, messages: Sequence[Mapping[str, Any]], image_tokens: int | None) -> list[Mapping[str, Any]]:
        """Return messages in which the source of every picture and sound is what the network gets of it.

        `image_tokens` holds for pictures whose part says nothing of its own. May be called from several threads.
        """

        def part(one: Any) -> Any:
            kind = one.get("type") if isinstance(one, Mapping) else None
            if kind not in _IN_CONTENTS:
                return one
            medium = self.prepare(one.get(kind), one.get("image_tokens") or image_tokens)
            return {"type": medium.kind, medium.kind: medium}

        with self._preparing:
            return [
                {**one, "content": [*map(part, content)]}
                if isinstance(content := one.get("content"), list | tuple)
                else one
                for one in messages
            ]

    def soft(self, ids: Sequence[int], media: Sequence[Medium]) -> list[SoftTokens]:
        """Return the soft tokens that stand at runs of negative ids, those of `media` in order."""
        from mlxmtp.decode.prefill import SoftTokens

        found, end = [], 0
        for one in (part for medium in media for part in medium.parts):
            start = next(place for place in range(end, len(ids)) if ids[place] < 0)
            end, block = start + one.count, one.kind == "image" and self._config.sees_ahead
            found.append(SoftTokens(start, one.count, partial(self._rows, one), block))
        return found

    def forget(self) -> None:
        """Keep no soft tokens: the next reading computes them anew."""
        self._soft.clear()

    def _see(self, picture: Any, budget: int) -> Medium:
        if (vision := self._sizes) is None:
            raise LoadError(
                f"The model in {self._config.folder} has no vision tower, so it cannot see {picture.name}: take one "
                "that has, as e2b and larger ones do, converted without --text-only."
            )
        pixels = picture.pixels(budget, vision.side)
        longest = max(pixels.shape[:2]) // (vision.side if vision.unified else vision.patch)
        if longest > vision.positions:
            raise UsageError(
                f"{picture.name} has {longest} patches in a line, and this model places {vision.positions}: crop it, "
                "or give it fewer tokens."
            )
        count, about = pixels.shape[0] * pixels.shape[1] // vision.side**2, "{}x{}".format(*picture.size)
        return Medium("image", picture.name, digest(pixels), count, pixels, about, picture.notes)

    def _watch(self, file: MediaFile) -> Medium:
        from mlxmtp.media.video import Video

        video, frames, times = Video(file.data, file.name, FRAMES), [], []
        for time, picture in video.frames():
            frames.append(self._see(picture, FRAME_TOKENS))
            times.append(time)
        told = f"{file.name} is seen in {len(frames)} frames, without its audio"
        cut = "" if len(frames) == video.count else ": the rest cannot be read"
        whole, count = "".join(one.digest for one in frames), sum(one.count for one in frames)
        about = f"{video.seconds:.0f} s, {len(frames)} frames"
        return Medium("image", file.name, whole, count, None, about, (f"{told}{cut}.",), tuple(frames), tuple(times))

    def _hear(self, file: MediaFile) -> Medium:
        from mlxmtp.media.sound import PIECE, RATE, frames_of, mel_features, open_sound

        if (audio := self._audio_sizes) is None:
            raise LoadError(
                f"The model in {self._config.folder} has no audio tower, so it cannot hear {file.name}: take e2b, e4b "
                "or 12b, converted without --text-only."
            )
        sound = open_sound(file.data, file.media_type, file.name)
        about, pieces = f"{sound.seconds:.1f} s", []
        for samples in sound.pieces():
            data = frames_of(samples, audio.hidden) if audio.unified else mel_features(samples)
            count = len(data) if audio.unified else -(-len(data) // 4)
            pieces.append(Medium("audio", file.name, digest(data), count, data, about, sound.notes))
        if len(pieces) == 1:
            return pieces[0]
        told = f"{file.name} has {about}, and a model hears {PIECE // RATE} s at once"
        notes = (*sound.notes, f"{told}: it is read in {len(pieces)} pieces, cut where it is quiet.")
        whole = "".join(one.digest for one in pieces)
        return Medium("audio", file.name, whole, sum(one.count for one in pieces), None, about, notes, tuple(pieces))

    def _rows(self, medium: Medium) -> mx.array:
        """Return the soft tokens [S, H] of `medium`, those of the last ones from memory. Raises DeviceFailed."""
        import mlx.core as mx

        from mlxmtp.models import device

        known = self._soft.pop(medium.digest, None)
        if known is None:
            try:
                tower = self._vision if medium.kind == "image" else self._audio
                known = tower(mx.array(medium.data))
                mx.eval(known)
            except RuntimeError as error:
                raise device.failure(error) from error
        _keep(self._soft, medium.digest, known, lambda one: int(one.nbytes))
        return known

    @cached_property
    def _sizes(self) -> VisionConfig | None:
        return stored_vision(self._config)

    @cached_property
    def _vision(self) -> Any:
        from mlxmtp.models.load import load_vision

        return load_vision(self._config)

    @cached_property
    def _audio_sizes(self) -> AudioConfig | None:
        return stored_audio(self._config)

    @cached_property
    def _audio(self) -> Any:
        from mlxmtp.models.load import load_audio

        return load_audio(self._config)


def expanded(ids: Sequence[int], media: Sequence[Medium], marks: Mapping[Kind, Marks]) -> list[int]:
    """Put begin mark, soft tokens and end mark where `ids` has a placeholder, one for each of `media` in order.

    Raises ValueError if they are not as many, or a placeholder stands for another kind.
    """
    kinds = {mark.placeholder: kind for kind, mark in marks.items() if mark.placeholder is not None}
    places = [place for place, token in enumerate(ids) if token in kinds]
    if len(places) != len(media):
        raise ValueError(f"the prompt has {len(places)} placeholders for {len(media)} images and audio files")
    made: list[int] = []
    end = 0
    for place, medium in zip(places, media, strict=True):
        if kinds[ids[place]] != medium.kind:
            raise ValueError(
                f"the placeholder of {medium.name}, which is {medium.kind}, is one for {kinds[ids[place]]}"
            )
        _, begin, behind = marks[medium.kind]
        around = [[] if mark is None else [mark] for mark in (begin, behind)]
        made += ids[end:place]
        for part in medium.parts:
            made += [*around[0], *part.ids, *around[1]]
        end = place + 1
    return [*made, *ids[end:]]


def with_times(text: str, media: Sequence[Medium]) -> str:
    """Return a rendered prompt in which what stands for `media`, in order, stands for every frame of a video."""
    if not any(one.times for one in media):
        return text
    left = iter(media)
    placeholders = "|".join(re.escape(spelled[0]) for spelled in SPELLINGS.values())
    return re.sub(placeholders, lambda found: next((one.written for one in left), found[0]), text)


def media_in(messages: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Return the source of every picture and sound in the contents of messages, in order."""
    return [part[part["type"]] for part in _parts(messages) if part.get("type") in _IN_CONTENTS]


def kinds_in(messages: Sequence[Mapping[str, Any]]) -> set[Kind]:
    """Return the kinds of media in the contents of messages."""
    return {kind for part in _parts(messages) for kind in SPELLINGS if part.get("type") == kind}


def largest(media: Sequence[Medium]) -> Largest:
    """Return the soft tokens of the largest picture and of the longest piece of a sound."""
    parts = [part for one in media for part in one.parts]
    most = (max((one.count for one in parts if one.kind == kind), default=0) for kind in SPELLINGS)
    return Largest(*most)


def _parts(messages: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    for one in messages:
        content = one.get("content")
        yield from (part for part in content if isinstance(part, Mapping)) if isinstance(content, list | tuple) else ()


def file_of(source: object) -> MediaFile:
    """Return the picture, sound or video in a file, by its path or its bytes. Raises UsageError."""
    if isinstance(source, MediaFile):
        return source
    name, data = "the image or audio file", source
    if isinstance(source, str | Path):
        name = str(source)
        try:
            data = expand_home(source).read_bytes()
        except FileNotFoundError as error:
            raise UsageError(f"There is no file {name}.") from error
        except OSError as error:
            raise UsageError(f"{name} cannot be read: {error.strerror or error}.") from error
    if not isinstance(data, bytes | bytearray | memoryview):
        raise TypeError(f"an image or audio file is a path, bytes or a Pillow image, not {type(source).__name__}")
    if (found := media_file(bytes(data), name)) is None:
        raise UsageError(
            f"{name} is neither a readable image nor audio: give JPEG, PNG, WebP, GIF, TIFF, WAV, FLAC, MP3 or Ogg."
        )
    return found


def _keep(kept: dict[Any, Any], key: object, value: object, size: Callable[[Any], int]) -> None:
    """Put a value behind the others and let the oldest go beyond _KEPT bytes."""
    kept[key] = value
    while len(kept) > 1 and sum(map(size, kept.values())) > _KEPT:
        del kept[next(iter(kept))]
