"""Documents and phones' photos: pages as text or pictures, and a sentence where nothing here reads them."""

from __future__ import annotations

import io
import random
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlxmtp.chat.attach import join_message
from mlxmtp.chat.material import gather, of_bytes
from mlxmtp.errors import UsageError
from mlxmtp.media import pdf
from mlxmtp.media.image import open_picture
from mlxmtp.media.source import media_file, media_type_of
from tests.media.damage import damaged

WORDS = "All that stands here is longer than the number of a page."


def pdf_of(pages: Sequence[str], more: str = "") -> bytes:
    """Return a PDF: a page of each text, of an empty one with a red box at the upper left alone."""
    kids = " ".join(f"{10 + 2 * i} 0 R" for i in range(len(pages)))
    parts = [
        f"1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n2 0 obj<</Type/Pages/Kids[{kids}]/Count {len(pages)}>>endobj"
    ]
    parts.append("3 0 obj<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>endobj")
    for i, text in enumerate(pages):
        drawn = f"BT /F 12 Tf 40 700 Td ({text}) Tj ET" if text else "1 0 0 rg 0 442 300 400 re f"
        about = "/Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Resources<</Font<</F 3 0 R>>>>"
        parts.append(f"{10 + 2 * i} 0 obj<<{about}/Contents {11 + 2 * i} 0 R>>endobj")
        parts.append(f"{11 + 2 * i} 0 obj<</Length {len(drawn)}>>stream\n{drawn}\nendstream endobj")
    return ("%PDF-1.4\n" + "\n".join(parts) + f"\ntrailer<</Root 1 0 R{more}>>\n%%EOF\n").encode()


def filled_in(text: str, value: str) -> bytes:
    """Return a PDF of one page with this text, and a form whose one field, below at the right, has this value."""
    field = f"/Type/Annot/Subtype/Widget/FT/Tx/T(a)/V({value})/F 4/Rect[340 100 560 130]/DA(/F 12 Tf 0 g)/P 10 0 R"
    form = b"/AcroForm<</Fields[5 0 R]/DR<</Font<</F 3 0 R>>>>>>"
    data = pdf_of([text]).replace(b"/Type/Catalog", b"/Type/Catalog" + form)
    data = data.replace(b"/Type/Page/", b"/Type/Page/Annots[5 0 R]/")
    return data.replace(b"3 0 obj", f"5 0 obj<<{field}>>endobj\n3 0 obj".encode())


def nested(levels: int) -> bytes:
    """Return a PDF of one page, whose form draws another ten times, which does so too."""
    parts = ["1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj"]
    about = "/Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Resources<</XObject<</X 10 0 R>>>>"
    parts.append(f"3 0 obj<<{about}/Contents 4 0 R>>endobj")
    parts.append("4 0 obj<</Length 5>>stream\n/X Do\nendstream endobj")
    for level in range(levels):
        drawn = "/X Do " * 10 if level < levels - 1 else "1 0 0 rg 0 0 9 9 re f"
        inner = f"/Resources<</XObject<</X {11 + level} 0 R>>>>" if level < levels - 1 else ""
        about = f"/Type/XObject/Subtype/Form/BBox[0 0 595 842]{inner}/Length {len(drawn)}"
        parts.append(f"{10 + level} 0 obj<<{about}>>stream\n{drawn}\nendstream endobj")
    return ("%PDF-1.4\n" + "\n".join(parts) + "\ntrailer<</Root 1 0 R>>\n%%EOF\n").encode()


class TestPdf:
    pypdfium2 = pytest.importorskip("pypdfium2")

    def test_pages_with_text_are_text_and_others_pictures(self, tmp_path: Path) -> None:
        file = tmp_path / "a b.pdf"
        file.write_bytes(pdf_of([WORDS, "", WORDS.upper(), "7"]))
        found = gather(str(file))
        assert found.text.split("\n") == [
            f"--- {file}, page 1 ---", WORDS, "", f"--- {file}, page 3 ---", WORDS.upper()
        ]  # fmt: skip
        assert [one.name for one in found.media] == [f"{file}, page 2", f"{file}, page 4"]
        assert found.notes == (f"Of 4 pages of {file} those without text (2) are read as images.",)
        seen = open_picture(found.media[0].data).image
        assert seen.size[1] / seen.size[0] == pytest.approx(842 / 595, rel=1e-3)
        assert 0.99 < seen.size[0] * seen.size[1] / (1120 * 48 * 48) <= 1.01
        assert [seen.getpixel(place) for place in ((5, 5), (seen.size[0] - 5, seen.size[1] - 5))] == [
            (255, 0, 0), (255, 255, 255)
        ]  # fmt: skip

    def test_what_was_typed_into_a_form_is_read_and_seen(self) -> None:
        (page,) = pdf.read_pages(filled_in(WORDS, "SECRET 4711"), "x.pdf")
        assert page.text.split("\n") == [WORDS, "SECRET 4711"]
        drawn, empty = (
            np.asarray(open_picture(pdf.read_pages(filled_in("", value), "x.pdf")[0].picture).image)
            for value in ("SECRET 4711", "")
        )
        row, column = (length // 2 for length in drawn.shape[:2])
        assert drawn[row:, column:].min() < 50
        assert empty[row:, column:].min() > 200

    def test_a_pdf_comes_through_a_pipe(self, tmp_path: Path) -> None:
        file = tmp_path / "x.pdf"
        file.write_bytes(pdf_of([WORDS, ""]))
        with file.open("rb") as stdin:
            attached = join_message([], ["Sum it up."], stdin.fileno())
        assert "--- stdin, page 1 ---" in attached.material
        assert len(attached.media) == 1

    def test_what_cannot_be_read_is_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for data, said in [
            (b"%PDF-1.4\n%%EOF", "is a PDF that cannot be read"),
            (pdf_of([WORDS])[:60], "is a PDF that cannot be read"),
            (pdf_of([]), "is a PDF "),
        ]:
            with pytest.raises(UsageError, match=said):
                of_bytes(data, "x.pdf")
        with pytest.raises(UsageError, match=r"x\.pdf has 3 pages without text, and at most 2 are seen"):
            pdf.read_pages(pdf_of([""] * 3), "x.pdf", 2)
        assert len(pdf.read_pages(pdf_of(["", WORDS, ""]), "x.pdf", 2)) == 3
        monkeypatch.setitem(sys.modules, "pypdfium2", None)
        with pytest.raises(UsageError, match=r"needs pypdfium2: pip install 'mlxmtp\[pdf\]'"):
            of_bytes(pdf_of([WORDS]), "x.pdf")

    def test_too_many_scans_are_refused_before_one_is_rendered(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def render(*_: object, **__: object) -> None:
            raise AssertionError("a page was rendered")

        monkeypatch.setattr(self.pypdfium2.PdfPage, "render", render)
        with (
            self.pypdfium2.PdfDocument(pdf_of([WORDS, *[""] * 101])) as document,
            pytest.raises(pdf._Unreadable, match="has 101 pages without text, and at most 100 are seen"),
        ):
            next(pdf._read(document, 100))

    def test_a_small_file_that_never_ends_is_given_up_and_others_are_read_meanwhile(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        begun, run = Event(), subprocess.run

        def begin(*command: Any, **how: Any) -> Any:
            begun.set()
            return run(*command, **how)

        with ThreadPoolExecutor(1) as pool:
            with monkeypatch.context() as patch:
                patch.setattr(pdf, "_SECONDS", 3)  # for the endless one only
                patch.setattr(subprocess, "run", begin)
                endless = pool.submit(pdf.read_pages, nested(12), "x.pdf")
                assert begun.wait(60)
            assert [page.text for page in pdf.read_pages(pdf_of([WORDS]), "y.pdf")] == [WORDS]
            with pytest.raises(UsageError, match=r"x\.pdf is a PDF that (takes more than|cannot be read)"):
                endless.result(300)

    def test_damaged_ones_are_pages_or_a_sentence(self) -> None:
        dice = random.Random(5)
        for _ in range(60):
            data = damaged(pdf_of([WORDS, ""]), dice)
            with suppress(UsageError):
                found = of_bytes(data, "x")
                assert found is None or found.text or found.media


class TestHeic:
    pillow_heif = pytest.importorskip("pillow_heif")

    def encoded(self, **options: Any) -> bytes:
        pixels = np.zeros((48, 96, 3), np.uint8)
        pixels[:, :48] = (220, 30, 30)
        pixels[:, 48:] = (30, 30, 220)
        buffer = io.BytesIO()
        self.pillow_heif.from_pillow(Image.fromarray(pixels)).save(buffer, quality=95, **options)
        return buffer.getvalue()

    def test_photos_are_read_and_upright(self) -> None:
        data = self.encoded()
        assert media_type_of(data[:64]) == "image/heic"
        seen = open_picture(data, "a.heic").image
        assert seen.size == (96, 48)
        colours = np.asarray(seen)[20, [10, 80]].astype(int)
        assert np.abs(colours - [(220, 30, 30), (30, 30, 220)]).max() < 20
        exif = Image.Exif()
        exif[0x0112] = 6
        turned = open_picture(self.encoded(exif=exif.tobytes()), "a.heic").image
        assert turned.size == (48, 96)

    def test_without_the_library_there_is_a_sentence_or_macs_converter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        data = self.encoded()
        monkeypatch.setitem(sys.modules, "pillow_heif", None)
        monkeypatch.setattr("sys.platform", "linux")
        with pytest.raises(UsageError, match=r"a\.heic is HEIC, which needs pillow-heif: pip install 'mlxmtp\[heic\]'"):
            open_picture(data, "a.heic")

        def sips(command: list[str], **_: object) -> None:
            assert Path(command[4]).read_bytes() == data
            Image.new("RGB", (5, 7), "green").save(command[6])

        monkeypatch.setattr("sys.platform", "darwin")
        monkeypatch.setattr(subprocess, "run", sips)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # Pillow's limit, which is lower than ours
        assert open_picture(data, "a.heic").image.size == (5, 7)

    def test_damaged_ones_are_pictures_or_a_sentence(self) -> None:
        dice, data = random.Random(6), self.encoded()
        for _ in range(60):
            file = media_file(damaged(data, dice), "x")
            if file is None or file.kind != "image":
                continue
            with suppress(UsageError):
                assert open_picture(file.data, file.name).pixels(70, 48).shape[2] == 3
