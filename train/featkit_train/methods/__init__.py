"""The training methods, one file each, by the name that `featkit train` takes.

The engine and the loop know a method only through `base.Method`.
"""

from __future__ import annotations

import dataclasses
import importlib

from featkit.errors import InputError
from featkit_train.config import TrainConfig
from featkit_train.method_list import list_methods
from featkit_train.methods.base import Generators, Method, StepResult, Views
from featkit_train.methods.labels import Labels
from featkit_train.methods.momentum import BranchOutputs, MomentumTeacher, Targets
from featkit_train.methods.supervised import Supervised
from featkit_train.processes.distributed import ALONE, World

# Every class in this folder that defines `name`: a new method is a new file.
METHODS: dict[str, type[Method]] = {
    card.name: getattr(importlib.import_module(f"{__name__}.{card.module}"), card.class_name)
    for card in list_methods().values()
}


def make_method(
    config: TrainConfig, *, world: World = ALONE, labels: Labels | None = None
) -> Method:
    """Return the config's method with newly drawn weights. labels: for methods that learn from
    them.

    InputError for an unknown method, for settings that it does not read, and for a method that
    learns from labels without them.
    """
    if config.method not in METHODS:
        raise InputError(f"There is no method {config.method}; it is one of: {', '.join(METHODS)}.")
    method = METHODS[config.method]
    check_unread(config, method)
    if not method.reads_labels:
        return method(config, world=world)
    if labels is None:
        raise InputError(
            f"{config.method} learns from labels; run it by featkit_train.labeled or `featkit"
            " train`."
        )
    return method(config, world=world, labels=labels)  # type: ignore[call-arg]


def check_unread(config: TrainConfig, method: type[Method]) -> None:
    """Raise InputError if a setting that the method ignores differs from its default."""
    plain = TrainConfig()
    for name in sorted(method.unread()):
        section, default = getattr(config, name), getattr(plain, name)
        for field in dataclasses.fields(section):
            if getattr(section, field.name) != getattr(default, field.name):
                raise InputError(
                    f"{config.method} does not read the setting {name}.{field.name}; leave it out."
                )


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
