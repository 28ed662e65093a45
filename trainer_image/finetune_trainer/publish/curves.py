"""Line and bar charts as inline SVG: no script, no font, no request. Colours are the page's CSS variables."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 760, 76, 146, 14, 40
_MOST_POINTS = 600
_LOG_FROM_RATIO = 20.0
_LARGEST = 1e12


@dataclass(frozen=True, slots=True)
class Series:
    """`kind` names the CSS class that colours and dashes it. Points are (x, y), in the order of x."""

    label: str
    kind: str
    points: Sequence[tuple[float, float]]
    dots: bool = False


def lines(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    height: int = 300,
    marks: Sequence[tuple[float, str]] = (),
    linear: bool = False,
) -> Markup:
    """A chart of one or more series over one x axis; `marks` are (x, label) of vertical lines. Empty when there is nothing to draw.

    The y axis is logarithmic when the positive values span more than a factor of 20, unless `linear`.
    """
    drawn = [Series(s.label, s.kind, _thin(_finite(s.points)), s.dots) for s in series]
    drawn = [s for s in drawn if s.points]
    if not drawn:
        return Markup("")
    xs = [x for s in drawn for x, _ in s.points]
    ys = [y for s in drawn for _, y in s.points]
    logarithmic = not linear and min(ys) > 0 and max(ys) / min(ys) > _LOG_FROM_RATIO
    low, high, ticks = _log_axis(min(ys), max(ys)) if logarithmic else _linear_axis(min(ys), max(ys))
    forward: Callable[[float], float] = math.log10 if logarithmic else float
    left, right, top, bottom = LEFT, WIDTH - RIGHT, TOP, height - BOTTOM
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1)

    def across(x: float) -> float:
        return left + (x - x_low) / (x_high - x_low) * (right - left)

    def up(y: float) -> float:
        return bottom - (forward(y) - forward(low)) / (forward(high) - forward(low)) * (bottom - top)

    parts = [
        Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}" class="chart">').format(
            WIDTH, height, _describe(title, drawn)
        ),
    ]
    for tick in ticks:
        y = up(tick)
        parts.append(Markup('<line class="grid" x1="{}" y1="{:.1f}" x2="{}" y2="{:.1f}"/>').format(left, y, right, y))
        parts.append(
            Markup('<text class="tick" x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(
                left - 8, y + 4, number(tick)
            )
        )
    for tick in _linear_axis(x_low, x_high, whole=True)[2]:
        if x_low <= tick <= x_high:
            parts.append(
                Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
                    across(tick), bottom + 18, number(tick)
                )
            )
    parts.append(Markup('<line class="axis" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(left, bottom, right, bottom))
    parts.append(
        Markup('<text class="label" x="{}" y="{}" text-anchor="middle">{}</text>').format(
            (left + right) / 2, height - 4, x_label
        )
    )
    y_text = y_label + (" (logarithmic)" if logarithmic else "")
    parts.append(
        Markup('<text class="label" transform="translate(14 {}) rotate(-90)" text-anchor="middle">{}</text>').format(
            (top + bottom) / 2, y_text
        )
    )
    for x, text in marks:
        if x_low <= x <= x_high:
            parts.append(
                Markup('<line class="mark" x1="{0:.1f}" y1="{1}" x2="{0:.1f}" y2="{2}"/>').format(
                    across(x), top, bottom
                )
            )
            parts.append(Markup('<text class="tick" x="{:.1f}" y="{}">{}</text>').format(across(x) + 4, top + 10, text))
    for s in drawn:
        path = " ".join(f"{'M' if i == 0 else 'L'}{across(x):.1f} {up(y):.1f}" for i, (x, y) in enumerate(s.points))
        parts.append(Markup('<path class="line {}" d="{}"/>').format(s.kind, path))
        if s.dots or len(s.points) == 1:
            parts += [
                Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="3"/>').format(s.kind, across(x), up(y))
                for x, y in s.points
            ]
    for s, y in zip(drawn, _apart([up(s.points[-1][1]) for s in drawn]), strict=True):
        text = f"{s.label} {number(s.points[-1][1], 3)}"
        parts.append(Markup('<text class="name {}" x="{}" y="{:.1f}">{}</text>').format(s.kind, right + 8, y + 4, text))
    parts.append(Markup("</svg>"))
    return Markup("").join(parts)


def bars(counts: Sequence[tuple[float, float, int]], *, title: str, x_label: str, height: int = 180) -> Markup:
    """A histogram of (lower edge, upper edge, count)."""
    if not counts:
        return Markup("")
    left, right, top, bottom = LEFT, WIDTH - 20, TOP, height - BOTTOM
    low, high = counts[0][0], counts[-1][1]
    _, most, ticks = _linear_axis(0, max(count for _, _, count in counts), whole=True)
    scale = (right - left) / max(high - low, 1)
    parts = [Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}" class="chart">').format(WIDTH, height, title)]
    for tick in ticks:
        y = bottom - tick / most * (bottom - top)
        parts.append(Markup('<line class="grid" x1="{}" y1="{:.1f}" x2="{}" y2="{:.1f}"/>').format(left, y, right, y))
        parts.append(
            Markup('<text class="tick" x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(
                left - 8, y + 4, number(tick)
            )
        )
    for start, end, count in counts:
        x, width, tall = (
            left + (start - low) * scale,
            max((end - start) * scale - 1, 0.6),
            count / most * (bottom - top),
        )
        parts.append(
            Markup('<rect class="bar" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
                x, bottom - tall, width, tall
            )
        )
    for tick in _linear_axis(low, high, whole=True)[2]:
        if low <= tick <= high:
            parts.append(
                Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
                    left + (tick - low) * scale, bottom + 18, number(tick)
                )
            )
    parts.append(Markup('<line class="axis" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(left, bottom, right, bottom))
    parts.append(
        Markup('<text class="label" x="{}" y="{}" text-anchor="middle">{}</text>').format(
            (left + right) / 2, height - 4, x_label
        )
    )
    parts.append(Markup("</svg>"))
    return Markup("").join(parts)


def number(value: float, digits: int = 4) -> str:
    """Short, for an axis: 1,200, 0.004, 2e-5. `digits` are significant ones."""
    if value == 0:
        return "0"
    if abs(value) >= 1_000_000 or abs(value) < 0.0005:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:,.{digits}g}" if abs(value) < 1000 else f"{value:,.0f}"


def _describe(title: str, series: Sequence[Series]) -> str:
    ends = "; ".join(f"{s.label} from {number(s.points[0][1])} to {number(s.points[-1][1])}" for s in series)
    return str(escape(f"{title}: {ends}"))


def _finite(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """What can be drawn: a diverged loss of 1e38 would leave nothing else to see."""
    drawable = [(x, y) for x, y in points if math.isfinite(x) and abs(y) <= _LARGEST]
    return [(x, 0.0 if abs(y) < 1 / _LARGEST else y) for x, y in drawable]


def _thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most _MOST_POINTS; of each stretch the lowest and the highest, so that a spike stays visible."""
    if len(points) <= _MOST_POINTS:
        return list(points)
    size = math.ceil(len(points) / (_MOST_POINTS / 2))
    kept = [points[0]]
    for start in range(1, len(points) - 1, size):
        chunk = points[start : min(start + size, len(points) - 1)]
        extremes = {min(chunk, key=lambda p: p[1]), max(chunk, key=lambda p: p[1])}
        kept += sorted(extremes)
    return [*kept, points[-1]]


def _linear_axis(low: float, high: float, *, whole: bool = False) -> tuple[float, float, list[float]]:
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        low, high = (low - 0.5, high + 0.5) if low == high == 0 else (low - abs(low) * 0.1, high + abs(high) * 0.1)
    rough = (high - low) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    if whole:
        step = max(1.0, step)
    start, end = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    count = round((end - start) / step)
    return start, end, [float(f"{start + i * step:.12g}") for i in range(count + 1)]


def _log_axis(low: float, high: float) -> tuple[float, float, list[float]]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1,) if last - first > 3 else (1, 2, 5)
    ticks = [factor * 10.0**power for power in range(first, last + 1) for factor in factors]
    start = max((tick for tick in ticks if tick <= low), default=low)
    end = min((tick for tick in ticks if tick >= high), default=high)
    return start, end, [tick for tick in ticks if start <= tick <= end]


def _apart(ys: Sequence[float], least: float = 15.0) -> list[float]:
    """Move labels apart so that none covers another; the order stays."""
    order = sorted(range(len(ys)), key=lambda i: ys[i])
    placed = list(ys)
    for above, below in itertools.pairwise(order):
        placed[below] = max(placed[below], placed[above] + least)
    return placed
