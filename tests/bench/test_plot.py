"""Pictures: well-formed, with everything on the page, and honest about PNG."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxmtp.bench import plot
from mlxmtp.bench.plot import Dot, Line, Words, check_plot, marks, page, write_plot
from mlxmtp.bench.report import Report
from mlxmtp.errors import UsageError
from tests.bench import fake_harness
from tests.bench.fake_harness import sample

SVG = "{http://www.w3.org/2000/svg}"


def report(model: str = 'pocket <&> "it"', length: int | None = None) -> Report:
    samples = [
        sample(arm, repetition, kind=kind, model=model, length=length, accepted=0 if arm == 0 else 1, seconds=0.01)
        for repetition in range(2)
        for kind in ("code", "chat")
        for arm in (0, 1, 3, "auto")
    ]
    return fake_harness.report(samples, chip="M4 & more")


@pytest.mark.parametrize("made", [report(), report(length=512), fake_harness.report([sample(0)])])
def test_the_svg_is_well_formed_and_nothing_lies_outside(made, tmp_path):
    write_plot(made, tmp_path / "plot.svg")
    root = ET.fromstring((tmp_path / "plot.svg").read_text(encoding="utf-8"))
    assert root.tag == f"{SVG}svg"
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    titles = {element.text for element in root.iter(f"{SVG}text")}
    assert {"Speed by draft length", "Speed by context length"} <= titles
    for line in root.iter(f"{SVG}polyline"):
        for point in line.attrib["points"].split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= width
            assert 0 <= y <= height


def test_names_are_shown_as_they_are():
    texts = [element.text for element in ET.fromstring(page(report()).svg()).iter(f"{SVG}text")]
    assert 'pocket <&> "it"' in texts
    assert "mlxmtp bench, M4 & more, 2026-01-01T00:00:00+00:00" in texts


def test_a_line_joins_lengths_of_one_text_only():
    joined, loose = (page(report(length=length)).shapes for length in (512, None))
    assert [type(shape) for shape in joined].count(Dot) == [type(shape) for shape in loose].count(Dot)
    assert any(isinstance(shape, Words) and shape.text == "tokens of the prompt" for shape in loose)


@given(st.floats(0, 1e5), st.floats(0, 1e5), st.booleans())
def test_marks_cover_the_range_in_even_steps(low, high, whole):
    low, high = sorted((low, high))
    found = marks(low, high, whole=whole)
    assert 2 <= len(found) <= 9
    assert found[0] <= low + 1e-6 * max(1, low)
    assert found[-1] >= high * (1 - 1e-6)
    steps = [b - a for a, b in pairwise(found)]
    assert max(steps) == pytest.approx(min(steps), rel=1e-6)
    assert not whole or all(mark == int(mark) for mark in found)


def test_other_endings_are_refused_before_anything_is_measured():
    with pytest.raises(UsageError, match=r"must end in \.svg or \.png"):
        check_plot(Path("plot.pdf"))
    check_plot(Path("plot.svg"))


def test_without_pillow_a_png_is_refused_with_the_way_out(monkeypatch):
    monkeypatch.setattr(plot, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"pip install 'mlxmtp\[plot\]', or draw --plot FILE\.svg"):
        check_plot(Path("plot.png"))


def test_a_png_shows_the_same_page(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed; it comes with the dev extra")
    write_plot(report(), tmp_path / "plot.png")
    made = page(report())
    with image.open(tmp_path / "plot.png") as picture:
        assert picture.size == (2 * made.width, 2 * made.height)
        line = next(shape for shape in made.shapes if isinstance(shape, Line) and shape.color == "#333333")
        x, y = line.points[1]
        assert picture.convert("L").getpixel((round(2 * x) + 3, round(2 * y))) < 128
