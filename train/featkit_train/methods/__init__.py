"""The training methods by the name that `featkit train` takes. The loop knows none of them otherwise."""

from __future__ import annotations

import dataclasses

from featkit.errors import InputError
from featkit_train.config import TrainConfig
from featkit_train.engine.distributed import ALONE, World
from featkit_train.methods.adapt import Adapt
from featkit_train.methods.base import Dice, Looks, MomentumTeacher, StepResult, Targets, Views
from featkit_train.methods.dino import Dino
from featkit_train.methods.dinov2 import DinoV2
from featkit_train.methods.dinov3 import DinoV3
from featkit_train.methods.distill import Distill
from featkit_train.methods.ibot import Ibot

METHODS: dict[str, type[MomentumTeacher]] = {
    "dino": Dino,
    "ibot": Ibot,
    "dinov2": DinoV2,
    "dinov3": DinoV3,
    "distill": Distill,
    "adapt": Adapt,
}


def make_method(config: TrainConfig, *, world: World = ALONE) -> MomentumTeacher:
    """The config's method, with weights drawn. InputError for an unknown one, and for settings that it does not read."""
    if config.method not in METHODS:
        raise InputError(f"There is no method {config.method}; it is one of: {', '.join(METHODS)}.")
    method = METHODS[config.method]
    plain = TrainConfig()
    for section in sorted(method.unread):
        ours, default = getattr(config, section), getattr(plain, section)
        changed = [
            field.name for field in dataclasses.fields(ours) if getattr(ours, field.name) != getattr(default, field.name)
        ]
        if changed:
            raise InputError(f"{config.method} has no use for the setting {section}.{changed[0]}; leave it out.")
    return method(config, world=world)


__all__ = ["METHODS", "Dice", "Looks", "MomentumTeacher", "StepResult", "Targets", "Views", "make_method"]
