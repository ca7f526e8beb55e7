"""Draw curves as SVG in the page's colors: axes, ticks, labels at the ends, and values under the
pointer, without a script.

Lengths are in the drawing's own units; the page scales it to the available width.
"""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from featkit_train.report.metrics import Curve, Point
from featkit_train.report.panels import MAX_CURVES

HEIGHT, TOP, BOTTOM, LEFT, RIGHT = 220.0, 24.0, 26.0, 50.0, 16.0
# Room for a curve's name and last value at its end, if there are several curves.
LABEL_WIDTH, LABEL_HEIGHT = 118.0, 28.0
MAX_SPOTS = 40  # strips that show their values under the pointer
SMOOTHED_FROM = 30  # points; fewer are not smoothed
# Points are clipped if they are outside the range of the middle 96 % by more than this many times
# that range.
OUTLIER = 6.0


@dataclass(frozen=True)
class Frame:
    """Map steps and values to coordinates."""

    width: float
    right: float
    first_step: float
    last_step: float
    low: float
    high: float

    def x(self, step: float) -> float:
        """Return the horizontal coordinate; a single step lies in the middle."""
        span = self.last_step - self.first_step
        share = (step - self.first_step) / span if span else 0.5
        return LEFT + share * (self.width - LEFT - self.right)

    def y(self, value: float) -> float:
        """Return the vertical coordinate; values outside are drawn just beyond the frame."""
        share = (value - self.low) / (self.high - self.low)
        return HEIGHT - BOTTOM - min(max(share, -0.03), 1.03) * (HEIGHT - TOP - BOTTOM)


def chart(
    curves: Sequence[Curve],
    *,
    first_step: int,
    last_step: int,
    marks: Sequence[int] = (),
    width: float = 440.0,
) -> str:
    """Return an SVG of the curves over the steps of the whole run. marks: steps with a note, drawn
    as thin lines."""
    several = len(curves) > 1
    drawn = [(curve, curve.thinned()) for curve in curves]
    low, high = value_range([point for _, points in drawn for point in points])
    low, high, values = nice_ticks(low, high, 4)
    frame = Frame(width, RIGHT + (LABEL_WIDTH if several else 0), first_step, last_step, low, high)
    parts = [_axes(frame, values)]
    parts += [
        f'<path class="mark" d="M{frame.x(step):.1f} {TOP}V{HEIGHT - BOTTOM}"/>' for step in marks
    ]
    parts += [_line(frame, points, index) for index, (_, points) in enumerate(drawn)]
    if several:
        parts.append(_end_labels(frame, curves))
    parts.append(_spots(frame, [points for _, points in drawn]))
    description = html.escape("; ".join(map(in_words, curves)))
    return (
        f'<svg viewBox="0 0 {width:g} {HEIGHT:g}" role="img"'
        f' aria-label="{description}">{"".join(parts)}</svg>'
    )


def in_words(curve: Curve) -> str:
    """Describe a curve for screen readers."""
    if curve.first is None or curve.last is None:
        return f"{curve.name}: no finite number"
    first, last = (f"{number(value)} at step {step:,}" for step, value in (curve.first, curve.last))
    return f"{curve.name}: from {first} to {last}"


def beyond_the_frame(curve: Curve) -> list[float]:
    """Return the extremes of a curve that its chart clips as outliers."""
    points = [point for point in curve.thinned() if point.count]
    low, high = value_range(points)
    ends = (
        min((point.low for point in points), default=low),
        max((point.high for point in points), default=high),
    )
    return [end for end in ends if not low <= end <= high]


def number(value: float) -> str:
    """Return a value with at most four significant digits."""
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else f"{value:g}"
    size = abs(value)
    if size >= 1e6:
        return f"{value:.3g}".replace("e+0", "e").replace("e+", "e")
    if size >= 1000:
        return f"{value:,.0f}"
    if size >= 1e-3 or size == 0:
        return f"{value:.4g}"
    return f"{value:.3g}".replace("e-0", "e-")


def value_range(points: Sequence[Point]) -> tuple[float, float]:
    """Return the lowest and the highest value to show, without outliers that would flatten the
    rest. (0, 1) if there are no values."""
    finite = sorted(end for point in points if point.count for end in (point.low, point.high))
    if not finite:
        return 0.0, 1.0
    inner_low, inner_high = finite[len(finite) // 50], finite[-1 - len(finite) // 50]
    reach = OUTLIER * (inner_high - inner_low)
    low = finite[0] if reach == 0 or inner_low - finite[0] <= reach else inner_low
    high = finite[-1] if reach == 0 or finite[-1] - inner_high <= reach else inner_high
    return low, high


def nice_ticks(low: float, high: float, wanted: int) -> tuple[float, float, list[float]]:
    """Return a range around `low` and `high`, and about `wanted` ticks in it at 1, 2 or 5 times a
    power of ten."""
    if high - low <= max(abs(low), abs(high)) * 1e-9:
        room = abs(low) * 0.1 or 1.0
        low, high = low - room, high + room
    span = high - low
    if not math.isfinite(span):  # both ends are near the largest float
        low, high, span = low / 4, high / 4, high / 4 - low / 4
    power = 10.0 ** math.floor(math.log10(span / wanted))
    step = power * next(
        times for times in (1, 2, 5, 10) if span / (power * times) <= wanted + 0.001
    )
    first, last = math.floor(low / step + 1e-6), math.ceil(high / step - 1e-6)
    return first * step, last * step, [count * step for count in range(first, last + 1)]


def is_noisy(points: Sequence[Point]) -> bool:
    """Return whether a curve fluctuates much more than it changes overall."""
    means = [point.mean for point in points if point.count]
    if len(means) < SMOOTHED_FROM:
        return False
    traveled = sum(abs(after - before) for before, after in itertools.pairwise(means))
    return traveled > 3 * (max(means) - min(means))


def smoothed(points: Sequence[Point]) -> list[float]:
    """Return the running mean: at point i, point j has weight k^|i - j| with k = 1 - 20 /
    len(points). Gaps are nan."""
    keep = max(1 - 20 / len(points), 0.0)
    values = [(point.mean, 1.0) if point.count else (0.0, 0.0) for point in points]
    before, after = _running(values, keep), _running(values[::-1], keep)[::-1]
    sums = [
        (b[0] + a[0] - v[0], b[1] + a[1] - v[1])
        for b, a, v in zip(before, after, values, strict=True)
    ]
    return [
        total / weight if point.count else math.nan
        for point, (total, weight) in zip(points, sums, strict=True)
    ]


def _running(values: Sequence[tuple[float, float]], keep: float) -> list[tuple[float, float]]:
    """Return running sums of values and weights, in which each step back counts `keep` times as
    much."""
    return list(
        itertools.accumulate(
            values, lambda so_far, now: (keep * so_far[0] + now[0], keep * so_far[1] + now[1])
        )
    )


def value_grid(frame: Frame, values: Sequence[float]) -> str:
    """Return a horizontal line at each value, labeled with it."""
    right = frame.width - frame.right
    parts = []
    for value in values:
        y = frame.y(value)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{right:.1f}"/>')
        parts.append(
            f'<text x="{LEFT - 7}" y="{y + 3.5:.1f}" text-anchor="end">{number(value)}</text>'
        )
    return "".join(parts)


def _axes(frame: Frame, values: Sequence[float]) -> str:
    right, bottom = frame.width - frame.right, HEIGHT - BOTTOM
    parts = [value_grid(frame, values)]
    _, _, steps = nice_ticks(
        frame.first_step, max(frame.last_step, frame.first_step + 1), 5 if frame.width < 500 else 8
    )
    shown = [
        round(step)
        for step in steps
        if step == round(step) and frame.first_step <= step <= frame.last_step
    ]
    for step in shown:
        anchor = "end" if frame.x(step) > right - 8 and frame.right < LABEL_WIDTH else "middle"
        words = f"step {_short_step(step)}" if step == shown[-1] else _short_step(step)
        parts.append(f'<path class="tick" d="M{frame.x(step):.1f} {bottom}v4"/>')
        parts.append(
            f'<text x="{frame.x(step):.1f}" y="{bottom + 17}" text-anchor="{anchor}">{words}</text>'
        )
    parts.append(f'<path class="axis" d="M{LEFT} {bottom}H{right:.1f}"/>')
    return "".join(parts)


def _line(frame: Frame, points: Sequence[Point], index: int) -> str:
    """Return one curve. A noisy one is a faint band and line below its running mean, a single
    reading a dot."""
    noisy = is_noisy(points)
    parts = [_run(frame, run, "raw" if noisy else "curve") for run in _runs(points)]
    means = smoothed(points) if noisy else [point.mean for point in points]
    if noisy:
        for run in _runs(points):
            first = points.index(run[0])
            steps = [point.step for point in run]
            values = means[first : first + len(run)]
            parts.append(_path("curve", frame, list(zip(steps, values, strict=True))))
    last = next((place for place in reversed(range(len(points))) if points[place].count), None)
    if last is not None:
        x, y = frame.x(points[last].step), frame.y(means[last])
        parts.append(f'<circle class="end" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>')
    return f'<g class="{_color(index)}">{"".join(parts)}</g>'


def _run(frame: Frame, run: Sequence[Point], kind: str) -> str:
    """Return points without a gap as a line, with a band if they have several readings each."""
    if len(run) == 1:
        x, y = frame.x(run[0].step), frame.y(run[0].mean)
        return f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
    band = ""
    if any(point.count > 1 for point in run):
        upper = [f"{frame.x(point.step):.1f} {frame.y(point.high):.1f}" for point in run]
        lower = [f"{frame.x(point.step):.1f} {frame.y(point.low):.1f}" for point in reversed(run)]
        band = f'<path class="band" d="M{"L".join(upper + lower)}Z"/>'
    return band + _path(kind, frame, [(point.step, point.mean) for point in run])


def _color(index: int) -> str:
    """Return the CSS class of a curve's color."""
    return f"c{index % MAX_CURVES}"


def _path(kind: str, frame: Frame, places: Sequence[tuple[int, float]]) -> str:
    return (
        f'<path class="{kind}"'
        f' d="M{"L".join(f"{frame.x(step):.1f} {frame.y(value):.1f}" for step, value in places)}"/>'
    )


def _runs(points: Sequence[Point]) -> list[list[Point]]:
    """Split points at gaps."""
    return [
        list(run)
        for there, run in itertools.groupby(points, key=lambda point: point.count > 0)
        if there
    ]


def _end_labels(frame: Frame, curves: Sequence[Curve]) -> str:
    """Return each curve's name and last value at its end, moved so that they do not overlap."""
    ends = [
        (frame.y(curve.last[1]), index, curve)
        for index, curve in enumerate(curves)
        if curve.last is not None
    ]
    ends.sort(key=lambda end: end[:2])
    parts, free = [], TOP
    for remaining, (y, index, curve) in zip(range(len(ends) - 1, -1, -1), ends, strict=True):
        # Below the label before, and with room for those that follow.
        y = max(min(y, HEIGHT - BOTTOM + 8 - remaining * LABEL_HEIGHT), free)
        free = y + LABEL_HEIGHT
        x = frame.width - frame.right + 10
        assert curve.last is not None
        parts.append(
            f'<text class="name {_color(index)}" x="{x:.1f}"'
            f' y="{y:.1f}">{html.escape(short(curve.name))}<tspan x="{x:.1f}"'
            f' dy="13">{number(curve.last[1])}</tspan></text>'
        )
    return "".join(parts)


def _short_step(step: int) -> str:
    if step >= 1_000_000:
        return f"{step / 1e6:g} M"
    return f"{step / 1000:g} k" if step >= 20_000 else f"{step:,}"


def short(name: str, length: int = 18) -> str:
    """Shorten a name to `length` characters."""
    return name if len(name) <= length else f"{name[: length - 1]}…"


def _spots(frame: Frame, curves: Sequence[Sequence[Point]]) -> str:
    """Return strips over the plot; the one under the pointer shows its step and values."""
    by_step = [{point.step: point for point in points if point.count} for points in curves]
    steps = sorted(set().union(*by_step))
    if not steps:
        return ""
    if len(steps) > MAX_SPOTS:
        steps = [steps[i * (len(steps) - 1) // (MAX_SPOTS - 1)] for i in range(MAX_SPOTS)]
    edges = [
        LEFT,
        *((frame.x(a) + frame.x(b)) / 2 for a, b in itertools.pairwise(steps)),
        frame.width - frame.right,
    ]
    parts = []
    for step, strip in zip(steps, itertools.pairwise(edges), strict=True):
        values = [
            (index, points[step].mean) for index, points in enumerate(by_step) if step in points
        ]
        parts.append(_spot(frame, step, strip, values))
    return "".join(parts)


def _spot(
    frame: Frame, step: int, strip: tuple[float, float], values: Sequence[tuple[int, float]]
) -> str:
    """Return one strip with the values (curve, value) of its step."""
    start, end = strip
    x, middle = frame.x(step), (LEFT + frame.width - frame.right) / 2
    dots = "".join(
        f'<circle class="{_color(index)}" cx="{x:.1f}" cy="{frame.y(value):.1f}" r="3.5"/>'
        for index, value in values
    )
    words = "".join(
        f' <tspan class="{_color(index)}">{number(value)}</tspan>' for index, value in values
    )
    # Near the edges the text grows inwards.
    anchor = "middle" if abs(x - middle) < middle / 2 else "end" if x > middle else "start"
    return (
        f'<g class="spot"><rect x="{start:.1f}" y="0" width="{max(end - start, 1):.1f}"'
        f' height="{HEIGHT - BOTTOM}"/><path d="M{x:.1f}'
        f' {TOP - 6}V{HEIGHT - BOTTOM}"/>{dots}<text x="{x:.1f}" y="{TOP - 11}"'
        f' text-anchor="{anchor}">step {step:,}{words}</text></g>'
    )
