"""The training methods by the name that `featkit train` takes. The loop knows none of them otherwise."""

from __future__ import annotations

from featkit_train.config import TrainConfig
from featkit_train.methods.dino import Dino, StepResult, Views

METHODS: dict[str, type[Dino]] = {"dino": Dino}

__all__ = ["METHODS", "Dino", "StepResult", "TrainConfig", "Views"]
