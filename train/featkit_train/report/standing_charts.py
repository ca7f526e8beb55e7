"""Compare trainings as SVG: figures of each in a column of its own, or accuracy over speed, with
bars of standard error.

Units, colors and values under the pointer are as in charts.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from featkit_train.report.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    Frame,
    nice_ticks,
    number,
    short,
    value_grid,
)
from featkit_train.report.parts import text

WIDTH = 440.0
LETTER_WIDTH, NAME_HEIGHT = 6.3, 14.0  # average width of a label's letter
MAX_LABELS = 12  # with more numbered columns, only some get a label
GAP = 0.35  # before columns that are not joined, as a share of a column


@dataclass(frozen=True)
class Place:
    """The column of one training. joined: connected by a line to its predecessor; False for an
    ensemble."""

    name: str
    joined: bool = True
    chosen: bool = False


@dataclass(frozen=True)
class Series:
    """One figure for every place, None if unknown, and the standard errors; 0 draws no error
    bar."""

    name: str
    values: Sequence[float | None]
    errors: Sequence[float] = ()

    def error(self, place: int) -> float:
        """Return the standard error at a place, half the length of its bar."""
        return self.errors[place] if self.errors else 0.0


def places_chart(places: Sequence[Place], series: Sequence[Series]) -> str:
    """Return an SVG with the places side by side; those that are not joined come last. Each
    series has its own color."""
    frame, values = _frame(series, 0.0, _across(places, len(places) - 1) + 0.5)
    across = [frame.x(_across(places, place)) for place in range(len(places))]
    parts = [value_grid(frame, values), _axis(frame), _labels(places, across)]
    if any(place.joined for place in places) and not all(place.joined for place in places):
        middle = (across[_joined(places) - 1] + across[_joined(places)]) / 2
        parts.append(
            f'<path class="grid" stroke-dasharray="2 3" d="M{middle:.1f} {TOP}V{HEIGHT - BOTTOM}"/>'
        )
    parts += [_series(frame, places, across, each, color) for color, each in enumerate(series)]
    ends = [LEFT, *((a + b) / 2 for a, b in itertools.pairwise(across)), frame.width - frame.right]
    for place, strip in enumerate(itertools.pairwise(ends)):
        parts.append(_spot(frame, places[place].name, across[place], strip, place, series))
    return _svg(parts, places, series)


def speed_chart(places: Sequence[Place], accuracy: Series, images_per_s: Sequence[float]) -> str:
    """Return an SVG of accuracy over images per second, with names; a line joins the places from
    slow to fast."""
    low, high, steps = nice_ticks(min(images_per_s), max(images_per_s), 4)
    frame, values = _frame([accuracy], low, high)
    order = sorted(range(len(places)), key=lambda place: images_per_s[place])
    sorted_places = [places[place] for place in order]
    sorted_accuracy = Series(
        accuracy.name,
        [accuracy.values[place] for place in order],
        [accuracy.error(place) for place in order],
    )
    across = [frame.x(images_per_s[place]) for place in order]
    parts = [value_grid(frame, values), _axis(frame)]
    for step in steps:
        parts.append(f'<path class="tick" d="M{frame.x(step):.1f} {HEIGHT - BOTTOM}v4"/>')
        parts.append(_label(number(step), frame.x(step), HEIGHT - BOTTOM + 17))
    parts.append(_series(frame, sorted_places, across, sorted_accuracy, 0))
    parts.append(_names(frame, sorted_places, across, sorted_accuracy))
    ends = [LEFT, *((a + b) / 2 for a, b in itertools.pairwise(across)), frame.width - frame.right]
    for place, strip in enumerate(itertools.pairwise(ends)):
        speed = f"{sorted_places[place].name}, {number(images_per_s[order[place]])} a second"
        parts.append(_spot(frame, speed, across[place], strip, place, [sorted_accuracy]))
    return _svg(parts, sorted_places, [sorted_accuracy])


def figure(value: float, error: float = 0.0) -> str:
    """Return a share with three decimals, and its standard error unless it is 0."""
    return f"{value:.3f} ± {error:.3f}" if error else f"{value:.3f}"


def _frame(series: Sequence[Series], first: float, last: float) -> tuple[Frame, list[float]]:
    """Return a frame around all values and their bars, which end at 0 and 1 as shares do, and the
    values of its ticks."""
    known = [
        (value, each.error(place))
        for each in series
        for place, value in enumerate(each.values)
        if value is not None
    ]
    low = min((max(value - error, min(value, 0.0)) for value, error in known), default=0.0)
    high = max((min(value + error, max(value, 1.0)) for value, error in known), default=1.0)
    low, high, values = nice_ticks(low, high, 4)
    return Frame(WIDTH, RIGHT, first, last, low, high), values


def _joined(places: Sequence[Place]) -> int:
    return sum(place.joined for place in places)


def _across(places: Sequence[Place], place: int) -> float:
    """Return the center of a place, in columns from the left."""
    return place + 0.5 + (GAP if 0 < _joined(places) <= place else 0.0)


def _axis(frame: Frame) -> str:
    return f'<path class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H{frame.width - frame.right:.1f}"/>'


def _labels(places: Sequence[Place], across: Sequence[float]) -> str:
    """Return the label below each place: its number if the names differ only in that, else its
    name.

    Ensembles whose names do not fit share one word.
    """
    room = int((WIDTH - LEFT - RIGHT) / len(places) / LETTER_WIDTH)
    every = math.ceil(_joined(places) / MAX_LABELS)
    words = [_below(place.name, room) for place in places]
    shown = [place for place, each in enumerate(places) if each.joined and place % every == 0]
    apart = [place for place, each in enumerate(places) if not each.joined]
    crowded = len(apart) > 1 and any(len(words[place]) > room for place in apart)
    parts = [
        _label(short(words[place], max(room, 3)), across[place], HEIGHT - BOTTOM + 17)
        for place in shown
    ]
    if crowded:
        return "".join(
            [*parts, _label("ensembles", (across[apart[0]] + across[-1]) / 2, HEIGHT - BOTTOM + 17)]
        )
    return "".join(
        [
            *parts,
            *(
                _label(short(words[place], 14), across[place], HEIGHT - BOTTOM + 17)
                for place in apart
            ),
        ]
    )


def _below(name: str, room: int) -> str:
    numbered = re.fullmatch(r"(?:generation|round|exit)[-_ ]?(\d+)", name)
    if numbered:
        return numbered[1]
    if len(name) <= room:
        return name
    return re.sub(r"^(all \w+) together$", r"\1", re.sub(r"^ensemble[-_ ]?", "ens. ", name))


def _names(frame: Frame, places: Sequence[Place], across: Sequence[float], series: Series) -> str:
    """Return each place's name above or below its bar, where it covers no other name. A name that
    does not fit shows under the pointer.

    Names of ensembles are tried below first: an ensemble of exits is as slow as the last exit, so
    the two are close together.
    """
    parts: list[str] = []
    taken: list[tuple[float, float, float]] = []  # left, right and foot of a name
    for place, (x, value) in enumerate(zip(across, series.values, strict=True)):
        if value is None:
            continue
        words = short(places[place].name)
        half = len(words) * LETTER_WIDTH / 2
        x = min(max(x, LEFT + half), frame.width - half)
        above, below = (
            frame.y(value + series.error(place)) - 9,
            frame.y(value - series.error(place)) + 18,
        )
        for y in (above, below) if places[place].joined else (below, above):
            if all(
                x + half < left or right < x - half or abs(y - foot) > NAME_HEIGHT
                for left, right, foot in taken
            ):
                taken.append((x - half, x + half, y))
                parts.append(_label(words, x, y))
                break
    return "".join(parts)


def _label(words: str, x: float, y: float) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{text(words)}</text>'


def _series(
    frame: Frame, places: Sequence[Place], across: Sequence[float], series: Series, color: int
) -> str:
    """Return the line through joined places, and at each place its bar and a dot; a diamond if it
    is not joined, a ring if it is chosen."""
    known = [
        (place, across[place], value)
        for place, value in enumerate(series.values)
        if value is not None
    ]
    line = [f"{x:.1f} {frame.y(value):.1f}" for place, x, value in known if places[place].joined]
    parts = [f'<path class="curve" d="M{"L".join(line)}"/>'] if len(line) > 1 else []
    radius = 4.5 if len(places) <= MAX_LABELS else 3.5
    for place, x, value in known:
        y, error = frame.y(value), series.error(place)
        if error:
            top, bottom = frame.y(value + error), frame.y(value - error)
            parts.append(
                f'<path class="error" d="M{x - 4:.1f} {top:.1f}h8m-4 0V{bottom:.1f}m-4 0h8"/>'
            )
        if places[place].chosen:
            parts.append(f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="8"/>')
        dot = f'<circle class="end" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>'
        parts.append(
            dot
            if places[place].joined
            else f'<path class="end" d="M{x:.1f} {y - 6:.1f}l6 6-6 6-6-6Z"/>'
        )
    return f'<g class="c{color}">{"".join(parts)}</g>'


def _spot(
    frame: Frame,
    name: str,
    x: float,
    strip: tuple[float, float],
    place: int,
    series: Sequence[Series],
) -> str:
    """Return a strip over the plot that shows the place's name and figures under the pointer."""
    figures = [
        (color, each.name, each.values[place], each.error(place))
        for color, each in enumerate(series)
    ]
    known = [
        (color, title, value, error) for color, title, value, error in figures if value is not None
    ]
    dots = "".join(
        f'<circle class="c{color}" cx="{x:.1f}" cy="{frame.y(value):.1f}" r="4.5"/>'
        for color, _, value, _ in known
    )
    values = "".join(
        f' <tspan class="c{color}">{text(f"{title} " if len(series) > 1 else "")}'
        f"{figure(value, error)}</tspan>"
        for color, title, value, error in known
    )
    middle = (LEFT + frame.width - frame.right) / 2
    anchor = "middle" if abs(x - middle) < middle / 3 else "end" if x > middle else "start"
    at = min(max(x, LEFT), frame.width - frame.right)
    return (
        f'<g class="spot"><rect x="{strip[0]:.1f}" y="0" width="{max(strip[1] - strip[0], 1):.1f}"'
        f' height="{HEIGHT - BOTTOM}"/><path d="M{x:.1f} {TOP - 6}V{HEIGHT - BOTTOM}"/>{dots}<text'
        f' x="{at:.1f}" y="{TOP - 11}"'
        f' text-anchor="{anchor}">{text(short(name, 32))}{values}</text></g>'
    )


def _svg(parts: Sequence[str], places: Sequence[Place], series: Sequence[Series]) -> str:
    description = "; ".join(
        f"{each.name}: "
        + ", ".join(
            f"{places[place].name} {figure(value, each.error(place))}"
            for place, value in enumerate(each.values)
            if value is not None
        )
        for each in series
    )
    return (
        f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img"'
        f' aria-label="{text(description)}">{"".join(parts)}</svg>'
    )
