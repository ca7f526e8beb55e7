"""Methods with a momentum teacher as what they are, for tests that look at their parts."""

from __future__ import annotations

from featkit_train.config import TrainConfig
from featkit_train.methods import Method, MomentumTeacher, make_method


def momentum_teacher(method: Method) -> MomentumTeacher:
    """The method, which has one."""
    assert isinstance(method, MomentumTeacher)
    return method


def make_teacher(config: TrainConfig) -> MomentumTeacher:
    """A new one by the config."""
    return momentum_teacher(make_method(config))
