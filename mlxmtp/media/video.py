"""Videos as a model sees them: frames that are spread evenly over the whole, each a picture behind its time.

The reference is transformers' Gemma4VideoProcessor with PyAV: frame i of 32 is number floor(i * total / 32), its time
that number by the mean rate. Other on purpose: frames are turned as the file says, a video of fewer frames is seen
(there it is an error), and sizes are changed by Pillow, as those of pictures are.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

from mlxmtp.errors import UsageError
from mlxmtp.media.image import Picture, open_picture

if TYPE_CHECKING:
    from PIL import Image

_RATE = Fraction(24)  # frames a second where the file does not say
_IN_ORDER = 10_000  # frames of a video that is decoded from its beginning; in a longer one each frame is looked for
_FAULTS = (ArithmeticError, AttributeError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError)


class Frame(NamedTuple):
    """A picture and its time, `minutes:seconds`."""

    time: str
    picture: Picture


class Video:
    """A video in the bytes of a file; `seconds` is its length and `count` how many frames of it are seen."""

    def __init__(self, data: bytes, name: str, frames: int) -> None:
        """Read the header; at most `frames` are seen. Raises UsageError for damage, sounds alone, and without PyAV."""
        try:
            import av
        except ImportError:
            raise UsageError(
                f"{name} is a video, which takes PyAV to see: pip install 'mlxmtp[media]', or give images of it."
            ) from None
        self.name = name
        self._faults = (*_FAULTS, av.error.FFmpegError)
        try:
            self._container: Any = av.open(io.BytesIO(data), "r")
            self._stream: Any = self._container.streams.video[0]
            self._stream.thread_type = "AUTO"
            self._rate: Fraction = self._stream.average_rate or _RATE
            total: int = self._stream.frames
            if not total:  # the header does not name it
                total = sum(packet.size > 0 for packet in self._container.demux(self._stream))
                self._container.seek(0)
        except self._faults as error:
            raise self._damaged(error) from error
        self.seconds = float(total / self._rate)
        self.count = min(total, frames)
        self._wanted = [i * total // self.count for i in range(self.count)]
        self._total = total

    def frames(self) -> Iterator[Frame]:
        """Yield the frames in order, fewer where the file breaks off. Raises UsageError if there are none at all."""
        found = self._in_order() if self._total <= _IN_ORDER else self._sought()
        count = 0
        with self._container:
            while (frame := self._next(found, count)) is not None:
                count += 1
                yield frame
        if not count:
            raise UsageError(f"{self.name} holds no frame that can be read: give an undamaged file.")

    def _next(self, found: Iterator[tuple[int, Any]], before: int) -> Frame | None:
        """Return the next frame; None behind the last one that can be read. Raises UsageError if that is the first."""
        try:
            number, frame = next(found)
            image: Image.Image = frame.to_image().rotate(frame.rotation, expand=True)
        except StopIteration:
            return None
        except self._faults as error:
            if not before:
                raise self._damaged(error) from error
            return None
        seconds = number / self._rate
        return Frame(f"{int(seconds // 60):02d}:{int(seconds % 60):02d}", open_picture(image, self.name))

    def _in_order(self) -> Iterator[tuple[int, Any]]:
        wanted = set(self._wanted)
        for number, frame in enumerate(self._container.decode(self._stream)):
            if number in wanted:
                yield number, frame
            if number >= self._wanted[-1]:
                return

    def _sought(self) -> Iterator[tuple[int, Any]]:
        for number in self._wanted:
            at = (self._stream.start_time or 0) + int(number / self._rate / self._stream.time_base)
            self._container.seek(at, stream=self._stream)
            for frame in self._container.decode(self._stream):
                if frame.pts is not None and frame.pts >= at:
                    yield number, frame
                    break

    def _damaged(self, error: BaseException) -> UsageError:
        said = str(error).strip().rstrip(".") or type(error).__name__
        return UsageError(f"{self.name} is damaged, or no video that can be read ({said:.100}): give MP4 or WebM.")
