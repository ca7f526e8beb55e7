"""Curves as SVG in the page's own colors: axes, ticks, labels at the ends, and figures under the
pointer without a script.

All lengths are units of the image's own coordinates, which the page scales to the width it has.
"""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from featkit_train.report.metrics import Curve, Point
from featkit_train.report.panels import MOST_CURVES

HEIGHT, TOP, BOTTOM, LEFT, RIGHT = 220.0, 24.0, 26.0, 50.0, 16.0
# of a curve's name and last value at its end, where there are several
LABEL_WIDTH, LABEL_HEIGHT = 118.0, 28.0
SPOTS = 40  # places that show their figures under the pointer
SMOOTHED_FROM = 30  # points; fewer are shown as they are
# how far beyond the middle 96 % of points, in their own range, a curve may reach before it is cut
# off
OUTLIER = 6.0


@dataclass(frozen=True)
class Frame:
    """Where steps and values lie in the image."""

    width: float
    right: float
    first_step: float
    last_step: float
    low: float
    high: float

    def x(self, step: float) -> float:
        """Across; a single step lies in the middle."""
        span = self.last_step - self.first_step
        share = (step - self.first_step) / span if span else 0.5
        return LEFT + share * (self.width - LEFT - self.right)

    def y(self, value: float) -> float:
        """Down; what lies outside is held at the frame, a little beyond it."""
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
    """An SVG of the curves over the steps of the whole run. marks: steps at which something was
    said, as thin lines."""
    several = len(curves) > 1
    drawn = [(curve, curve.thinned()) for curve in curves]
    low, high = value_range([point for _, points in drawn for point in points])
    low, high, values = nice_ticks(low, high, 4)
    frame = Frame(width, RIGHT + (LABEL_WIDTH if several else 0), first_step, last_step, low, high)
    parts = [_axes(frame, values)]
    parts += [
        f'<path class="mark" d="M{frame.x(step):.1f} {TOP}V{HEIGHT - BOTTOM}"/>' for step in marks
    ]
    parts += [_line(frame, points, number) for number, (_, points) in enumerate(drawn)]
    if several:
        parts.append(_end_labels(frame, curves))
    parts.append(_spots(frame, [points for _, points in drawn]))
    says = html.escape("; ".join(map(in_words, curves)))
    return (
        f'<svg viewBox="0 0 {width:g} {HEIGHT:g}" role="img"'
        f' aria-label="{says}">{"".join(parts)}</svg>'
    )


def in_words(curve: Curve) -> str:
    """What a curve does, for those who do not see it."""
    if curve.first is None or curve.last is None:
        return f"{curve.name}: no finite number"
    first, last = (f"{number(value)} at step {step:,}" for step, value in (curve.first, curve.last))
    return f"{curve.name}: from {first} to {last}"


def beyond_the_frame(curve: Curve) -> list[float]:
    """The extremes of a curve that its chart leaves out, being outliers."""
    points = [point for point in curve.thinned() if point.count]
    low, high = value_range(points)
    ends = (
        min((point.low for point in points), default=low),
        max((point.high for point in points), default=high),
    )
    return [end for end in ends if not low <= end <= high]


def number(value: float) -> str:
    """A value in at most four digits that mean something."""
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
    """Lowest and highest to show: all of it, but for outliers that would flatten the rest. (0, 1)
    where there is nothing."""
    finite = sorted(end for point in points if point.count for end in (point.low, point.high))
    if not finite:
        return 0.0, 1.0
    inner_low, inner_high = finite[len(finite) // 50], finite[-1 - len(finite) // 50]
    reach = OUTLIER * (inner_high - inner_low)
    low = finite[0] if reach == 0 or inner_low - finite[0] <= reach else inner_low
    high = finite[-1] if reach == 0 or finite[-1] - inner_high <= reach else inner_high
    return low, high


def nice_ticks(low: float, high: float, wanted: int) -> tuple[float, float, list[float]]:
    """A range around `low` and `high` and round numbers in it, about `wanted` steps of 1, 2 or 5
    times a power of ten."""
    if high - low <= max(abs(low), abs(high)) * 1e-9:
        room = abs(low) * 0.1 or 1.0
        low, high = low - room, high + room
    span = high - low
    if not math.isfinite(span):  # both ends near the largest float there is
        low, high, span = low / 4, high / 4, high / 4 - low / 4
    power = 10.0 ** math.floor(math.log10(span / wanted))
    step = power * next(
        times for times in (1, 2, 5, 10) if span / (power * times) <= wanted + 0.001
    )
    first, last = math.floor(low / step + 1e-6), math.ceil(high / step - 1e-6)
    return first * step, last * step, [count * step for count in range(first, last + 1)]


def is_noisy(points: Sequence[Point]) -> bool:
    """Whether a curve goes up and down much more than it gets anywhere."""
    means = [point.mean for point in points if point.count]
    if len(means) < SMOOTHED_FROM:
        return False
    traveled = sum(abs(after - before) for before, after in itertools.pairwise(means))
    return traveled > 3 * (max(means) - min(means))


def smoothed(points: Sequence[Point]) -> list[float]:
    """The mean about each point i, the j-th with weight k^|i - j|, k = 1 - 20 / their number; nan
    where a point is a gap."""
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
    """At each place the sum of it and all before it, and of their weights, each step back worth
    `keep` of the one after."""
    return list(
        itertools.accumulate(
            values, lambda so_far, now: (keep * so_far[0] + now[0], keep * so_far[1] + now[1])
        )
    )


def value_grid(frame: Frame, values: Sequence[float]) -> str:
    """A line across the plot at each value, and the value beside it."""
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


def _line(frame: Frame, points: Sequence[Point], place: int) -> str:
    """The curve itself; a noisy one is a faint band and line under its smoothed one. A reading
    alone is a dot."""
    color = f"c{place % MOST_CURVES}"
    noisy = is_noisy(points)
    parts = [f'<g class="{color}">']
    for run in _runs(points):
        if len(run) == 1:
            parts.append(
                f'<circle class="dot" cx="{frame.x(run[0].step):.1f}"'
                f' cy="{frame.y(run[0].mean):.1f}" r="3"/>'
            )
            continue
        if any(point.count > 1 for point in run):
            there = [f"{frame.x(point.step):.1f} {frame.y(point.high):.1f}" for point in run]
            back = [
                f"{frame.x(point.step):.1f} {frame.y(point.low):.1f}" for point in reversed(run)
            ]
            parts.append(f'<path class="band" d="M{"L".join(there + back)}Z"/>')
        parts.append(
            _path("raw" if noisy else "curve", frame, [(point.step, point.mean) for point in run])
        )
    if noisy:
        means = smoothed(points)
        for run in _runs(points):
            first = points.index(run[0])
            places = [
                (point.step, mean)
                for point, mean in zip(run, means[first : first + len(run)], strict=True)
            ]
            parts.append(_path("curve", frame, places))
    last = next((point for point in reversed(points) if point.count), None)
    if last is not None:
        value = smoothed(points)[len(points) - 1 - points[::-1].index(last)] if noisy else last.mean
        parts.append(
            f'<circle class="end" cx="{frame.x(last.step):.1f}" cy="{frame.y(value):.1f}" r="3.5"/>'
        )
    return "".join([*parts, "</g>"])


def _path(kind: str, frame: Frame, places: Sequence[tuple[int, float]]) -> str:
    return (
        f'<path class="{kind}"'
        f' d="M{"L".join(f"{frame.x(step):.1f} {frame.y(value):.1f}" for step, value in places)}"/>'
    )


def _runs(points: Sequence[Point]) -> list[list[Point]]:
    """Points between gaps."""
    return [
        list(run)
        for there, run in itertools.groupby(points, key=lambda point: point.count > 0)
        if there
    ]


def _end_labels(frame: Frame, curves: Sequence[Curve]) -> str:
    """Each curve's name and last value beside its end, moved apart where they would cover each
    other."""
    ends = [
        (frame.y(curve.last[1]), place, curve)
        for place, curve in enumerate(curves)
        if curve.last is not None
    ]
    ends.sort(key=lambda end: end[:2])
    parts, free = [], TOP
    for left, (y, place, curve) in zip(range(len(ends), 0, -1), ends, strict=True):
        y = max(min(y, HEIGHT - BOTTOM + 8 - (left - 1) * LABEL_HEIGHT), free)
        free = y + LABEL_HEIGHT
        x = frame.width - frame.right + 10
        assert curve.last is not None
        parts.append(
            f'<text class="name c{place % MOST_CURVES}" x="{x:.1f}"'
            f' y="{y:.1f}">{html.escape(short(curve.name))}<tspan x="{x:.1f}"'
            f' dy="13">{number(curve.last[1])}</tspan></text>'
        )
    return "".join(parts)


def _short_step(step: int) -> str:
    if step >= 1_000_000:
        return f"{step / 1e6:g} M"
    return f"{step / 1000:g} k" if step >= 20_000 else f"{step:,}"


def short(name: str, length: int = 18) -> str:
    """A name in so many characters."""
    return name if len(name) <= length else f"{name[: length - 1]}…"


def _spots(frame: Frame, curves: Sequence[Sequence[Point]]) -> str:
    """Strips over the plot; under the pointer, one shows its step and the readings there."""
    steps = sorted({point.step for points in curves for point in points if point.count})
    if not steps:
        return ""
    chosen = (
        steps
        if len(steps) <= SPOTS
        else [steps[place * (len(steps) - 1) // (SPOTS - 1)] for place in range(SPOTS)]
    )
    by_step = [{point.step: point for point in points if point.count} for points in curves]
    edges = [
        LEFT,
        *((frame.x(a) + frame.x(b)) / 2 for a, b in itertools.pairwise(chosen)),
        frame.width - frame.right,
    ]
    parts = []
    for step, (start, end) in zip(chosen, itertools.pairwise(edges), strict=True):
        here = [
            (place, points[step].mean) for place, points in enumerate(by_step) if step in points
        ]
        x = frame.x(step)
        dots = "".join(
            f'<circle class="c{p % MOST_CURVES}" cx="{x:.1f}" cy="{frame.y(v):.1f}" r="3.5"/>'
            for p, v in here
        )
        middle = (LEFT + frame.width - frame.right) / 2
        anchor = "middle" if abs(x - middle) < middle / 2 else "end" if x > middle else "start"
        values = "".join(
            f' <tspan class="c{p % MOST_CURVES}">{number(value)}</tspan>' for p, value in here
        )
        parts.append(
            f'<g class="spot"><rect x="{start:.1f}" y="0" width="{max(end - start, 1):.1f}"'
            f' height="{HEIGHT - BOTTOM}"/><path d="M{x:.1f}'
            f' {TOP - 6}V{HEIGHT - BOTTOM}"/>{dots}<text x="{x:.1f}" y="{TOP - 11}"'
            f' text-anchor="{anchor}">step {step:,}{values}</text></g>'
        )
    return "".join(parts)
