"""Typed access to methods with a momentum teacher."""

from __future__ import annotations

from featkit_train.config import TrainConfig
from featkit_train.methods import Method, MomentumTeacher, make_method


def momentum_teacher(method: Method) -> MomentumTeacher:
    """Return the method as a MomentumTeacher."""
    assert isinstance(method, MomentumTeacher)
    return method


def make_teacher(config: TrainConfig) -> MomentumTeacher:
    """Create the config's method as a MomentumTeacher."""
    return momentum_teacher(make_method(config))
