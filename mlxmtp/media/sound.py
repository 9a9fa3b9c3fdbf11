"""Sounds as a model hears them: mono samples at 16 kHz, in pieces of at most 30 s, and features of them.

The reference is transformers' loader (librosa: libsndfile, mean of the channels, soxr) and its
Gemma4AudioFeatureExtractor. Other on purpose: there what lies behind 30 s is lost, here it is a piece of its own.
"""

from __future__ import annotations

import io
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from errno import ENOSPC
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import soundfile
import soxr

from mlxmtp.errors import MlxmtpError, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

RATE = 16_000
MOST_SECONDS = 3 * 3600
"""Of one file: at 25 tokens a second, more than any model's context holds."""
SHORTEST = 161
"""Samples below which there is no frame, and so no token."""
PIECE = 30 * RATE
"""Samples that a model hears at once; the 12B's preparation has no such bound, but it was trained with it."""
_SEARCHED = 5 * RATE  # of a piece's end, for a quiet place
_QUIET = RATE // 10  # samples of such a place
_LEFT = RATE  # at least so much for the last piece
_HOP, _FRAME, _FFT = 160, 320, 512
_MELS, _FLOOR, _HIGHEST = 128, 1e-3, 8000.0
_RATES = range(1000, 768_001)
_LOUDEST = 1e6  # floating-point files may go beyond 1, and some hold whole numbers
_BLOCK = 2**18  # values that are decoded at once
_UNKNOWN = 2**63 - 1  # frames, for libsndfile: a FLAC from a pipe does not say how many it has
_FAULTS = (ArithmeticError, AssertionError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError)
"""What soundfile and soxr raise for damaged files."""
_CONVERTED = ("audio/mpeg", "audio/mp4", "audio/aac", "audio/webm")
_PATIENCE = 600  # seconds for a converter
_LITTLE = 2**20  # bytes: with less a disk is full
_DECODE = f"""
import sys, soundfile
with soundfile.SoundFile(sys.argv[1]) as file, soundfile.SoundFile(
    sys.argv[2], "w", file.samplerate, 1, "FLOAT", format="RF64"
) as made:
    for block in file.blocks({_BLOCK}, dtype="float32", always_2d=True, frames={MOST_SECONDS + 1} * file.samplerate):
        made.write(block.mean(axis=1))
"""
_DECODE_BY_AV = f"""
import sys, av, soundfile
with av.open(sys.argv[1]) as container:
    stream = container.streams.audio[0]
    with soundfile.SoundFile(sys.argv[2], "w", stream.rate, 1, "FLOAT", format="RF64") as made:
        left = {MOST_SECONDS + 1} * stream.rate
        resampler = av.AudioResampler(format="fltp", rate=stream.rate)
        for frame in container.decode(stream):
            for part in resampler.resample(frame):
                made.write(part.to_ndarray().mean(axis=0))
                left -= part.samples
            if left <= 0:
                break
"""
_CONVERTERS = {
    "afconvert": ["-f", "WAVE", "-d", "LEF32", "{source}", "{made}"],  # a part of macOS
    "ffmpeg": [
        "-nostdin", "-v", "error", "-protocol_whitelist", "file", "-i", "{source}", "-vn", "-t", f"{MOST_SECONDS + 1}",
        "-c:a", "pcm_f32le", "-rf64", "auto", "{made}",
    ],
}  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Sound:
    """Samples [n] of a file, mono at 16 kHz. `notes`: sentences on what was found wrong with it."""

    name: str
    samples: NDArray[np.float32]
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        return len(self.samples) / RATE

    def pieces(self) -> Iterator[NDArray[np.float32]]:
        """Yield the samples in pieces of at most 30 s, cut at the quietest place of a piece's last 5 s."""
        rest = self.samples
        while len(rest) > PIECE:
            first, last = PIECE - _SEARCHED, min(PIECE, len(rest) - _LEFT)
            energy = np.concatenate([[0.0], np.cumsum(np.square(rest[first:last], dtype=np.float64))])
            around = energy[_QUIET:] - energy[:-_QUIET]
            cut = last - _QUIET // 2 - int(np.argmin(around[::-1]))  # the last one of those that are as quiet
            yield rest[:cut]
            rest = rest[cut:]
        yield rest


def open_sound(data: bytes, media_type: str, name: str = "the audio file") -> Sound:
    """Return the sound in the bytes of a file. Raises UsageError, which names it, for what cannot be heard.

    Raises MlxmtpError where it has to be converted and there is no room for that.
    """
    stream = _converted(data, media_type, name) if media_type in _CONVERTED else io.BytesIO(data)
    try:
        with stream, _Stream(stream) as file:
            samples = _resampled(file, name)
            cut = file.cut or file.tell() < file.frames < _UNKNOWN
    except _FAULTS as error:
        said = str(getattr(error, "error_string", error)).strip().rstrip(".") or type(error).__name__
        raise UsageError(f"{name} is damaged ({said:.100}): give an undamaged file.") from error
    if len(samples) < SHORTEST:
        told = f"{1000 * len(samples) / RATE:.0f} ms" if len(samples) else "no samples"
        raise UsageError(f"{name} is too short: it has {told}, and 11 ms are the least that a model hears.")
    if not float(np.abs(samples).max()) < _LOUDEST:  # false for NaN, too
        raise UsageError(f"{name} is damaged (samples that are no audio): give an undamaged file.")
    size = int.from_bytes(data[4:8], "little") + 8
    promised = data[:4] == b"RIFF" and size < 2**31 - 2**16  # what writes to a pipe cannot know the size
    cut = cut or (promised and len(data) + 1 < size)
    return Sound(name, samples, (f"{name} is cut off: what there is of it was read.",) if cut else ())


def as_wav(sound: Sound) -> bytes:
    """Return a sound as a WAV file of 16 bits."""
    file = io.BytesIO()
    soundfile.write(file, sound.samples, RATE, format="WAV", subtype="PCM_16")
    return file.getvalue()


def mel_features(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return logarithms of mel magnitudes [frames, 128], 100 frames a second, of at least SHORTEST samples."""
    padded = np.pad(samples, (_FRAME // 2, 0))
    count = (len(padded) - _FRAME - 1) // _HOP + 1  # a frame needs a sample behind it, as the reference has it
    frames = np.lib.stride_tricks.sliding_window_view(padded, _FRAME)[: count * _HOP : _HOP]
    window = np.hanning(_FRAME + 1)[:-1].astype(np.float32)
    magnitudes = np.abs(np.fft.rfft(frames * window, n=_FFT))
    return np.log(magnitudes @ mel_filters() + _FLOOR).astype(np.float32)


def frames_of(samples: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """Return the samples in frames [count, width], zeros behind the last."""
    return np.pad(samples, (0, -len(samples) % width)).reshape(-1, width)


@cache
def mel_filters() -> NDArray[np.float64]:
    """Return triangles [frequencies, 128] that are evenly spaced on HTK's mel scale and not scaled by their area."""
    highest = 2595.0 * math.log10(1.0 + _HIGHEST / 700.0)
    corners = 700.0 * (10.0 ** (np.linspace(0.0, highest, _MELS + 2) / 2595.0) - 1.0)
    distances = corners - np.linspace(0.0, RATE / 2, _FFT // 2 + 1)[:, None]
    widths = np.diff(corners)
    rising, falling = -distances[:, :-2] / widths[:-1], distances[:, 2:] / widths[1:]
    return np.maximum(0.0, np.minimum(rising, falling))


class _Stream(soundfile.SoundFile):  # type: ignore[misc]  # soundfile has no types
    """A file that is read from its beginning to its end, where no seek can fail; `cut`: it ends inside a frame."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self.cut = stream, False
        super().__init__(stream)

    def seekable(self) -> bool:
        return False  # soundfile seeks after every read, and a FLAC that is cut off or of unknown length has no end

    def rows(self, buffer: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the next rows in `buffer` [rows, channels], none at the end. Raises LibsndfileError for damage."""
        before = self.tell()
        try:
            return buffer[: len(self.read(out=buffer))]
        except soundfile.LibsndfileError:
            if self._stream.read(1):
                raise
            self.cut = True
            return buffer[: self.tell() - before]


def _resampled(file: _Stream, name: str) -> NDArray[np.float32]:
    """Return the mean of all channels at 16 kHz, as librosa makes it, read in blocks: no more is in memory."""
    rate, channels = file.samplerate, file.channels
    if rate not in _RATES:
        raise UsageError(f"{name} has {rate:,} samples a second, which no recording has: give an undamaged file.")
    resampler = None if rate == RATE else soxr.ResampleStream(rate, RATE, 1, dtype="float32", quality="HQ")
    parts: list[NDArray[np.float32]] = []
    total, more = 0, True
    buffer = np.empty((max(1, _BLOCK // channels), channels), np.float32)
    while more:
        block = file.rows(buffer)
        more = len(block) > 0
        total += len(block)
        if total > MOST_SECONDS * rate:
            raise UsageError(f"{name} is longer than {MOST_SECONDS // 3600} hours, which no model hears: give a part.")
        mono = block.mean(axis=1) if channels > 1 else block[:, 0].copy()
        parts.append(mono if resampler is None else resampler.resample_chunk(mono, last=not more))
    samples, wanted = np.concatenate(parts), math.ceil(total * RATE / rate)
    return np.pad(samples, (0, max(0, wanted - len(samples))))[:wanted]


def _converted(data: bytes, media_type: str, name: str) -> BinaryIO:
    """Return a file that libsndfile reads, of one that it cannot read, or about which it writes to our stderr.

    Raises UsageError for what cannot be converted, MlxmtpError without a temporary folder that can be written.
    """
    try:
        with TemporaryDirectory() as folder:
            source, made = Path(folder, "source"), Path(folder, "made.wav")
            source.write_bytes(data)
            for command in _commands(media_type, source, made, name):
                if not (problem := _run(command, made)):
                    return made.open("rb")  # it can be read, though its folder goes
            raise UsageError(f"{name} {problem}.")
    except OSError as error:
        said = f"The temporary folder cannot be written ({error.strerror or error}), so {name} cannot be read"
        raise MlxmtpError(f"{said}: make room there, or set TMPDIR to another folder.") from error


def _commands(media_type: str, source: Path, made: Path, name: str) -> list[list[str]]:
    """Return what can convert a file here, one after the other. Raises UsageError if nothing can."""
    if media_type == "audio/mpeg":
        return [[sys.executable, "-P", "-c", _DECODE, str(source), str(made)]]
    if find_spec("av") is not None:
        return [[sys.executable, "-P", "-c", _DECODE_BY_AV, str(source), str(made)]]
    found = [
        [program, *(one.format(source=source, made=made) for one in options)]
        for program, options in _CONVERTERS.items()
        if shutil.which(program)
    ]
    if not found:
        raise UsageError(
            f"{name} is {'Opus in WebM' if media_type == 'audio/webm' else 'AAC'}, which takes PyAV or ffmpeg "
            "to read: pip install 'mlxmtp[media]', or give WAV, FLAC or MP3."
        )
    return found


def _run(command: list[str], made: Path) -> str:
    """Return why a converter has not made its file, which is gone then: others refuse to write over one.

    Raises OSError for a full disk.
    """
    try:
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE, check=True)
    except subprocess.TimeoutExpired:
        problem = f"takes longer than {_PATIENCE} seconds to convert: give a part of it"
    except (OSError, subprocess.SubprocessError):
        if shutil.disk_usage(made.parent).free < _LITTLE:
            raise OSError(ENOSPC, os.strerror(ENOSPC)) from None
        problem = "is damaged, or no audio file that can be read: give WAV, FLAC or Ogg"
    else:
        return ""
    made.unlink(missing_ok=True)
    return problem
