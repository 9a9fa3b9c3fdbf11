"""Files of sound: every format gives the same samples, and what cannot be heard is one sentence."""

from __future__ import annotations

import io
import random
import stat
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxmtp.errors import MlxmtpError, UsageError
from mlxmtp.media.sound import PIECE, RATE, SHORTEST, Sound, frames_of, mel_features, open_sound
from mlxmtp.media.source import media_file, media_type_of
from scripts.goldens.pictures import sound
from tests.media.damage import SOUND_FORMATS, damaged, sounds

LOSSY = {"PCM_U8", "PCM_S8", "ULAW", "ALAW", "IMA_ADPCM", "VORBIS", "OPUS", "MPEG_LAYER_III"}
MEMO = sound(24_000, 1)


def encoded(samples: np.ndarray, container: str = "WAV", coding: str = "FLOAT", rate: int = RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=container, subtype=coding)
    return file.getvalue()


def opened(data: bytes) -> Sound:
    found = media_file(data, "memo.wav")
    assert found is not None
    assert found.kind == "audio"
    return open_sound(found.data, found.media_type, found.name)


@pytest.mark.parametrize(
    ("container", "coding"), [(one, how) for one, all_of in SOUND_FORMATS.items() for how in all_of]
)
def test_every_format_is_told_by_its_bytes_and_heard(container: str, coding: str) -> None:
    smooth = np.sin(np.arange(24_000) / 9).astype(np.float32) * 0.5
    heard = opened(encoded(smooth, container, coding)).samples
    assert abs(len(heard) - len(smooth)) <= (0 if coding not in LOSSY else 2500)  # frames of codecs, and their delay
    if coding not in LOSSY:
        np.testing.assert_allclose(heard, smooth, rtol=0, atol=2**-15)
    spectrum = np.abs(np.fft.rfft(heard[4000:20_000]))
    assert abs(int(spectrum.argmax()) - round(16_000 / (9 * 2 * np.pi))) <= 1


@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 44_100, 48_000, 96_000])
def test_other_rates_become_16_khz_by_soxr_and_channels_their_mean(rate: int) -> None:
    left, right = sound(rate + 77, 1), sound(rate + 77, 2)
    heard = opened(encoded(np.stack([left, right], 1), rate=rate)).samples
    mean = np.stack([left, right], 1).mean(axis=1)
    wanted = soxr.resample(mean, rate, RATE, quality="HQ")
    assert len(heard) == -(-len(left) * RATE // rate)  # librosa rounds upwards and fills up with zeros
    np.testing.assert_array_equal(heard[: len(wanted)], wanted[: len(heard)])


@settings(max_examples=20, deadline=None)
@given(
    count=st.integers(PIECE - 2 * RATE, 4 * PIECE),
    quiet=st.lists(st.integers(0, 4 * PIECE - 1), max_size=6),
)
def test_pieces_lose_nothing_are_short_enough_and_long_enough(count: int, quiet: list[int]) -> None:
    samples = np.ones(count, np.float32)
    for place in quiet:
        samples[place : place + 4000] = 0
    pieces = [*Sound("memo.wav", samples).pieces()]
    np.testing.assert_array_equal(np.concatenate(pieces), samples)
    assert all(len(one) <= PIECE for one in pieces)
    assert len(pieces) == 1 or all(len(one) >= RATE for one in pieces)
    assert len(pieces) <= -(-count // (PIECE - 5 * RATE))


def test_a_word_is_not_cut_where_it_is_quiet_nearby() -> None:
    samples = sound(PIECE + 5 * RATE, 1)
    pause = slice(PIECE - 3 * RATE, PIECE - 3 * RATE + 3200)
    samples[pause] = 0
    first, _ = Sound("memo.wav", samples).pieces()
    assert pause.start + 500 < len(first) < pause.stop - 500


def test_the_12bs_frames_end_in_zeros() -> None:
    frames = frames_of(np.ones(1000, np.float32), 640)
    assert frames.shape == (2, 640)
    assert frames[1, 360:].sum() == 0
    assert frames_of(np.ones(1280, np.float32), 640).shape == (2, 640)


def test_silence_is_the_logarithm_of_the_floor() -> None:
    np.testing.assert_allclose(mel_features(np.zeros(5000, np.float32)), np.log(1e-3), rtol=1e-6)


@pytest.mark.parametrize("count", [0, 1, 80, SHORTEST - 1])
def test_too_short_is_said(count: int) -> None:
    with pytest.raises(UsageError, match=r"memo\.wav is too short"):
        opened(encoded(MEMO[:count]))
    opened(encoded(MEMO[:SHORTEST]))


def test_only_what_is_converted_needs_a_temporary_folder_and_its_want_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mp3 = encoded(MEMO, "MP3", "MPEG_LAYER_III")
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
        assert len(opened(encoded(MEMO)).samples) == len(MEMO)
        with pytest.raises(
            MlxmtpError, match=r"No such file or directory\), so memo.wav cannot be read: .* set TMPDIR"
        ):
            opened(mp3)
    with monkeypatch.context() as patch:
        patch.setattr("mlxmtp.media.sound._PATIENCE", 0)
        with pytest.raises(UsageError, match="takes longer than 0 seconds to convert"):
            opened(mp3)
    with pytest.raises(UsageError, match="is damaged, or no audio file"):
        opened(b"ID3\4" + bytes(2000))
    monkeypatch.setattr("mlxmtp.media.sound._LITTLE", 2**60)
    with pytest.raises(MlxmtpError, match="No space left on device"):
        opened(b"ID3\4" + bytes(2000))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_samples_that_are_no_numbers_are_refused(value: float) -> None:
    damaged = MEMO.copy()
    damaged[5000] = value
    with pytest.raises(UsageError, match="samples that are no audio"):
        opened(encoded(damaged))


def test_hours_are_bounded_before_they_are_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlxmtp.media.sound.MOST_SECONDS", 3600)
    silent = encoded(np.zeros(3600 * 1000 + 1, np.float32), "FLAC", "PCM_S8", 1000)
    assert len(silent) < 2**20
    with pytest.raises(UsageError, match="is longer than 1 hour"):
        opened(silent)


def test_headers_that_promise_more_than_there_is() -> None:
    whole = encoded(MEMO, coding="PCM_16")
    cut = opened(whole[: len(whole) // 2])
    assert 10_000 < len(cut.samples) < 13_000
    assert "is cut off" in cut.notes[0]
    assert not opened(whole).notes
    streamed = whole[:4] + b"\xff\xff\xff\xff" + whole[8:40] + b"\xff\xff\xff\xff" + whole[44:]  # ffmpeg to a pipe
    assert not opened(streamed).notes
    assert len(opened(streamed).samples) == len(MEMO)


@pytest.mark.parametrize("channels", [1, 2])
def test_a_flac_that_is_cut_or_of_unknown_length_is_read_and_a_damaged_one_refused(channels: int) -> None:
    memo = np.stack([sound(300_000, 1)] * channels, 1)
    whole = encoded(memo, "FLAC", "PCM_16")
    unknown = whole[:21] + bytes([whole[21] & 0xF0]) + bytes(4) + whole[26:]  # as ffmpeg writes it to a pipe
    wanted = opened(whole).samples
    assert len(wanted) == 300_000
    streamed = opened(unknown)
    assert not streamed.notes
    np.testing.assert_array_equal(streamed.samples, wanted)
    for data in (whole, unknown):
        cut = opened(data[: len(data) * 2 // 3])
        assert "is cut off" in cut.notes[0]
        assert len(cut.samples) > 150_000
        np.testing.assert_array_equal(cut.samples, wanted[: len(cut.samples)])
        damaged = bytearray(data)
        damaged[len(data) // 3] ^= 0x55
        with pytest.raises(UsageError, match="is damaged"):
            opened(bytes(damaged))


@pytest.mark.parametrize(
    "head",
    [b"ID3 tags are explained here", b"OggS is a container", b"caffeine is a drug", b"RIFF is a format of files"],
)
def test_words_that_begin_like_a_sound_are_text(head: bytes) -> None:
    assert media_type_of(head) is None


def test_aac_takes_a_converter_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memo = b"\0\0\0\x1cftypM4A \0\0\0\0" + bytes(200)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("mlxmtp.media.sound.find_spec", lambda name: None)  # no PyAV
    with pytest.raises(UsageError, match=r"memo\.wav is AAC, which takes PyAV or ffmpeg to read"):
        opened(memo)
    (tmp_path / "made.wav").write_bytes(encoded(MEMO))

    def convert_by(body: str, name: str = "ffmpeg") -> None:
        program = tmp_path / name
        program.write_text(f"#!{sys.executable}\nimport shutil, sys\n{body}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    convert_by(f"shutil.copy({str(tmp_path / 'made.wav')!r}, sys.argv[-1])")
    np.testing.assert_array_equal(opened(memo).samples, MEMO)
    convert_by("open(sys.argv[-1], 'w').close(); sys.exit(1)", "afconvert")  # a Mac's, which knows no Opus in WebM
    np.testing.assert_array_equal(opened(memo).samples, MEMO)
    convert_by("sys.exit('moov atom not found')")
    with pytest.raises(UsageError, match=r"memo\.wav is damaged"):
        opened(memo)


def check(data: bytes) -> str:
    """Read a file as the program does; return what it says, or nothing if it is a sound. Other faults are raised."""
    try:
        file = media_file(data, "x")
        if file is None or file.kind != "audio":
            return "no audio"
        heard = open_sound(file.data, file.media_type, file.name)
    except UsageError as error:
        said = str(error)
        assert said.startswith("x ")
        assert said.endswith(".")
        assert "\n" not in said
        return said
    assert heard.samples.dtype == np.float32
    assert len(heard.samples) >= SHORTEST
    assert np.isfinite(mel_features(heard.samples[:PIECE])).all()
    return ""


def test_damaged_files_are_sounds_or_one_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    """`python -m scripts.hostile_media --sounds` does so with thousands, in processes of their own."""
    for name, data in sounds().items():
        assert check(data) == "", name
        dice = random.Random(name)
        for _ in range(3 if name.startswith("MP3") else 8):  # each MP3 is a process of its own
            check(damaged(data, dice))
    assert capfd.readouterr() == ("", "")  # no library speaks past us
