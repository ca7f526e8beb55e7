"""Self-training (Noisy Student, arXiv 1911.04252): a student learns from labels and from its
teacher's predictions for unlabeled images.

One run trains one student; `labeled.rounds` predicts labels and runs the rounds. The student's
noise is the crops and colors, and the classifier's dropout and stochastic depth
(classifier.options).
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from featkit_train.losses import soft_cross_entropy
from featkit_train.methods.labels import UNKNOWN
from featkit_train.methods.supervised import Supervised, Supervision
from featkit_train.networks.classifier import Outputs


class SelfTraining(Supervised):
    """Cross-entropy with labels and with pseudo-labels (section 2, algorithm 1)."""

    name: ClassVar[str] = "self-training"
    title: ClassVar[str] = "self-training"
    paper: ClassVar[str] = "Noisy Student, arXiv 1911.04252"
    needs: ClassVar[str] = "some labels"
    when: ClassVar[str] = "few images have labels, and many of the same kinds have none"
    reads: ClassVar[frozenset[str]] = Supervised.reads | {"self_training"}

    def terms(self, outputs: Outputs, supervision: Supervision) -> dict[str, Tensor]:
        """Return one term: each image's label, or its pseudo-label if it has none."""
        if not supervision.probs.shape[1]:
            return {"label_loss": self.label_term(outputs, supervision)}
        known, smoothing, num_classes = (
            (supervision.labels != UNKNOWN)[:, None],
            self.config.labels.smoothing,
            supervision.probs.shape[1],
        )
        smoothed = (
            F.one_hot(supervision.labels.clamp(min=0), num_classes) * (1 - smoothing)
            + smoothing / num_classes
        )
        return {
            "label_loss": soft_cross_entropy(
                outputs.logits[-1], smoothed.where(known, supervision.probs)
            )
        }
