"""Promises of the settings' classes."""

from __future__ import annotations

import dataclasses

import pytest

from featkit.errors import InputError
from featkit_train.config import (
    Bounds,
    RunConfig,
    TeacherConfig,
    TrainConfig,
    bounds_of,
    field_types,
)


def test_a_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().optim.lr = 1.0  # type: ignore[misc]


def test_bounds_are_found_within_optional_types() -> None:
    assert bounds_of(field_types(RunConfig)["steps"]) == Bounds(1)
    assert bounds_of(field_types(TeacherConfig)["momentum"]) == Bounds(0, 1)
    assert bounds_of(field_types(RunConfig)["device"]) is None


@pytest.mark.parametrize("value", [0, -1])
def test_a_value_below_its_bound_is_refused(value: int) -> None:
    with pytest.raises(InputError, match=rf"run.steps is {value}; it must be at least 1\."):
        TrainConfig(run=RunConfig(steps=value))


@pytest.mark.parametrize("value", [1.5, -0.1, float("nan")])
def test_a_share_outside_0_and_1_is_refused(value: float) -> None:
    with pytest.raises(InputError, match=rf"teacher.momentum is {value}; it must be from 0 to 1\."):
        TrainConfig(teacher=TeacherConfig(momentum=value))
