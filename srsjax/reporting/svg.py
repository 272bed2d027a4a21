"""Line and bar charts as inline SVG: sharp at any size, small, and in the colours of the page, light or dark.

Every chart has a title for screen readers; its numbers stand in a table beside it (`srsjax.reporting.figures`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH, HEIGHT = 368, 250
LEFT, RIGHT, TOP, BOTTOM = 60, 12, 12, 42
Numbers = Sequence[float] | np.ndarray
MOST_POINTS = 200
"""Points of a line: as fine as it is drawn."""


@dataclass(frozen=True)
class Line:
    """A line of a chart."""

    name: str
    """In the legend; empty for a line without an entry, such as a diagonal."""
    x: Numbers
    y: Numbers
    marks: bool = False
    """Whether points are marked."""


@dataclass(frozen=True)
class Axis:
    """An axis of a chart."""

    label: str
    low: float
    high: float


def line_chart(title: str, x: Axis, y: Axis, lines: Sequence[Line]) -> str:
    """Lines over two axes; those without a name are thin and grey. Numbers that are not finite are left out."""
    parts, colour = [], 0
    for line in lines:
        xs, ys = (np.asarray(each, np.float64) for each in (line.x, line.y))
        kept = thin(np.isfinite(xs) & np.isfinite(ys))
        points = [(_place_x(x, a), _place_y(y, b)) for a, b in zip(xs[kept], ys[kept], strict=True)]
        kind = "guide" if not line.name else f"line c{colour % 4}"
        parts.append(f'<polyline class="{kind}" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in points)}"/>')
        if line.marks:
            parts += [f'<circle class="dot c{colour % 4}" cx="{a:.1f}" cy="{b:.1f}" r="2.6"/>' for a, b in points]
        colour += bool(line.name)
    return _chart(title, x, y, parts) + _legend([line.name for line in lines if line.name])


def bar_chart(title: str, x: Axis, y: Axis, edges: Numbers, bars: Sequence[tuple[str, Numbers]]) -> str:
    """Bars between `edges` [B + 1], of each name its heights [B]; several names stand side by side."""
    parts = []
    for number, (_, heights) in enumerate(bars):
        for place, height in enumerate(heights):
            first, last = (_place_x(x, edge) for edge in edges[place : place + 2])
            width = (last - first) / len(bars)
            top = _place_y(y, height)
            left, bottom = first + number * width, _place_y(y, y.low)
            parts.append(
                f'<rect class="bar c{number % 4}" x="{left + 0.5:.1f}" y="{top:.1f}" '
                f'width="{max(width - 1, 0.5):.1f}" height="{max(bottom - top, 0):.1f}"/>'
            )
    names = [name for name, _ in bars]
    return _chart(title, x, y, parts) + _legend(names if len(names) > 1 else [])


def thin(kept: np.ndarray) -> np.ndarray:
    """The places of at most `MOST_POINTS` of the kept ones, the first and the last among them."""
    places = np.flatnonzero(kept)
    if len(places) <= MOST_POINTS:
        return places
    return places[np.unique(np.linspace(0, len(places) - 1, MOST_POINTS).astype(np.int64))]


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers between two others, some `about` of them."""
    if not high > low:
        return [low]
    step = 10 ** math.floor(math.log10((high - low) / about))
    step *= next((factor for factor in (1, 2, 5) if (high - low) / (step * factor) <= about), 10)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def span(values: Numbers, room: float = 0.05) -> tuple[float, float]:
    """The least and the largest finite number, with some room around them; 0 and 1 where there is none."""
    known = np.asarray(values, np.float64)
    known = known[np.isfinite(known)]
    if not len(known):
        return 0.0, 1.0
    low, high = float(known.min()), float(known.max())
    around = (high - low) * room or abs(high) * room or 1.0
    return low - around, high + around


def number(value: float) -> str:
    """A number as an axis has it: four significant digits, thousands with commas."""
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def _chart(title: str, x: Axis, y: Axis, parts: list[str]) -> str:
    inner = [f"<title>{escape(title)}</title>"]
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    for value in ticks(x.low, x.high):
        at = _place_x(x, value)
        inner.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{bottom}"/>')
        inner.append(f'<text x="{at:.1f}" y="{bottom + 15}" text-anchor="middle">{number(value)}</text>')
    for value in ticks(y.low, y.high):
        at = _place_y(y, value)
        inner.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        inner.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{number(value)}</text>')
    middle = (TOP + bottom) / 2
    inner += parts
    inner.append(
        f'<text class="label" x="{(LEFT + right) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x.label)}</text>'
    )
    inner.append(
        f'<text class="label" x="12" y="{middle}" text-anchor="middle" transform="rotate(-90 12 {middle})">'
        f"{escape(y.label)}</text>"
    )
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(inner)}</svg>'


def _legend(names: Sequence[str]) -> str:
    keys = "".join(f'<span><i class="key k{n % 4}"></i>{escape(name)}</span>' for n, name in enumerate(names))
    return f'<div class="legend">{keys}</div>' if names else ""


def _place_x(axis: Axis, value: float) -> float:
    return LEFT + _share(axis, value) * (WIDTH - LEFT - RIGHT)


def _place_y(axis: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - _share(axis, value) * (HEIGHT - TOP - BOTTOM)


def _share(axis: Axis, value: float) -> float:
    """Where a value is between the ends of an axis, 0 to 1; beyond an end it is drawn there."""
    return min(max((value - axis.low) / ((axis.high - axis.low) or 1), 0.0), 1.0)
