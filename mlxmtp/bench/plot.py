"""Charts of a report as SVG or PNG: acceptance by position, speed by draft length, speed by context length."""

import io
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any, Literal
from xml.sax.saxutils import escape, quoteattr

from mlxmtp.bench.cost import acceptance
from mlxmtp.bench.report import Report
from mlxmtp.bench.samples import Case, DraftSetting, Sample, draft_label
from mlxmtp.bench.summary import CaseSummary, complete
from mlxmtp.errors import UsageError

Anchor = Literal["start", "middle", "end"]
_PILLOW = {"start": "ls", "middle": "ms", "end": "rs"}
_SCALE = 2  # pixels of a PNG for one unit of the page
_DASH, _DASH_GAP = 10, 8  # pixels


@dataclass(frozen=True, slots=True)
class Line:
    """A line through points (x, y), y downwards."""

    points: tuple[tuple[float, float], ...]
    color: str
    width: float = 1.0
    dashed: bool = False

    def svg(self) -> str:
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in self.points)
        dashes = ' stroke-dasharray="5 4"' if self.dashed else ""
        look = f'fill="none" stroke={quoteattr(self.color)} stroke-width="{self.width:g}"{dashes}'
        return f'<polyline points="{points}" {look}/>'

    def draw(self, pen: Any) -> None:
        points = [(x * _SCALE, y * _SCALE) for x, y in self.points]
        width = round(self.width * _SCALE)
        if not self.dashed:
            pen.line(points, fill=self.color, width=width, joint="curve")
            return
        for (x0, y0), (x1, y1) in pairwise(points):  # Pillow has no dashes; each corner begins a new one
            length = math.hypot(x1 - x0, y1 - y0)
            for start in range(0, math.ceil(length), _DASH + _DASH_GAP):
                ends = (start, min(start + _DASH, length))
                dash = [(x0 + (x1 - x0) * at / length, y0 + (y1 - y0) * at / length) for at in ends]
                pen.line(dash, fill=self.color, width=width, joint="curve")


@dataclass(frozen=True, slots=True)
class Dot:
    """A filled circle."""

    x: float
    y: float
    radius: float
    color: str

    def svg(self) -> str:
        return f'<circle cx="{self.x:.1f}" cy="{self.y:.1f}" r="{self.radius:g}" fill={quoteattr(self.color)}/>'

    def draw(self, pen: Any) -> None:
        x, y, r = (value * _SCALE for value in (self.x, self.y, self.radius))
        pen.ellipse((x - r, y - r, x + r, y + r), fill=self.color)


@dataclass(frozen=True, slots=True)
class Words:
    """Text whose baseline is at y."""

    x: float
    y: float
    text: str
    size: float = 12
    anchor: Anchor = "start"
    color: str = "#333333"

    def svg(self) -> str:
        # XML forbids control characters.
        text = escape("".join(character for character in self.text if character >= " "))
        where = f'x="{self.x:.1f}" y="{self.y:.1f}" font-size="{self.size:g}" text-anchor="{self.anchor}"'
        return f"<text {where} fill={quoteattr(self.color)}>{text}</text>"

    def draw(self, pen: Any) -> None:
        from PIL import ImageFont

        font = ImageFont.load_default(self.size * _SCALE)
        pen.text((self.x * _SCALE, self.y * _SCALE), self.text, self.color, font, anchor=_PILLOW[self.anchor])


Shape = Line | Dot | Words


@dataclass(frozen=True, slots=True)
class Page:
    """Shapes on white paper, later ones over earlier ones."""

    width: int
    height: int
    shapes: tuple[Shape, ...]

    def svg(self) -> str:
        size = f'width="{self.width}" height="{self.height}" viewBox="0 0 {self.width} {self.height}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="Helvetica, Arial, sans-serif">'
        paper = f'<rect width="{self.width}" height="{self.height}" fill="#ffffff"/>'
        return "\n".join([head, paper, *(shape.svg() for shape in self.shapes), "</svg>", ""])

    def png(self) -> bytes:
        """Return a PNG file. Raises UsageError without Pillow."""
        require_png()
        from PIL import Image, ImageDraw

        image = Image.new("RGB", (self.width * _SCALE, self.height * _SCALE), "#ffffff")
        pen = ImageDraw.Draw(image)
        for shape in self.shapes:
            shape.draw(pen)
        file = io.BytesIO()
        image.save(file, "PNG", optimize=True)
        return file.getvalue()


def require_png() -> None:
    """Raise UsageError where no PNG can be drawn."""
    if find_spec("PIL") is None:
        said = "A PNG needs Pillow: pip install 'mlxmtp[plot]', or draw --plot FILE.svg, which needs nothing."
        raise UsageError(said)


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

    def shapes(self, left: int, top: int) -> Iterator[Shape]:
        """Draw the panel with its top left corner there, and its legend below."""
        width, height = _PANEL
        xs = [x for series in self.series for x, _ in series.points]
        ys = [y for series in self.series for _, y in series.points]
        x_marks = marks(min(xs, default=0), max(xs, default=1), whole=self.whole_x)
        y_marks = marks(0, self.top or max(ys, default=1))
        low, high, most = x_marks[0], x_marks[-1], y_marks[-1]

        def at(x: float, y: float) -> tuple[float, float]:
            return left + width * (x - low) / (high - low), top + height * (1 - y / most)

        yield Words(left, top - 14, self.title, 13)
        for mark in y_marks:
            yield Line((at(low, mark), at(high, mark)), "#dddddd")
            yield Words(left - 8, at(low, mark)[1] + 4, f"{mark:g}", 11, "end")
        for mark in x_marks:
            yield Words(at(mark, 0)[0], top + height + 18, f"{mark:g}", 11, "middle")
        yield Line((at(low, most), at(low, 0), at(high, 0)), "#333333")
        yield Words(left + width / 2, top + height + 36, self.x, 11, "middle")
        yield Words(left - 8, top - 14, self.y, 11, "end")
        for number, (series, color) in enumerate(zip(self.series, cycle(_COLORS), strict=False)):
            points = tuple(at(*point) for point in series.points)
            if len(points) > 1 and series.joined:
                yield Line(points, color, 1.5 if series.level else 2, series.level)
            if not series.level:
                yield from (Dot(*point, 3, color) for point in points)
            y = top + height + _BELOW + number * _LEGEND_LINE
            yield Line(((left, y - 4), (left + 24, y - 4)), color, 2, series.level)
            yield Words(left + 32, y, series.name, 11)


def check_plot(path: Path) -> None:
    """Raise UsageError if a plot cannot be written there."""
    if path.suffix not in (".svg", ".png"):
        raise UsageError(f"--plot {path} must end in .svg or .png.")
    if path.suffix == ".png":
        require_png()


def page(report: Report) -> Page:
    """Lay out all three panels side by side."""
    samples, cases = complete(report.samples), report.summaries()
    panels = [acceptance_panel(samples, cases), draft_length_panel(cases), context_panel(samples)]
    width, height = _PANEL
    legend = max(len(panel.series) for panel in panels) * _LEGEND_LINE
    shapes: list[Shape] = []
    for number, panel in enumerate(panels):
        shapes += panel.shapes(_LEFT + number * (width + _GAP), _TOP)
    shapes.append(Words(_LEFT, 24, f"mlxmtp bench, {report.environment.chip}, {report.created}", 14))
    return Page(_LEFT + 3 * (width + _GAP) - _GAP // 2, _TOP + height + _BELOW + legend, tuple(shapes))


def write_plot(report: Report, path: Path) -> None:
    """Write the page as SVG or PNG. Raises OSError, and UsageError for a PNG without Pillow."""
    made = page(report)
    path.write_bytes(made.png() if path.suffix == ".png" else made.svg().encode())


def acceptance_panel(samples: Sequence[Sample], cases: Sequence[CaseSummary]) -> Panel:
    """Draw a line per kind of text, or per case where there are several; from the longest fixed length."""
    fixed = [sample.num_draft_tokens for sample in samples if sample.num_draft_tokens != "auto"]
    length: DraftSetting = max(fixed, default=0) or "auto"
    groups: dict[str, list[Sample]] = {}
    for sample in (sample for sample in samples if sample.num_draft_tokens == length):
        groups.setdefault(_name(sample.case) if len(cases) > 1 else sample.kind, []).append(sample)
    series = tuple(
        Series(name, tuple((place, 100 * share) for place, share in enumerate(acceptance(found, conditional=False), 1)))
        for name, found in groups.items()
    )
    title = f"Draft tokens kept, by position ({draft_label(length)})"
    return Panel(title, "position in the draft", "%", series, whole_x=True, top=100)


def draft_length_panel(cases: Sequence[CaseSummary]) -> Panel:
    """Draw a line per case through the fixed lengths, the cost model's prediction, and a level for `auto`."""
    series = []
    for case in cases:
        name = _name(case.case)
        series.append(Series(name, tuple((k, row.speed.generation_tps.median) for k, row in case.fixed.items())))
        if case.cost is not None and case.accept:
            predicted = tuple((k, case.cost.speed(k, case.accept)) for k in range(len(case.accept) + 1))
            series.append(Series(f"{name}, by the cost model", predicted, level=True))
        auto = case.row("auto")
        if auto is not None:
            most, level = max(len(case.accept), *case.fixed, 1), auto.speed.generation_tps.median
            series.append(Series(f"{name}, auto", ((0, level), (most, level)), level=True))
    return Panel("Speed by draft length", "draft tokens per round", "tok/s", tuple(series), whole_x=True)


def context_panel(samples: Sequence[Sample]) -> Panel:
    """Draw a line per model and draft length over the prompt's tokens; points, where each length is another text."""
    found: dict[tuple[str, DraftSetting], dict[int, list[Sample]]] = {}
    for sample in samples:
        tokens = sample.length if sample.length is not None else sample.prompt_tokens
        lines = found.setdefault((sample.model, sample.num_draft_tokens), {})
        lines.setdefault(tokens, []).append(sample)
    several = len({model for model, _ in found}) > 1
    series = tuple(
        Series(
            f"{model}, {draft_label(length)}" if several else draft_label(length),
            tuple((x, statistics.median(s.generation_tps for s in group)) for x, group in sorted(points.items())),
            joined=all(sample.length is not None for group in points.values() for sample in group),
        )
        for (model, length), points in found.items()
    )
    return Panel("Speed by context length", "tokens of the prompt", "tok/s", series)


def _name(case: Case) -> str:
    return case.model if case.length is None else f"{case.model}, {case.length} tokens"


def marks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Return about five round numbers that reach from `low` or below to `high` or above; never fewer than two."""
    if high - low < 1e-6:
        high = low + 1
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(size * power for size in (1, 2, 2.5, 5, 10) if size * power >= rough * (1 - 1e-9))
    if whole:
        step = max(1.0, math.ceil(step))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 10) for number in range(first, max(last, first + 1) + 1)]
