"""Promises of the meter of steps."""

from __future__ import annotations

import itertools

import pytest

from featkit_train.watching.meter import Meter


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch) -> Meter:
    """A meter whose clock moves by one second with each look at it."""
    seconds = itertools.count()
    monkeypatch.setattr("time.perf_counter", lambda: float(next(seconds)))
    return Meter(batch_size=8)


def take_steps(meter: Meter, count: int) -> None:
    """Take steps of 2 s, half of each spent waiting."""
    for _ in range(count):
        with meter.waiting():
            pass
        meter.finished_step()


def test_rates_are_those_since_the_last_reading(meter: Meter) -> None:
    take_steps(meter, 3)
    assert meter.read() == {"steps_per_s": 0.5, "images_per_s": 4.0, "waiting_share": 0.5}
    take_steps(meter, 1)
    assert meter.read()["steps_per_s"] == 0.5
    assert meter.read()["steps_per_s"] == 0


def test_totals_are_those_of_all_steps(meter: Meter) -> None:
    take_steps(meter, 4)
    meter.read()
    assert (meter.steps, meter.total_s, meter.images_per_s) == (4, 8.0, 4.0)
    assert meter.waiting_share == 0.5
