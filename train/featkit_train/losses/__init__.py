"""Losses and teacher targets as pure functions, and DINO's running center."""

from featkit_train.losses.dino import Center, dino_loss, sharpen
from featkit_train.losses.gram import gram_loss
from featkit_train.losses.ibot import ibot_loss
from featkit_train.losses.knowledge import (
    ExitLoss,
    confidence_weights,
    cross_entropy,
    exit_loss,
    feature_loss,
    kd_loss,
    permuted_knowledge,
    soft_cross_entropy,
)
from featkit_train.losses.koleo import koleo_loss
from featkit_train.losses.sinkhorn import sinkhorn_knopp

__all__ = [
    "Center",
    "ExitLoss",
    "confidence_weights",
    "cross_entropy",
    "dino_loss",
    "exit_loss",
    "feature_loss",
    "gram_loss",
    "ibot_loss",
    "kd_loss",
    "koleo_loss",
    "permuted_knowledge",
    "sharpen",
    "sinkhorn_knopp",
    "soft_cross_entropy",
]
