"""Labels and self-distillation together, in one network.

Labels teach what an image shows, DINO's loss (arXiv 2104.14294) what tells one image from another
of the same class. The class loss follows t-ReX (arXiv 2206.15369): a projector between the features
and a cosine classifier, and several crops of each image, which keep the features general. Images
without a label take part in DINO's loss alone.

Letters: B images, G global crops of each, D width, K classes, N held-out images.
"""

from __future__ import annotations

import copy
from typing import ClassVar

import torch
from torch.nn import functional as F

from featkit_train.config import TrainConfig
from featkit_train.methods.base import Views
from featkit_train.methods.labels import UNKNOWN, Labels
from featkit_train.methods.momentum import (
    Branch,
    BranchOutputs,
    MomentumTeacher,
    Targets,
    Term,
    project,
)
from featkit_train.methods.supervised import codes_of
from featkit_train.networks.classifier import build_backbone
from featkit_train.networks.heads import HeadConfig, ProjectionHead
from featkit_train.networks.inference import over_images
from featkit_train.processes.distributed import ALONE, World
from featkit_train.watching.judging import accuracy
from featkit_train.watching.probe import HeldOut, Scores


class LabeledBranch(Branch):
    """A student or a teacher with a third head, whose prototypes are the classes."""

    def __init__(self, config: TrainConfig, *, num_classes: int) -> None:
        super().__init__(build_backbone(config.classifier), config, patch_loss=False)
        sizes = config.joint
        self.label_head = ProjectionHead(
            self.backbone.width,
            HeadConfig(
                num_prototypes=num_classes,
                hidden_width=sizes.hidden_width,
                bottleneck_width=sizes.bottleneck_width,
                num_layers=sizes.num_layers,
            ),
        )


class Joint(MomentumTeacher):
    """DINO's loss between crops, and the labels' cross-entropy of every global crop."""

    name: ClassVar[str] = "joint"
    title: ClassVar[str] = "labels and DINO together"
    paper: ClassVar[str] = "arXiv 2206.15369 and 2104.14294"
    needs: ClassVar[str] = "labels, at least of some images"
    when: ClassVar[str] = (
        "some or all images have labels, and the model has to find both other things of a kind and"
        " the same thing again"
    )
    reads: ClassVar[frozenset[str]] = frozenset(
        {"classifier", "labels", "teacher", "dino", "joint"}
    )
    reads_labels: ClassVar[bool] = True
    student: LabeledBranch
    teacher: LabeledBranch

    def __init__(self, config: TrainConfig, *, world: World = ALONE, labels: Labels) -> None:
        self._labels = labels
        super().__init__(config, world=world)

    def build(self) -> None:
        """Create student and teacher."""
        self.student = LabeledBranch(self.config, num_classes=self._labels.num_classes)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def terms(self, outputs: BranchOutputs, views: Views, targets: Targets) -> dict[str, Term]:
        """Return DINO's loss, KoLeo if it has a weight, and the labels' loss."""
        own = {
            "dino_loss": self.class_term(outputs, targets)._replace(
                weight=self.config.joint.self_weight
            )
        }
        return {**own, **self.koleo_terms(outputs), "label_loss": self.label_term(outputs, views)}

    def label_term(self, outputs: BranchOutputs, views: Views) -> Term:
        """Return the mean cross-entropy of all global crops whose image has a label."""
        codes = self._labels.class_ids[views.indices[0].cpu().numpy()]
        labels = torch.from_numpy(codes).to(outputs.class_tokens.device)
        num_global = outputs.class_tokens.shape[0]
        logits = project(self.student.label_head, outputs.class_tokens.flatten(0, 1))  # (G * B, K)
        losses = F.cross_entropy(
            logits / self.config.joint.temperature,
            labels.repeat(num_global),
            ignore_index=UNKNOWN,
            label_smoothing=self.config.labels.smoothing,
            reduction="sum",
        )
        num_labeled = num_global * (labels != UNKNOWN).sum()
        return Term(self.config.joint.label_weight, losses / num_labeled.clamp(min=1))

    def scores(self, held_out: HeldOut) -> Scores | None:
        """Return the teacher's accuracy; None if no held-out image has a label of the run."""
        codes = codes_of(held_out.labels, self._labels.classes)
        if held_out.prepared is None or (codes == UNKNOWN).all():
            return None
        logits = over_images(
            self.teacher.backbone,
            held_out.prepared,
            lambda features: project(self.teacher.label_head, features.class_token),
            mean=self.mean,
            std=self.std,
        )
        return Scores({"accuracy": accuracy(logits, codes)}, watched="accuracy")
