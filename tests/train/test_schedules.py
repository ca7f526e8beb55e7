"""Promises of the schedules."""

from __future__ import annotations

import itertools
import math

import pytest

from featkit_train.schedules import cosine_schedule, linear_schedule, momentum_end_for, momentum_for


def test_cosine_schedule_at_the_steps_that_matter() -> None:
    def at(step: int) -> float:
        return cosine_schedule(step, start=2.0, end=0.5, num_steps=101, warmup_steps=10)

    assert at(0) == pytest.approx(2.0 / 11)
    assert at(9) == pytest.approx(2.0 * 10 / 11)
    assert at(10) == pytest.approx(2.0)
    assert at(11) == pytest.approx(0.5 + 1.5 * (1 + math.cos(math.pi / 90)) / 2)
    assert at(55) == pytest.approx(1.25)
    assert at(100) == pytest.approx(0.5)
    assert at(1000) == pytest.approx(0.5)


def test_cosine_schedule_never_jumps() -> None:
    values = [
        cosine_schedule(step, start=1.0, end=0.0, num_steps=200, warmup_steps=20)
        for step in range(200)
    ]
    assert max(abs(b - a) for a, b in itertools.pairwise(values)) < 0.05


def test_cosine_schedule_of_one_step_is_defined() -> None:
    assert cosine_schedule(0, start=1.0, end=0.0, num_steps=1) == pytest.approx(1.0)


def test_linear_schedule_runs_from_start_to_end_and_stays() -> None:
    assert linear_schedule(0, start=0.04, end=0.07, num_steps=30) == pytest.approx(0.04)
    assert linear_schedule(15, start=0.04, end=0.07, num_steps=30) == pytest.approx(0.055)
    assert linear_schedule(30, start=0.04, end=0.07, num_steps=30) == pytest.approx(0.07)
    assert linear_schedule(99, start=0.04, end=0.07, num_steps=30) == pytest.approx(0.07)
    assert linear_schedule(0, start=0.04, end=0.07, num_steps=0) == pytest.approx(0.07)


def test_cosine_schedule_ends_at_its_last_step() -> None:
    for num_steps in (2, 3, 17):
        for warmup_steps in (0, 1, num_steps - 1):
            last = cosine_schedule(
                num_steps - 1, start=2.0, end=0.5, num_steps=num_steps, warmup_steps=warmup_steps
            )
            assert last == pytest.approx(0.5 if warmup_steps < num_steps - 1 else 2.0)


def test_linear_schedule_one_step_before_and_after_its_end() -> None:
    at = [linear_schedule(step, start=1.0, end=2.0, num_steps=10) for step in (9, 10, 11)]
    assert at == pytest.approx([1.9, 2.0, 2.0])


def test_momentum_depends_on_the_length_of_the_run() -> None:
    assert momentum_for(1) == momentum_for(1000) == momentum_for(4000) == pytest.approx(0.9)
    assert momentum_for(40_000) == pytest.approx(0.99)
    assert momentum_for(100_000) == momentum_for(10_000_000) == pytest.approx(0.996)
    assert momentum_end_for(0.9) == pytest.approx(0.99)
    assert momentum_end_for(1.0) == 1.0
