"""Labels and self-distillation together, in one network.

Labels teach what an image shows, DINO's loss (arXiv 2104.14294) what tells one image from another
of the same class. The class loss follows t-ReX (arXiv 2206.15369): a projector between the features
and a cosine classifier, and several crops of each image, which keep the features general. Images
without a label take part in DINO's loss alone.

Letters: B images, G global crops of each, K classes.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from featkit_train.config import TrainConfig
from featkit_train.methods.base import Generators, StepResult, Views
from featkit_train.methods.dino import Dino
from featkit_train.methods.labels import UNKNOWN, Labels, codes_of
from featkit_train.methods.momentum import (
    Branch,
    BranchOutputs,
    Targets,
    Term,
    project,
    result_of,
)
from featkit_train.networks.base import Backbone
from featkit_train.networks.heads import HeadConfig, ProjectionHead
from featkit_train.networks.inference import over_images
from featkit_train.processes.distributed import ALONE, World
from featkit_train.watching.judging import accuracy
from featkit_train.watching.probe import HeldOut, Scores


class LabeledBranch(Branch):
    """A student or a teacher with a third head, whose prototypes are the classes."""

    def __init__(self, backbone: Backbone, config: TrainConfig, *, num_classes: int) -> None:
        super().__init__(backbone, config, patch_loss=False)
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


class Joint(Dino):
    """DINO's loss between crops, and the labels' cross-entropy of every global crop."""

    name: ClassVar[str] = "joint"
    title: ClassVar[str] = "labels and DINO together"
    paper: ClassVar[str] = "arXiv 2206.15369"
    needs: ClassVar[str] = "labels, at least of some images"
    when: ClassVar[str] = (
        "some or all images have labels, and the model has to find both other things of a kind and"
        " the same thing again"
    )
    default_recipe: ClassVar[str] = "small"
    reads: ClassVar[frozenset[str]] = Dino.reads | {"labels", "joint"}
    reads_labels: ClassVar[bool] = True
    some_unlabeled: ClassVar[bool] = True
    student: LabeledBranch
    teacher: LabeledBranch

    def __init__(self, config: TrainConfig, *, world: World = ALONE, labels: Labels) -> None:
        self._labels = labels
        super().__init__(config, world=world)

    def build_branch(self, backbone: Backbone) -> LabeledBranch:
        """Return a student with that backbone."""
        return LabeledBranch(backbone, self.config, num_classes=self._labels.num_classes)

    def forward(self, views: Views, targets: Targets, generators: Generators) -> StepResult:
        """Return the student's loss for a micro-batch: DINO's terms, and the labels'."""
        label_probs = self.label_probs(views.indices[0])
        if generators.own.random() < self.config.joint.mix_probability:
            views, targets, label_probs = cut_mix(views, targets, label_probs, generators.own)
        outputs = self.student_outputs(views, targets, generators)
        logits = project(self.student.label_head, outputs.class_tokens)  # (G, B, K)
        label_loss = mean_over_labeled(logits / self.config.joint.temperature, label_probs)
        label_term = Term(self.config.joint.label_weight, label_loss)
        return result_of({**self.terms(outputs, views, targets), "label_loss": label_term}, outputs)

    def class_term(self, outputs: BranchOutputs, targets: Targets) -> Term:
        """Return DINO's loss with its weight relative to the labels."""
        return super().class_term(outputs, targets)._replace(weight=self.config.joint.self_weight)

    def label_probs(self, indices: Tensor) -> Tensor:
        """Return the smoothed labels (B, K) of images by index; a row of zeros without a label."""
        labels, smoothing = self._labels, self.config.labels.smoothing
        class_ids = torch.from_numpy(labels.class_ids[indices.cpu().numpy()]).to(indices.device)
        known = (class_ids != UNKNOWN).float()[:, None]
        one_hot = F.one_hot(class_ids.clamp(min=0), labels.num_classes)
        return known * ((1 - smoothing) * one_hot + smoothing / labels.num_classes)

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


def mean_over_labeled(logits: Tensor, label_probs: Tensor) -> Tensor:
    """Return the mean cross-entropy in nats of crops whose image has a label, a float32 scalar.

    logits: (G, B, K). label_probs: (B, K), rows that sum to 1, or to less if labels are
    missing. Returns 0 if no image has one.
    """
    losses = -torch.einsum("bk,gbk->gb", label_probs, F.log_softmax(logits, dim=-1))
    return losses.mean(dim=0).sum() / label_probs.sum().clamp(min=1)


def cut_mix(
    views: Views, targets: Targets, label_probs: Tensor, rng: np.random.Generator
) -> tuple[Views, Targets, Tensor]:
    """Replace a box of each global crop by that of another image, and mix both targets by area.

    CutMix (arXiv 1905.04899, section 3.1), with a uniform share of the area. The box is the same in
    all crops, so that each view of an image has the same mixture.
    """
    num_images = views.global_crops.shape[1]
    height, width = views.global_crops.shape[-2:]
    side = (1 - rng.random()) ** 0.5  # of the box, relative to the crop's
    top, left = (int(rng.uniform(0, (1 - side) * size)) for size in (height, width))
    bottom, right = top + int(side * height), left + int(side * width)
    kept = 1 - (bottom - top) * (right - left) / (height * width)
    other = torch.from_numpy(rng.permutation(num_images)).to(views.global_crops.device)
    crops = views.global_crops.clone()
    crops[..., top:bottom, left:right] = views.global_crops[:, other, :, top:bottom, left:right]

    def mixed(probs: Tensor, dim: int) -> Tensor:
        return torch.lerp(probs.index_select(dim, other), probs, kept)

    return (
        views._replace(global_crops=crops),
        targets._replace(class_probs=mixed(targets.class_probs, 1)),
        mixed(label_probs, 0),
    )
