"""Born-Again Networks (arXiv 1805.04770): a student with its teacher's architecture, trained from
new weights.

One run trains one generation; `labeled.generations` runs them in turn. The first generation has no
teacher and learns from labels alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from featkit_train.losses import confidence_weights, kd_loss, permuted_knowledge
from featkit_train.methods.base import Views
from featkit_train.methods.supervised import Supervised, Supervision
from featkit_train.networks.classifier import Outputs
from featkit_train.random_streams import PERMUTED, rng_for


class BornAgain(Supervised):
    """Learn from labels, and from the previous generation's logits for the same crop (section
    3)."""

    name: ClassVar[str] = "born-again"
    title: ClassVar[str] = "Born-Again Networks"
    paper: ClassVar[str] = "arXiv 1805.04770"
    needs: ClassVar[str] = "labels"
    when: ClassVar[str] = (
        "all images have labels: a better network of the same size, and an ensemble"
    )
    reads: ClassVar[frozenset[str]] = Supervised.reads | {"knowledge", "born_again"}

    @torch.no_grad()
    def teacher_forward(self, views: Views) -> Supervision:
        """Return the supervision of a micro-batch; mode dkpp permutes all logits but the largest.

        The permutation depends on the image and its view alone, so that a resumed run draws the
        same.
        """
        supervision = super().teacher_forward(views)
        if self.config.knowledge.mode != "dkpp" or not self.has_teacher:
            return supervision
        generators = [
            rng_for(self.config.run.seed, PERMUTED, *key) for key in views.indices.T.tolist()
        ]
        rows = zip(supervision.teacher_logits.split(1), generators, strict=True)
        return supervision._replace(
            teacher_logits=torch.cat([permuted_knowledge(row, generator=own) for row, own in rows])
        )

    def make_targets(
        self, teacher_outputs: Sequence[Supervision], *, step: int
    ) -> tuple[Sequence[Supervision], dict[str, Tensor]]:
        """Return the supervision; mode cwtm weights images by the teacher's confidence."""
        del step
        if not self.has_teacher:
            return teacher_outputs, {}
        logits = torch.cat([part.teacher_logits for part in teacher_outputs])
        logged = {"teacher_confidence": logits.softmax(dim=-1).amax(dim=-1).mean()}
        if self.config.knowledge.mode != "cwtm":
            return teacher_outputs, logged
        # The engine averages the losses of micro-batches, so the weights of each sum to 1 on
        # average.
        weights = len(teacher_outputs) * confidence_weights(logits, gather=self.world.gather)
        split_weights = weights.split([len(part.labels) for part in teacher_outputs])
        return [
            part._replace(weights=own)
            for part, own in zip(teacher_outputs, split_weights, strict=True)
        ], logged

    def terms(self, outputs: Outputs, supervision: Supervision) -> dict[str, Tensor]:
        """Return the cross-entropy with the labels, and the distillation term unless mode is
        cwtm."""
        config = self.config.knowledge
        if not self.has_teacher or config.mode == "cwtm":
            return {"label_loss": self.label_term(outputs, supervision)}
        knowledge = kd_loss(
            outputs.logits[-1], supervision.teacher_logits, temperature=config.temperature
        )
        return {
            "label_loss": config.label_weight * self.label_term(outputs, supervision),
            "teacher_loss": config.teacher_weight * knowledge,
        }

    @property
    def has_teacher(self) -> bool:
        """True for every generation but the first."""
        return self.labels.teacher is not None or self.labels.teacher_logits is not None
