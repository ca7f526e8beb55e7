"""Promises of the charts of curves."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from featkit_train.report import charts, write_report
from featkit_train.report.metrics import Curve
from tests.train.report.test_page import Seen, log, make_run


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [
        (0, 1, [0, 0.5, 1]),
        (0.31, 0.69, [0.3, 0.4, 0.5, 0.6, 0.7]),
        (-3, 5, [-4, -2, 0, 2, 4, 6]),
    ],
)
def test_ticks_are_round_numbers_around_the_curve(
    low: float, high: float, wanted: list[float]
) -> None:
    start, end, ticks = charts.nice_ticks(low, high, 4)
    assert start <= low < high <= end
    assert ticks == pytest.approx(wanted)
    assert (start, end) == (ticks[0], ticks[-1])


@pytest.mark.parametrize(
    ("low", "high"), [(0, 0), (1e-300, 2e-300), (-1.7e308, 1.7e308), (1e308, 1e308), (5, 5 + 1e-12)]
)
def test_ticks_of_extreme_ranges_are_finite_and_few(low: float, high: float) -> None:
    start, end, ticks = charts.nice_ticks(low, high, 4)
    assert start < end
    assert len(ticks) <= 8
    assert all(math.isfinite(tick) for tick in ticks)


def test_one_outlier_does_not_flatten_the_rest_and_is_named(tmp_path: Path) -> None:
    lines = [log(step, grad_norm=1e6 if step == 50 else 1.0 + step / 100) for step in range(1, 101)]
    assert (
        "grad_norm once reached 1e6, outside the chart."
        in Seen(write_report(make_run(tmp_path, lines))).words
    )


def test_smoothing_is_the_weighted_mean_about_each_point() -> None:
    curve = Curve("loss")
    values = np.random.default_rng(0).normal(size=60)
    for step, value in enumerate(values):
        curve.add(step, math.nan if step == 7 else float(value))
    keep = 1 - 20 / 60
    there = [place for place in range(60) if place != 7]
    smoothed = charts.smoothed(curve.points)
    for place in there:
        weights = [keep ** abs(place - other) for other in there]
        wanted = sum(
            weight * values[other] for weight, other in zip(weights, there, strict=True)
        ) / sum(weights)
        assert smoothed[place] == pytest.approx(wanted)
    assert math.isnan(smoothed[7])


def test_only_noisy_curves_are_smoothed() -> None:
    noisy, schedule = Curve("loss"), Curve("lr")
    rng = np.random.default_rng(0)
    for step in range(100):
        noisy.add(step, float(rng.normal()))
        schedule.add(step, math.sin(step / 100 * math.pi))
    assert charts.is_noisy(noisy.points)
    assert not charts.is_noisy(schedule.points)
