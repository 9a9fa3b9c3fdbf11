"""Three pictures of a report: acceptance by position, speed by draft length, speed by context length."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any, Literal
from xml.sax.saxutils import escape, quoteattr

from mlxmtp.bench.report import Report
from mlxmtp.bench.samples import Arm, Case, Sample, shown_arm
from mlxmtp.bench.summary import CaseFigures, by_position, complete
from mlxmtp.errors import UsageError

Anchor = Literal["start", "middle", "end"]
_PILLOW = {"start": "l", "middle": "m", "end": "r"}
_SCALE = 2  # pixels of a PNG for one unit of the page


@dataclass(frozen=True, slots=True)
class Line:
    """Through points (x, y), y downwards."""

    points: tuple[tuple[float, float], ...]
    color: str
    width: float = 1.0
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Dot:
    """A filled circle."""

    x: float
    y: float
    radius: float
    color: str


@dataclass(frozen=True, slots=True)
class Words:
    """Text whose baseline is at y."""

    x: float
    y: float
    text: str
    size: float = 12
    anchor: Anchor = "start"
    color: str = "#333333"


Shape = Line | Dot | Words


@dataclass(frozen=True, slots=True)
class Page:
    """Shapes on white paper, later ones over earlier ones."""

    width: int
    height: int
    shapes: tuple[Shape, ...]

    def svg(self) -> str:
        """As an SVG document."""
        size = f'width="{self.width}" height="{self.height}" viewBox="0 0 {self.width} {self.height}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="Helvetica, Arial, sans-serif">'
        paper = f'<rect width="{self.width}" height="{self.height}" fill="#ffffff"/>'
        return "\n".join([head, paper, *(_element(shape) for shape in self.shapes), "</svg>", ""])

    def png(self) -> bytes:
        """As a PNG file. Raises UsageError without Pillow."""
        require_png()
        from PIL import Image, ImageDraw, ImageFont

        image = Image.new("RGB", (self.width * _SCALE, self.height * _SCALE), "#ffffff")
        pen = ImageDraw.Draw(image)
        for shape in self.shapes:
            if isinstance(shape, Words):
                font = ImageFont.load_default(shape.size * _SCALE)
                place = (shape.x * _SCALE, shape.y * _SCALE)
                pen.text(place, shape.text, shape.color, font, anchor=f"{_PILLOW[shape.anchor]}s")
            else:
                _draw(pen, shape)
        file = io.BytesIO()
        image.save(file, "PNG", optimize=True)
        return file.getvalue()


def require_png() -> None:
    """Raises UsageError where no PNG can be drawn."""
    if find_spec("PIL") is None:
        raise UsageError(
            "A PNG needs Pillow: pip install 'mlxmtp[plot]', or draw --plot FILE.svg, which needs nothing."
        )


def _element(shape: Shape) -> str:
    if isinstance(shape, Words):
        where = f'x="{shape.x:.1f}" y="{shape.y:.1f}" font-size="{shape.size:g}" text-anchor="{shape.anchor}"'
        return f"<text {where} fill={quoteattr(shape.color)}>{escape(_printable(shape.text))}</text>"
    if isinstance(shape, Dot):
        return f'<circle cx="{shape.x:.1f}" cy="{shape.y:.1f}" r="{shape.radius:g}" fill={quoteattr(shape.color)}/>'
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in shape.points)
    dashes = ' stroke-dasharray="5 4"' if shape.dashed else ""
    look = f'fill="none" stroke={quoteattr(shape.color)} stroke-width="{shape.width:g}"{dashes}'
    return f'<polyline points="{points}" {look}/>'


def _printable(text: str) -> str:
    """Without the control characters that XML forbids."""
    return "".join(character for character in text if character >= " ")


def _draw(pen: Any, shape: Line | Dot) -> None:
    if isinstance(shape, Dot):
        x, y, r = (value * _SCALE for value in (shape.x, shape.y, shape.radius))
        pen.ellipse((x - r, y - r, x + r, y + r), fill=shape.color)
        return
    points = [(x * _SCALE, y * _SCALE) for x, y in shape.points]
    pieces = _dashes(points) if shape.dashed else [points]
    for piece in pieces:
        pen.line(piece, fill=shape.color, width=round(shape.width * _SCALE), joint="curve")


def _dashes(points: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """Pieces of 5 units with gaps of 4 along straight lines; each corner begins a new one."""
    found = []
    for (x0, y0), (x1, y1) in pairwise(points):
        length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
        at = 0.0
        while at < length:
            ends = [(x0 + (x1 - x0) * t / length, y0 + (y1 - y0) * t / length) for t in (at, min(at + 10, length))]
            found.append(ends)
            at += 18
    return found


_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555")  # told apart by everybody
_PANEL = (400, 300)  # width and height of the area between the axes
_LEFT, _TOP, _GAP, _BELOW = 70, 60, 90, 60
_LEGEND_LINE = 18


@dataclass(frozen=True, slots=True)
class Series:
    """Named points and a line through them; `level` draws a dashed line alone, `joined` False the points alone."""

    name: str
    points: tuple[tuple[float, float], ...]
    level: bool = False
    joined: bool = True


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture. The y axis begins at 0; `whole_x` puts marks at whole numbers only."""

    title: str
    x: str
    y: str
    series: tuple[Series, ...]
    whole_x: bool = False
    top: float | None = None


def check_plot(path: Path) -> None:
    """Raises UsageError if a plot cannot be written there: looked at before anything is measured."""
    if path.suffix not in (".svg", ".png"):
        raise UsageError(f"--plot {path} must end in .svg or .png.")
    if path.suffix == ".png":
        require_png()


def page(report: Report) -> Page:
    """All three panels side by side."""
    samples, cases = complete(report.samples), report.figures()
    panels = [_acceptance(samples, cases), _by_length(cases), _by_context(samples)]
    width, height = _PANEL
    legend = max(len(panel.series) for panel in panels) * _LEGEND_LINE
    shapes: list[Shape] = []
    for number, panel in enumerate(panels):
        shapes += _drawn(panel, _LEFT + number * (width + _GAP), _TOP)
    shapes.append(Words(_LEFT, 24, f"mlxmtp bench, {report.environment.get('chip')}, {report.created}", 14))
    return Page(_LEFT + 3 * (width + _GAP) - _GAP // 2, _TOP + height + _BELOW + legend, tuple(shapes))


def write_plot(report: Report, path: Path) -> None:
    """Write the page as SVG or PNG. Raises OSError, and UsageError for a PNG without Pillow."""
    made = page(report)
    if path.suffix == ".png":
        path.write_bytes(made.png())
    else:
        path.write_text(made.svg(), encoding="utf-8")


def _acceptance(samples: Sequence[Sample], cases: Sequence[CaseFigures]) -> Panel:
    """A line per kind of text, or per case where there are several; from the longest fixed length."""
    fixed = [sample.arm for sample in samples if isinstance(sample.arm, int)]
    arm: Arm = max(fixed, default=0) or "auto"
    drafted = [sample for sample in samples if sample.arm == arm]
    groups: dict[str, list[Sample]] = {}
    for sample in drafted:
        groups.setdefault(_name(sample.case) if len(cases) > 1 else sample.kind, []).append(sample)
    series = tuple(
        Series(name, tuple((place, 100 * share) for place, share in enumerate(by_position(found), 1)))
        for name, found in groups.items()
    )
    title = f"Draft tokens kept, by position ({shown_arm(arm)})"
    return Panel(title, "position in the draft", "%", series, whole_x=True, top=100)


def _by_length(cases: Sequence[CaseFigures]) -> Panel:
    """A line per case through the fixed lengths, with what the cost model says, and a level for `auto`."""
    series = []
    for case in cases:
        name = _name(case.case)
        points = tuple((int(row.arm), row.speed.tps.median) for row in case.fixed)
        series.append(Series(name, points))
        if case.cost is not None and case.accept:
            lengths = range(len(case.accept) + 1)
            predicted = tuple((k, case.cost.speed(k, case.accept)) for k in lengths)
            series.append(Series(f"{name}, by the cost model", predicted, level=True))
        auto = case.arm("auto")
        if auto is not None:
            most = max(len(case.accept), *(int(row.arm) for row in case.fixed), 1)
            level = auto.speed.tps.median
            series.append(Series(f"{name}, auto", ((0, level), (most, level)), level=True))
    return Panel("Speed by draft length", "draft tokens per round", "tok/s", tuple(series), whole_x=True)


def _by_context(samples: Sequence[Sample]) -> Panel:
    """A line per model and arm over the prompt's tokens; points, where each length is another text."""
    found: dict[tuple[str, Arm], dict[int, list[Sample]]] = {}
    for sample in samples:
        where = sample.length if sample.length is not None else sample.prompt_tokens
        found.setdefault((sample.model, sample.arm), {}).setdefault(where, []).append(sample)
    models = len({model for model, _ in found})
    series = tuple(
        Series(
            f"{model}, {shown_arm(arm)}" if models > 1 else shown_arm(arm),
            tuple((x, statistics.median(s.generation_tps for s in group)) for x, group in sorted(points.items())),
            joined=all(sample.length is not None for group in points.values() for sample in group),
        )
        for (model, arm), points in found.items()
    )
    return Panel("Speed by context length", "tokens of the prompt", "tok/s", series)


def _name(case: Case) -> str:
    return case.model if case.length is None else f"{case.model}, {case.length} tokens"


def _drawn(panel: Panel, left: int, top: int) -> Iterable[Shape]:
    width, height = _PANEL
    xs = [x for series in panel.series for x, _ in series.points]
    ys = [y for series in panel.series for _, y in series.points]
    x_marks = marks(min(xs, default=0), max(xs, default=1), whole=panel.whole_x)
    y_marks = marks(0, panel.top or max(ys, default=1))
    low, high, most = x_marks[0], x_marks[-1], y_marks[-1]

    def at(x: float, y: float) -> tuple[float, float]:
        return left + width * (x - low) / (high - low), top + height * (1 - y / most)

    yield Words(left, top - 14, panel.title, 13)
    for mark in y_marks:
        yield Line((at(low, mark), at(high, mark)), "#dddddd")
        yield Words(left - 8, at(low, mark)[1] + 4, f"{mark:g}", 11, "end")
    for mark in x_marks:
        yield Words(at(mark, 0)[0], top + height + 18, f"{mark:g}", 11, "middle")
    yield Line((at(low, most), at(low, 0), at(high, 0)), "#333333")
    yield Words(left + width / 2, top + height + 36, panel.x, 11, "middle")
    yield Words(left - 8, top - 14, panel.y, 11, "end")
    for number, (series, color) in enumerate(zip(panel.series, cycle(_COLORS), strict=False)):
        yield from _line(series, color, [at(*point) for point in series.points])
        y = top + height + _BELOW + number * _LEGEND_LINE
        yield Line(((left, y - 4), (left + 24, y - 4)), color, 2, series.level)
        yield Words(left + 32, y, series.name, 11)


def _line(series: Series, color: str, points: Sequence[tuple[float, float]]) -> Iterable[Shape]:
    if len(points) > 1 and series.joined:
        yield Line(tuple(points), color, 1.5 if series.level else 2, series.level)
    if not series.level:
        yield from (Dot(x, y, 3, color) for x, y in points)


def marks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """About five round numbers that reach from `low` or below to `high` or above; never fewer than two."""
    if high - low < 1e-6:
        high = low + 1
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(size * power for size in (1, 2, 2.5, 5, 10) if size * power >= rough * (1 - 1e-9))
    if whole:
        step = max(1.0, math.ceil(step))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 10) for number in range(first, max(last, first + 1) + 1)]
