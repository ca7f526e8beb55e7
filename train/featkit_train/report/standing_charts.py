"""Trainings beside each other as SVG: figures of each in its own place, or accuracy over speed,
with bars of standard error.

Lengths, colors and what shows under the pointer are as in charts.
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
LETTER, NAME_HEIGHT = 6.3, 14.0  # how wide a letter of a label is, on average, and how high
MOST_LABELS = 12  # of places that are only numbered
APART = 0.35  # of a place, between what is joined and what is not


@dataclass(frozen=True)
class Place:
    """One training. What follows from the one before is joined to it by a line; an ensemble stands
    by itself."""

    name: str
    joined: bool = True
    chosen: bool = False


@dataclass(frozen=True)
class Series:
    """One figure of every place, None where it has none, and how far chance moves each: 0 draws no
    bar."""

    name: str
    values: Sequence[float | None]
    errors: Sequence[float] = ()

    def error(self, place: int) -> float:
        """Half the length of a bar."""
        return self.errors[place] if self.errors else 0.0


def places_chart(places: Sequence[Place], series: Sequence[Series]) -> str:
    """An SVG with the places side by side, those that are not joined to the right; each series has
    a color, in their order."""
    frame, values = _frame(series, 0.0, _across(places, len(places) - 1) + 0.5)
    across = [frame.x(_across(places, place)) for place in range(len(places))]
    parts = [value_grid(frame, values), _axis(frame), _labels(places, across)]
    if any(place.joined for place in places) and not all(place.joined for place in places):
        middle = (across[_joined(places) - 1] + across[_joined(places)]) / 2
        parts.append(
            f'<path class="grid" stroke-dasharray="2 3" d="M{middle:.1f} {TOP}V{HEIGHT - BOTTOM}"/>'
        )
    parts += [_series(frame, places, across, one, color) for color, one in enumerate(series)]
    ends = [LEFT, *((a + b) / 2 for a, b in itertools.pairwise(across)), frame.width - frame.right]
    for place, strip in enumerate(itertools.pairwise(ends)):
        parts.append(_spot(frame, places[place].name, across[place], strip, place, series))
    return _svg(parts, places, series)


def speed_chart(places: Sequence[Place], accuracy: Series, images_per_s: Sequence[float]) -> str:
    """An SVG of accuracy over images a second, each place with its name; the line joins them from
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
    """A share in three digits after the point, with its standard error where there is one."""
    return f"{value:.3f} ± {error:.3f}" if error else f"{value:.3f}"


def _frame(series: Sequence[Series], first: float, last: float) -> tuple[Frame, list[float]]:
    """The frame around all values and their bars, which as shares end at 0 and 1, and the values to
    name at its side."""
    known = [
        (value, one.error(place))
        for one in series
        for place, value in enumerate(one.values)
        if value is not None
    ]
    low = min((max(value - error, min(value, 0.0)) for value, error in known), default=0.0)
    high = max((min(value + error, max(value, 1.0)) for value, error in known), default=1.0)
    low, high, values = nice_ticks(low, high, 4)
    return Frame(WIDTH, RIGHT, first, last, low, high), values


def _joined(places: Sequence[Place]) -> int:
    return sum(place.joined for place in places)


def _across(places: Sequence[Place], place: int) -> float:
    """Where a place has its middle, in places from the left."""
    return place + 0.5 + (APART if 0 < _joined(places) <= place else 0.0)


def _axis(frame: Frame) -> str:
    return f'<path class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H{frame.width - frame.right:.1f}"/>'


def _labels(places: Sequence[Place], across: Sequence[float]) -> str:
    """What stands below each place: its number, where that is all that tells it from the others,
    else its name.

    Ensembles whose names have no room have one word for all of them.
    """
    room = int((WIDTH - LEFT - RIGHT) / len(places) / LETTER)
    every = math.ceil(_joined(places) / MOST_LABELS)
    words = [_below(place.name, room) for place in places]
    shown = [place for place, one in enumerate(places) if one.joined and place % every == 0]
    apart = [place for place, one in enumerate(places) if not one.joined]
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
    """Each place's name above its bar, or below it, wherever it covers no other; what has no room
    shows under the pointer.

    Those of ensembles are below first, since an ensemble of exits is as slow as the last exit, and
    stands close to it.
    """
    parts: list[str] = []
    taken: list[tuple[float, float, float]] = []  # left, right and foot of a name
    for place, (x, value) in enumerate(zip(across, series.values, strict=True)):
        if value is None:
            continue
        words = short(places[place].name)
        half = len(words) * LETTER / 2
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
    """The line through what is joined, and at each place a bar, a dot or for what stands by itself
    a diamond, and a ring."""
    known = [
        (place, across[place], value)
        for place, value in enumerate(series.values)
        if value is not None
    ]
    line = [f"{x:.1f} {frame.y(value):.1f}" for place, x, value in known if places[place].joined]
    parts = [f'<path class="curve" d="M{"L".join(line)}"/>'] if len(line) > 1 else []
    radius = 4.5 if len(places) <= MOST_LABELS else 3.5
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
    """A strip over the plot; under the pointer, it shows the place's name and figures."""
    there = [
        (color, one.name, one.values[place], one.error(place)) for color, one in enumerate(series)
    ]
    known = [
        (color, title, value, error) for color, title, value, error in there if value is not None
    ]
    dots = "".join(
        f'<circle class="c{color}" cx="{x:.1f}" cy="{frame.y(value):.1f}" r="4.5"/>'
        for color, _, value, _ in known
    )
    values = "".join(
        " <tspan"
        f' class="c{color}">{text(f"{title} " if len(series) > 1 else "")}{figure(value, error)}</tspan>'
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
    says = "; ".join(
        f"{one.name}: "
        + ", ".join(
            f"{places[place].name} {figure(value, one.error(place))}"
            for place, value in enumerate(one.values)
            if value is not None
        )
        for one in series
    )
    return (
        f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img"'
        f' aria-label="{text(says)}">{"".join(parts)}</svg>'
    )
