"""Distillation of a larger frozen teacher into a smaller student by DINOv2's losses (arXiv
2304.07193, section 5).

As the paper says: the student's own moving average is what is kept, nothing is masked, and the
patch loss is over both global crops, at the places that masks would hide. The teacher comes without
the heads it was trained with (published files leave them out), so heads first learn on its frozen
features by the same losses, their average being the teacher's.

Both see the same grid of patches. So a teacher of larger patches sees enlarged crops, at a cost: a
ResNet, whose map has a place for 32×32 pixels, sees four times the pixels beside a student of
patches of 16.
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
    """A frozen teacher, a student that matches it, and the student's average, which is the result."""

    name: ClassVar[str] = "distill"
    title: ClassVar[str] = "distillation"
    paper: ClassVar[str] = "arXiv 2304.07193, section 5"
    needs: ClassVar[str] = "a larger teacher"
    when: ClassVar[str] = (
        "a published model knows your kind of images, and you want a small fast one"
    )
    reads: ClassVar[frozenset[str]] = HeadsFirst.reads | {"model"}

    def build(self) -> None:
        """Teacher from its weights, student and average from the config, and heads that learn for
        the teacher."""
        backbone, info = self.load_pretrained()
        self.teacher_statistics = (info.geometry.mean, info.geometry.std)
        self.teacher = Branch(backbone, self.config, patch_loss=True).requires_grad_(False)
        self.trial_heads = copy.deepcopy(self.teacher.heads()).requires_grad_(True)
        self.student = Branch(VisionTransformer(self.config.model), self.config, patch_loss=True)
        self.student.mask_token = self.teacher.mask_token = None  # nothing is masked
        self.average = copy.deepcopy(self.student).requires_grad_(False)

    @property
    def result(self) -> Backbone:
        """The student's average."""
        return self.average.backbone

    def branches(self) -> Sequence[nn.Module]:
        """All three, and the heads that learn for the teacher."""
        return (self.student, self.teacher, self.average, *self.trial_heads.values())

    def learning_heads(self) -> Sequence[ProjectionHead]:
        """The teacher's, then the student's."""
        return (
            [self._trial_head(name) for name in self.trial_heads]
            if self.warming
            else super().learning_heads()
        )

    def freeze(self, *, warming: bool) -> None:
        """Heads first, then the student alone."""
        self.trial_heads.requires_grad_(warming)
        self.student.requires_grad_(not warming)

    @torch.no_grad()
    def teacher_forward(self, views: Views) -> BranchOutputs:
        """The teacher at the global crops, brought to the size and the pixel statistics that it
        knows."""
        crops = views.global_crops.flatten(0, 1)
        crops = renormalize(crops, given=(self.mean, self.std), wanted=self.teacher_statistics)
        patch, teacher_patch = self.student.backbone.patch, self.teacher.backbone.patch
        if patch != teacher_patch:  # the same grid of patches
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
        """The student at all crops; while the heads warm up, they at the teacher's features."""
        if not self.warming:
            return super().student_outputs(views, targets, generators)
        seen = targets.teacher
        patches = seen.patch_tokens.flatten(0, 3).index_select(0, views.masked)
        head, patch_head = (self._trial_head(name) for name in ("head", "patch_head"))
        return seen._replace(
            class_logits=project(head, seen.class_tokens), patch_logits=project(patch_head, patches)
        )

    def _trial_head(self, name: str) -> ProjectionHead:
        head = self.trial_heads[name if name in self.trial_heads else "head"]
        assert isinstance(head, ProjectionHead)
        return head

    def koleo_terms(self, outputs: BranchOutputs) -> dict[str, Term]:
        """Of the student; features that nobody learns cannot be spread."""
        return {} if self.warming else super().koleo_terms(outputs)

    def after_optimizer(self, *, step: int) -> None:
        """The teacher's heads follow those that learn, then the average follows the student."""
        if self.warming:
            update_ema(self.teacher.heads(), self.trial_heads, momentum=self.momentum(step))
        else:
            update_ema(self.average, self.student, momentum=self.momentum(step))
