"""Internal distillation (Be Your Own Teacher, arXiv 1905.08094): a network's deepest exit teaches
its shallower ones.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from featkit_train.losses import exit_loss
from featkit_train.methods.supervised import Supervised, Supervision
from featkit_train.networks.classifier import Outputs


class Internal(Supervised):
    """Train every exit on labels, and the shallower ones also on the deepest exit's distribution
    and features (section 3, eq. 5)."""

    name: ClassVar[str] = "internal"
    title: ClassVar[str] = "internal distillation"
    paper: ClassVar[str] = "Be Your Own Teacher, arXiv 1905.08094"
    needs: ClassVar[str] = "labels"
    when: ClassVar[str] = (
        "all images have labels, and you want to choose the speed later: a model with exits"
    )
    reads: ClassVar[frozenset[str]] = Supervised.reads | {"internal"}
    with_exits: ClassVar[bool] = True

    def terms(self, outputs: Outputs, supervision: Supervision) -> dict[str, Tensor]:
        """Return three terms, each summed over exits."""
        config = self.config.internal
        loss = exit_loss(
            outputs.logits,
            outputs.vectors,
            supervision.labels,
            alpha=config.alpha,
            feature_weight=config.feature_weight,
            temperature=config.temperature,
            smoothing=self.config.labels.smoothing,
        )
        return {
            "label_loss": loss.labels,
            "teacher_loss": loss.knowledge,
            "feature_loss": loss.features,
        }
