"""Distill a larger frozen teacher into a smaller student by DINOv2's losses (arXiv 2304.07193,
section 5).

As in the paper, the result is the student's moving average, nothing is masked, and the patch loss
covers both global crops at the positions that masks would hide. Published files lack the teacher's
heads, so new heads first train on its frozen features by the same losses; their moving average
becomes the teacher's heads.

Student and teacher see the same grid of patches, so a teacher with larger patches sees enlarged
crops. That costs time: a ResNet, whose feature map has one position for 32×32 pixels, sees four
times as many pixels as a student with patches of 16.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from featkit_train.methods.base import Generators, Views
from featkit_train.methods.heads_first import HeadsFirst
from featkit_train.methods.momentum import Branch, BranchOutputs, Targets, Term, project
from featkit_train.networks.base import Backbone
from featkit_train.networks.ema import update_ema
from featkit_train.networks.heads import ProjectionHead
from featkit_train.networks.normalization import renormalize
from featkit_train.networks.vit import VisionTransformer


class Distill(HeadsFirst):
    """A frozen teacher, a student that matches it, and the student's moving average, the result."""

    name: ClassVar[str] = "distill"
    title: ClassVar[str] = "distillation"
    paper: ClassVar[str] = "arXiv 2304.07193, section 5"
    needs: ClassVar[str] = "a larger teacher"
    when: ClassVar[str] = (
        "a published model knows your kind of images, and you want a small fast one"
    )
    reads: ClassVar[frozenset[str]] = HeadsFirst.reads | {"model"}

    def build(self) -> None:
        """Load the teacher, build student and average from the config, and add trial heads that
        train on the teacher's features."""
        backbone, info = self.load_pretrained()
        self.teacher_statistics = (info.geometry.mean, info.geometry.std)
        self.teacher = Branch(backbone, self.config, patch_loss=True).requires_grad_(False)
        self.trial_heads = copy.deepcopy(self.teacher.heads()).requires_grad_(True)
        self.student = Branch(VisionTransformer(self.config.model), self.config, patch_loss=True)
        self.student.mask_token = self.teacher.mask_token = None  # nothing is masked
        self.average = copy.deepcopy(self.student).requires_grad_(False)

    @property
    def result(self) -> Backbone:
        """The student's moving average."""
        return self.average.backbone

    def branches(self) -> Sequence[nn.Module]:
        """Return student, teacher, average and trial heads."""
        return (self.student, self.teacher, self.average, *self.trial_heads.values())

    def learning_heads(self) -> Sequence[ProjectionHead]:
        """Return the trial heads in the first phase, then the student's."""
        return (
            [self._trial_head(name) for name in self.trial_heads]
            if self.warming
            else super().learning_heads()
        )

    def freeze(self, *, warming: bool) -> None:
        """Train the trial heads first, then the student alone."""
        self.trial_heads.requires_grad_(warming)
        self.student.requires_grad_(not warming)

    @torch.no_grad()
    def teacher_forward(self, views: Views) -> BranchOutputs:
        """Run the teacher on the global crops, resized and normalized as it was trained."""
        crops = views.global_crops.flatten(0, 1)
        crops = renormalize(crops, given=(self.mean, self.std), wanted=self.teacher_statistics)
        patch, teacher_patch = self.student.backbone.patch, self.teacher.backbone.patch
        if patch != teacher_patch:  # resize to the same grid of patches
            size = [side // patch * teacher_patch for side in crops.shape[-2:]]
            crops = F.interpolate(
                crops, size=size, mode="bicubic", align_corners=False, antialias=True
            )
        outputs: BranchOutputs = self.teacher(
            torch.unflatten(crops, 0, views.global_crops.shape[:2]), patch_indices=views.masked
        )
        return outputs

    def student_outputs(
        self, views: Views, targets: Targets, generators: Generators
    ) -> BranchOutputs:
        """Run the student on all crops; in the first phase, the trial heads on the teacher's
        features."""
        if not self.warming:
            return super().student_outputs(views, targets, generators)
        teacher = targets.teacher
        patches = teacher.patch_tokens.flatten(0, 3).index_select(0, views.masked)
        head, patch_head = (self._trial_head(name) for name in ("head", "patch_head"))
        return teacher._replace(
            class_logits=project(head, teacher.class_tokens),
            patch_logits=project(patch_head, patches),
        )

    def _trial_head(self, name: str) -> ProjectionHead:
        head = self.trial_heads[name if name in self.trial_heads else "head"]
        assert isinstance(head, ProjectionHead)
        return head

    def koleo_terms(self, outputs: BranchOutputs) -> dict[str, Term]:
        """Return the student's KoLeo term; none in the first phase, when features are frozen."""
        return {} if self.warming else super().koleo_terms(outputs)

    def after_optimizer(self, *, step: int) -> None:
        """Update the teacher's heads in the first phase, then the student's average."""
        if self.warming:
            update_ema(self.teacher.heads(), self.trial_heads, momentum=self.momentum(step))
        else:
            update_ema(self.average, self.student, momentum=self.momentum(step))
