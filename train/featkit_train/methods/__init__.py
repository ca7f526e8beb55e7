"""The training methods by the name that `featkit train` takes. The loop knows none of them
otherwise."""

from __future__ import annotations

import dataclasses

from featkit.errors import InputError
from featkit_train.config import TrainConfig
from featkit_train.methods.adapt import Adapt
from featkit_train.methods.base import Generators, Method, StepResult, Views
from featkit_train.methods.born_again import BornAgain
from featkit_train.methods.dino import Dino
from featkit_train.methods.dinov2 import DinoV2
from featkit_train.methods.dinov3 import DinoV3
from featkit_train.methods.distill import Distill
from featkit_train.methods.ibot import Ibot
from featkit_train.methods.internal import Internal
from featkit_train.methods.labels import Labels
from featkit_train.methods.momentum import BranchOutputs, MomentumTeacher, Targets
from featkit_train.methods.self_training import SelfTraining
from featkit_train.methods.supervised import Supervised
from featkit_train.processes.distributed import ALONE, World

METHODS: dict[str, type[Method]] = {
    "dino": Dino,
    "ibot": Ibot,
    "dinov2": DinoV2,
    "dinov3": DinoV3,
    "distill": Distill,
    "adapt": Adapt,
    "born-again": BornAgain,
    "self-training": SelfTraining,
    "internal": Internal,
}


def make_method(
    config: TrainConfig, *, world: World = ALONE, labels: Labels | None = None
) -> Method:
    """The config's method, with weights drawn; labels: for methods that learn from them.

    InputError for an unknown one, for settings that it does not read, and for a method with labels
    without them.
    """
    if config.method not in METHODS:
        raise InputError(f"There is no method {config.method}; it is one of: {', '.join(METHODS)}.")
    method = METHODS[config.method]
    plain = TrainConfig()
    for section in sorted(method.unread):
        ours, default = getattr(config, section), getattr(plain, section)
        changed = [
            field.name
            for field in dataclasses.fields(ours)
            if getattr(ours, field.name) != getattr(default, field.name)
        ]
        if changed:
            raise InputError(
                f"{config.method} has no use for the setting {section}.{changed[0]}; leave it out."
            )
    if issubclass(method, Supervised):
        if labels is None:
            raise InputError(
                f"{config.method} learns from labels; run it by featkit_train.labeled or `featkit"
                " train`."
            )
        return method(config, world=world, labels=labels)
    return method(config, world=world)


__all__ = [
    "METHODS",
    "BranchOutputs",
    "Generators",
    "Labels",
    "Method",
    "MomentumTeacher",
    "StepResult",
    "Supervised",
    "Targets",
    "Views",
    "make_method",
]
