"""Read metrics.jsonl into curves, line by line and thinned while reading, so that memory stays
bounded."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAX_POINTS = 600  # points of a curve, about its chart's width in pixels


@dataclass
class Point:
    """Consecutive readings: their steps, and count, sum and extremes of the finite ones. A count of
    0 is a gap."""

    first_step: int
    step: int
    count: int = 0
    total: float = 0.0
    low: float = math.inf
    high: float = -math.inf

    @property
    def mean(self) -> float:
        """The mean of the finite readings; nan without any."""
        if not self.count:
            return math.nan
        return (
            self.total / self.count if math.isfinite(self.total) else self.low / 2 + self.high / 2
        )

    def take(self, step: int, value: float) -> None:
        """Add one finite reading."""
        self.step = step
        self.count += 1
        self.total += value
        if value < self.low:  # min() and max() take 50 % longer, which is seconds for a long run
            self.low = value
        if value > self.high:
            self.high = value

    def joined(self, later: Point) -> Point:
        """Return this point and the next one as one."""
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
    """The readings of one name: up to 2 * MAX_POINTS points while reading, and the exact first,
    last and highest values."""

    name: str
    points: list[Point] = field(default_factory=list)
    readings_a_point: int = 1
    not_finite: int = 0
    first: tuple[int, float] | None = None  # step and value, of the finite ones
    last: tuple[int, float] | None = None
    best: tuple[int, float] | None = None  # the first of the highest
    _room: int = 0  # readings to add before the last point is full

    def add(self, step: int, value: float) -> None:
        """Add a reading of a later step than those before."""
        if self._room:
            self._room -= 1
        else:
            if len(self.points) == 2 * MAX_POINTS:
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
        """Return at most MAX_POINTS points."""
        return self.points if len(self.points) <= MAX_POINTS else _halved(self.points)


@dataclass
class Metrics:
    """All curves in the order of their first readings, the newest step, and the time of all steps
    in seconds."""

    curves: dict[str, Curve] = field(default_factory=dict)
    last_step: int = 0
    seconds: float = 0.0


def read_metrics(path: Path) -> Metrics:
    """Read the curves of a metrics.jsonl; none if it does not exist. Lines that are torn, or not a
    mapping with a step, are skipped.

    If steps go back, as after a resume that left old lines, only readings past the newest step
    count.
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
    """Join neighbors in pairs; an odd point at the end stays alone."""
    pairs = [first.joined(second) for first, second in zip(points[::2], points[1::2], strict=False)]
    return pairs + points[len(pairs) * 2 :]
