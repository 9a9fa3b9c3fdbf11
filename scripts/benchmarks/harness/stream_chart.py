"""Lines of tokens per second by the number of answers at a time, out of the JSON of `streams.py`.

python -m scripts.benchmarks.harness.stream_chart RUN.json CHART.svg
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median

from mlxmtp.bench.plot import Dot, Line, Page, Shape, Words

COLOURS = {
    "ours-mtp": "#1f6feb", "ours": "#7aa7f0", "ours-alone": "#1f6feb",
    "mlx_vlm-mtp": "#d4a017", "mlx_vlm": "#e6c972", "mlx_lm": "#8c8c8c",
}  # fmt: skip
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 720, 380, 56, 220, 34, 44


def chart(speeds: Mapping[tuple[str, int], Sequence[float]], names: Mapping[str, str]) -> str:
    """Return an SVG: a line for every arm, the median of its runs at each number of streams."""
    counts = sorted({streams for _, streams in speeds})
    top = 1.08 * max(median(found) for found in speeds.values())

    def at(streams: int, tps: float) -> tuple[float, float]:
        x = _LEFT + (_WIDTH - _LEFT - _RIGHT) * counts.index(streams) / max(len(counts) - 1, 1)
        return x, _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * tps / top

    def shapes() -> Iterator[Shape]:
        yield Words(_LEFT, 20, "tokens per second of all answers together", 13)
        for share in range(5):
            x, y = at(counts[0], top * share / 4)
            yield Line(((x, y), (_WIDTH - _RIGHT, y)), "#e5e5e5")
            yield Words(x - 8, y + 4, f"{top * share / 4:.0f}", 11, "end")
        for streams in counts:
            yield Words(at(streams, 0)[0], _HEIGHT - _BOTTOM + 18, str(streams), 11, "middle")
        yield Words((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 8, "answers at a time", 11, "middle")
        best = {arm: max(median(found) for key, found in speeds.items() if key[0] == arm) for arm, _ in speeds}
        arms = sorted(best, key=lambda arm: -best[arm])
        for place, arm in enumerate(arms):
            points = tuple(at(n, median(speeds[arm, n])) for n in counts if (arm, n) in speeds)
            if len(points) > 1:
                yield Line(points, COLOURS[arm], 2)
            yield from (Dot(x, y, 3.5, COLOURS[arm]) for x, y in points)
            y = _TOP + 14 + 20 * place
            yield Dot(_WIDTH - _RIGHT + 18, y - 4, 4, COLOURS[arm])
            yield Words(_WIDTH - _RIGHT + 28, y, names[arm], 11)

    return Page(_WIDTH, _HEIGHT, tuple(shapes())).svg()


def read(path: Path) -> dict[tuple[str, int], list[float]]:
    """Return the speeds in a file that `streams.py --json` wrote."""
    found = json.loads(path.read_text(encoding="utf-8"))
    return {(arm, int(streams)): speeds for key, speeds in found.items() for arm, streams in [key.split()]}


if __name__ == "__main__":
    from scripts.benchmarks.streams import ARMS

    Path(sys.argv[2]).write_text(chart(read(Path(sys.argv[1])), ARMS), encoding="utf-8")
