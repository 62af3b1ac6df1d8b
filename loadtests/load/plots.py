"""Plots as inline SVG: lines over time, and bars. Nothing from outside; colours follow the page's mode."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 240
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 12, 36
_NUM_TICKS = 5


@dataclass(frozen=True, slots=True)
class Line:
    """A series of points; NaN leaves a gap."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True, slots=True)
class Chart:
    """Lines over one axis, or bars where `bars` is given.

    Attributes:
        title: What is shown, with its unit.
        x_title: The horizontal axis, with its unit.
        lines: At most six.
        bars: Name and height of each.
        marks: Spans of the horizontal axis to be shaded, such as outages.
    """

    title: str
    x_title: str = ""
    lines: Sequence[Line] = ()
    bars: Sequence[tuple[str, float]] = ()
    marks: Sequence[tuple[float, float]] = ()

    def svg(self) -> str:
        """The picture, with a title that screen readers find."""
        inner = self._bars() if self.bars else self._lines()
        return (
            f'<figure><figcaption>{escape(self.title)}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-label="{escape(self.title)}">{inner}</svg>{self._legend()}</figure>'
        )

    def _lines(self) -> str:
        points = [(x, y) for line in self.lines for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
        if not points:
            return _text(WIDTH / 2, HEIGHT / 2, "no data", "middle")
        x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
        y_ticks = ticks(0.0 if min(y for _, y in points) >= 0 else min(y for _, y in points), max(y for _, y in points))
        across = _scale(x_low, x_high, LEFT, WIDTH - RIGHT)
        up = _scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)
        parts = []
        for start, end in self.marks:
            left, right = across(max(start, x_low)), across(min(max(end, x_low), x_high))
            parts.append(
                f'<rect class="mark" x="{left:.1f}" y="{TOP}" width="{max(2.0, right - left):.1f}" '
                f'height="{HEIGHT - TOP - BOTTOM}"/>'
            )
        parts += [_grid(up(tick), _number(tick)) for tick in y_ticks]
        parts += [
            _text(across(tick), HEIGHT - BOTTOM + 16, _number(tick), "middle")
            for tick in ticks(x_low, x_high)
            if x_low <= tick <= x_high
        ]
        parts.append(_text(WIDTH / 2, HEIGHT - 4, self.x_title, "middle"))
        for number, line in enumerate(self.lines):
            parts += [
                f'<polyline class="s{number}" points="{" ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in piece)}"/>'
                for piece in _pieces(line)
            ]
        return "".join(parts)

    def _bars(self) -> str:
        top = ticks(0.0, max((height for _, height in self.bars if math.isfinite(height)), default=1.0) or 1.0)
        up = _scale(0.0, top[-1], HEIGHT - BOTTOM, TOP)
        step = (WIDTH - LEFT - RIGHT) / len(self.bars)
        parts = [_grid(up(tick), _number(tick)) for tick in top]
        for number, (name, height) in enumerate(self.bars):
            left, y = LEFT + step * number + step * 0.15, up(height if math.isfinite(height) else 0.0)
            parts.append(
                f'<rect class="bar" x="{left:.1f}" y="{y:.1f}" width="{step * 0.7:.1f}" '
                f'height="{HEIGHT - BOTTOM - y:.1f}"><title>{escape(name)}: {height:.4g}</title></rect>'
            )
            shown = name if len(name) * 6.5 < step else str(number + 1)
            parts.append(_text(left + step * 0.35, HEIGHT - BOTTOM + 16, shown, "middle"))
        return "".join(parts)

    def _legend(self) -> str:
        keys = "".join(f'<li class="k{n}">{escape(line.name)}</li>' for n, line in enumerate(self.lines))
        if self.bars and any(len(n) * 6.5 >= (WIDTH - LEFT - RIGHT) / len(self.bars) for n, _ in self.bars):
            keys = "".join(f"<li>{number}: {escape(name)}</li>" for number, (name, _) in enumerate(self.bars, 1))
        return f'<ul class="legend">{keys}</ul>' if keys else ""


def ticks(low: float, high: float) -> list[float]:
    """Round numbers that enclose a range, about five."""
    if high <= low:
        high = low + 1
    rough = (high - low) / _NUM_TICKS
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _pieces(line: Line) -> list[list[tuple[float, float]]]:
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(line.x, line.y, strict=True):
        if math.isfinite(y):
            pieces[-1].append((x, y))
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _grid(y: float, label: str) -> str:
    line = f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return line + _text(LEFT - 6, y + 4, label, "end")


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"
