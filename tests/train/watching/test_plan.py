"""Promises of a run's plan."""

from __future__ import annotations

import itertools

import pytest
import torch

from featkit_train.watching.plan import MEASURED_STEPS, WARM_STEPS, Planner


def test_the_plan_comes_once_and_extrapolates_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count(step=20)
    monkeypatch.setattr("time.perf_counter", lambda: float(next(seconds)))
    planner = Planner(batch_size=4, device=torch.device("cpu"))
    plans = [planner.finished_step(steps_left=900) for _ in range(WARM_STEPS + MEASURED_STEPS + 5)]
    assert [index for index, plan in enumerate(plans, 1) if plan is not None] == [
        WARM_STEPS + MEASURED_STEPS
    ]
    plan = plans[WARM_STEPS + MEASURED_STEPS - 1]
    assert plan is not None
    assert plan.images_per_s == MEASURED_STEPS * 4 / 20
    assert plan.hours_left == pytest.approx(900 * 2 / 3600)  # 2 s for each step
    assert plan.device == "cpu"
    assert plan.memory_bytes > 1 << 20
