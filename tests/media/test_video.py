"""Videos: the reference's frames and times, as text and pictures of a prompt; a sentence for what is none."""

from __future__ import annotations

import io
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlxmtp.chat.material import gather
from mlxmtp.engine.events import Text
from mlxmtp.engine.media import FRAMES, Media, expanded, largest
from mlxmtp.engine.model import Model
from mlxmtp.engine.params import Params
from mlxmtp.engine.tokenizer import Tokenizer
from mlxmtp.errors import UsageError
from mlxmtp.media import sound, video
from mlxmtp.media.source import media_file
from mlxmtp.models.config import read_config
from tests.media.damage import damaged
from tests.seeing import IDS, write_seeing_pocket

av: Any = pytest.importorskip("av")

WIDTH, HEIGHT = 64, 48


def clip(count: int, *, rate: int = 8, container: str = "mp4", codec: str = "mpeg4", sounds: bool = False) -> bytes:
    """Return a video whose frame i is grey of level 2 * i, its upper half dark."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as made:
        stream = made.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        tone = made.add_stream("aac", rate=16_000) if sounds else None
        for i in range(count):
            pixels = np.full((HEIGHT, WIDTH, 3), min(2 * i + 20, 255), np.uint8)
            pixels[: HEIGHT // 2] //= 2
            made.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        made.mux(stream.encode())
        if tone is not None:
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.float32), format="fltp", layout="mono")
            frame.rate = 16_000
            made.mux(tone.encode(frame))
            made.mux(tone.encode())
    return file.getvalue()


def memo(container: str = "mp4", codec: str = "aac") -> bytes:
    """Return a second of sound without pictures in a container of both."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as made:
        tone = made.add_stream(codec, rate=48_000, layout="mono")
        samples = np.sin(np.arange(48_000) / 20, dtype=np.float32)[None] / 4
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.rate = 48_000
        made.mux(tone.encode(frame))
        made.mux(tone.encode())
    return file.getvalue()


def levels(data: bytes) -> list[tuple[str, int]]:
    return [
        (frame.time, int(np.asarray(frame.picture.image)[-4:].mean().round()))
        for frame in video.Video(data, "clip", FRAMES).frames()
    ]


@pytest.mark.parametrize(("container", "codec"), [("mp4", "mpeg4"), ("webm", "libvpx")])
def test_frames_are_spread_evenly_over_the_whole_as_the_reference_does(container: str, codec: str) -> None:
    found = levels(clip(100, container=container, codec=codec))  # webm's header names no number of frames
    wanted = [i * 100 // 32 for i in range(32)]
    assert [time for time, _ in found] == [f"00:{number // 8:02d}" for number in wanted]
    assert [level for _, level in found] == pytest.approx([2 * number + 20 for number in wanted], abs=5)


def test_short_ones_are_seen_whole_and_long_ones_by_looking_for_each_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [level for _, level in levels(clip(3))] == pytest.approx([20, 22, 24], abs=5)
    in_order = levels(clip(100))
    monkeypatch.setattr(video, "_IN_ORDER", 50)
    assert levels(clip(100)) == in_order


def test_phones_turn_their_frames_by_a_note_in_the_file() -> None:
    data = bytearray(clip(2))
    at = data.index(b"tkhd") + 4 + 40  # the matrix of the track
    turned = [0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30]
    data[at : at + 36] = b"".join(one.to_bytes(4, "big", signed=True) for one in turned)
    picture = next(video.Video(bytes(data), "clip", FRAMES).frames()).picture
    assert picture.size == (HEIGHT, WIDTH)
    pixels = np.asarray(picture.image)
    assert pixels[:, -4:].mean() < pixels[:, :4].mean(), "what was above is at the right now: a quarter clockwise"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_seeing_pocket(tmp_path_factory.mktemp("model") / "seeing")


def test_a_prompt_has_times_and_frames_with_marks_of_their_own(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "a clip.mp4"
    path.write_bytes(clip(40, sounds=True))
    assert gather(str(path)).media[0].kind == "video"
    media, tokenizer = Media(read_config(folder)), Tokenizer.load(folder)
    content = [{"type": "video", "video": path}, {"type": "text", "text": "What happens?"}]
    messages = media.prepared([{"role": "user", "content": content}], None)
    seen = messages[0]["content"][0]["image"]
    assert len(seen.parts) == 32
    assert seen.about == "5 s, 32 frames"
    assert seen.notes == (f"{path} is seen in 32 frames, without its audio.",)
    assert largest([seen]) == (max(one.count for one in seen.parts), 0)
    assert all(one.count <= 70 for one in seen.parts)
    times = [f"00:{i * 40 // 32 // 8:02d}" for i in range(32)]
    written = " ".join(f"{time} <|image|>" for time in times)
    prompt = tokenizer.prompt(messages)
    assert prompt.text.count(f"user\n{written}What happens?<turn|>") == 1
    spelled = tokenizer.encode(prompt.text)
    assert prompt.ids == expanded(spelled, seen.parts, media.marks)
    assert prompt.ids.count(IDS["boi_token_id"]) == 32
    model = Model.load(folder)
    model._decoder.compiled = model._decoder._rounds._mode = "never"
    path.write_bytes(clip(2))
    said = model.stream([{"role": "user", "content": content}], Params(max_tokens=4))
    assert "".join(event.text for event in said if isinstance(event, Text))
    with pytest.raises(ValueError, match="is a video, whose times are text"):
        model.rounds([2, IDS["image_token_id"]], max_tokens=1, media=[path])


def test_containers_of_both_are_told_by_what_they_hold() -> None:
    for data, kind in ((clip(3, sounds=True), "video"), (memo(), "audio"), (memo("webm", "libopus"), "audio")):
        found = media_file(data, "x")
        assert found is not None
        assert found.kind == kind
        if kind == "audio":
            heard = sound.open_sound(data, found.media_type, "memo")
            assert heard.seconds == pytest.approx(1, abs=0.1)
            assert float(np.sqrt(np.square(heard.samples).mean())) == pytest.approx(0.25 / 2**0.5, rel=0.1)


@pytest.mark.parametrize("brand", [b"XAVC", b"iso9", b"3gp7", b"f4v ", b"hvc1"])
def test_any_brand_is_a_video_or_its_sound(brand: bytes) -> None:
    for data, kind in ((clip(3), "video"), (memo(), "audio")):
        found = media_file(data[:8] + brand + data[12:], "x")
        assert found is not None
        assert found.kind == kind
        if kind == "video":
            assert len(levels(found.data)) == 3


def test_quicktime_needs_no_brand() -> None:
    data = clip(3, container="mov")
    assert data[:8] == b"\0\0\0\x14ftyp"
    for start in (
        b"\0\0\0\x08wide\0\0\0\x0cfree\0\0\0\0",
        b"\0\0\0\x14mdat" + bytes(12),
        b"\0\0\0\x14moov" + bytes(12),
    ):
        found = media_file(start + data[20:], "x")
        assert found is not None
        assert found.media_type == "video/quicktime"
    assert len(levels(b"\0\0\0\x08wide\0\0\0\x0cfree\0\0\0\0" + data[20:])) == 3


@pytest.mark.parametrize(
    "text", [b"The ftyp box names a brand.", b"Big wide open spaces", b"the moov atom", b"one mdat"]
)
def test_words_that_begin_like_a_video_are_text(text: bytes) -> None:
    assert media_file(text, "x") is None


def test_damage_is_said_or_seen_and_nothing_else() -> None:
    whole = clip(12)
    for seed in range(40):
        with suppress(UsageError):
            for frame in video.Video(damaged(whole, random.Random(seed)), "clip", FRAMES).frames():
                assert isinstance(frame.picture.image, Image.Image)
    with pytest.raises(UsageError, match=r"clip is damaged, or no video that can be read"):
        video.Video(whole[:60], "clip", FRAMES)


def test_without_the_library_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(UsageError, match=r"takes PyAV to see: pip install 'mlxmtp\[media\]'"):
        video.Video(b"", "clip", FRAMES)
