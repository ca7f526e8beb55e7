"""metrics.jsonl as curves: read line by line, every number by its name, thinned while reading so
that memory stays bounded."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MOST_POINTS = 600  # of a curve; as many pixels as it is drawn wide


@dataclass
class Point:
    """Readings that lie side by side: their steps, how many are finite, and the sum and extremes of
    those. None is a gap."""

    first_step: int
    step: int
    count: int = 0
    total: float = 0.0
    low: float = math.inf
    high: float = -math.inf

    @property
    def mean(self) -> float:
        """Of the finite readings; nan of none."""
        if not self.count:
            return math.nan
        return (
            self.total / self.count if math.isfinite(self.total) else self.low / 2 + self.high / 2
        )

    def take(self, step: int, value: float) -> None:
        """One finite reading more."""
        self.step = step
        self.count += 1
        self.total += value
        if value < self.low:  # min() and max() take half as long again, of seconds for a long run
            self.low = value
        if value > self.high:
            self.high = value

    def joined(self, later: Point) -> Point:
        """This point and the one after it as one."""
        low, high = min(self.low, later.low), max(self.high, later.high)
        return Point(
            self.first_step,
            later.step,
            self.count + later.count,
            self.total + later.total,
            low,
            high,
        )


@dataclass
class Curve:
    """One name's readings: up to 2 * MOST_POINTS points while it is read, and exact figures beside
    them."""

    name: str
    points: list[Point] = field(default_factory=list)
    readings_a_point: int = 1
    not_finite: int = 0
    first: tuple[int, float] | None = None  # step and value, of the finite ones
    last: tuple[int, float] | None = None
    best: tuple[int, float] | None = None  # the highest; the first of equals
    _room: int = 0  # readings that the last point still takes

    def add(self, step: int, value: float) -> None:
        """One reading, of a later step than those before."""
        if self._room:
            self._room -= 1
        else:
            if len(self.points) == 2 * MOST_POINTS:
                self.points = _halved(self.points)
                self.readings_a_point *= 2
            self.points.append(Point(step, step))
            self._room = self.readings_a_point - 1
        point = self.points[-1]
        if not math.isfinite(value):
            point.step = step
            self.not_finite += 1
            return
        point.take(step, value)
        self.last = (step, value)
        if self.best is None:
            self.first = self.best = self.last
        elif value > self.best[1]:
            self.best = self.last

    def thinned(self) -> list[Point]:
        """At most MOST_POINTS points."""
        return self.points if len(self.points) <= MOST_POINTS else _halved(self.points)


@dataclass
class Metrics:
    """All curves in the order in which their names first came, the newest step, and the seconds
    that steps took."""

    curves: dict[str, Curve] = field(default_factory=dict)
    last_step: int = 0
    seconds: float = 0.0


def read_metrics(path: Path) -> Metrics:
    """Curves of a metrics.jsonl; none where it does not exist. Lines that are torn or no mapping
    with a step are passed over.

    Where steps go back, as after a resume that left old lines standing, only what lies past the
    newest step is taken.
    """
    metrics = Metrics()
    timed_step = 0
    newest: dict[str, int] = {}
    for line in _lines(path):
        step = line["step"]
        metrics.last_step = max(metrics.last_step, step)
        for name, value in line.items():
            if type(value) not in (int, float) or name == "step" or step <= newest.get(name, -1):
                continue
            newest[name] = step
            if name not in metrics.curves:
                metrics.curves[name] = Curve(name)
            metrics.curves[name].add(step, _as_float(value))
            if name == "steps_per_s":
                if 0 < value < math.inf:
                    metrics.seconds += (step - timed_step) / value
                timed_step = step
    return metrics


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for text in file:
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                continue
            step = line.get("step") if isinstance(line, dict) else None
            if isinstance(step, int) and not isinstance(step, bool) and step >= 0:
                yield line


def _as_float(value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:  # a whole number of more than 308 digits
        return math.inf


def _halved(points: list[Point]) -> list[Point]:
    """Neighbors joined two by two; an odd one at the end stays alone."""
    pairs = [first.joined(second) for first, second in zip(points[::2], points[1::2], strict=False)]
    return pairs + points[len(pairs) * 2 :]
