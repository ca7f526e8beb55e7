"""Promises of the curves that are read from metrics.jsonl."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featkit_train.report.metrics import MAX_POINTS, Curve, read_metrics
from tests.train.report.test_page import make_run


@pytest.mark.parametrize("count", [1, 599, 600, 601, 1200, 1201, 5000, 12_345])
def test_a_thinned_curve_still_counts_every_reading(count: int) -> None:
    curve = Curve("loss")
    values = np.random.default_rng(0).normal(size=count)
    for step, value in enumerate(values):
        curve.add(step, float(value))
    points = curve.thinned()
    assert len(points) <= MAX_POINTS
    assert count < 600 or len(points) > MAX_POINTS // 2 - 1
    assert sum(point.count for point in points) == count
    start = 0
    for point in points:
        part = values[start : start + point.count]
        assert (point.first_step, point.step) == (start, start + point.count - 1)
        assert point.mean == pytest.approx(part.mean())
        assert (point.low, point.high) == (part.min(), part.max())
        start += point.count
    assert curve.last == (count - 1, values[-1])
    assert curve.best == (int(values.argmax()), values.max())


def test_lines_that_a_resumed_run_wrote_again_are_taken_once(tmp_path: Path) -> None:
    steps = [1, 2, 3, 4, 3, 4, 5]
    metrics = read_metrics(
        make_run(tmp_path, [{"step": step, "loss": 1.0, "steps_per_s": 1.0} for step in steps])
        / "metrics.jsonl"
    )
    assert [point.step for point in metrics.curves["loss"].points] == [1, 2, 3, 4, 5]
    assert (metrics.last_step, metrics.seconds) == (5, 5.0)
