"""iBOT (arXiv 2111.07832): DINO, and the student predicts the teacher's output for masked patches.

Class and patch tokens share one head unless `ibot.head` configures another for the patches. The
patches' running center averages all patches, masked or not, as in the released code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from featkit_train.methods.base import Views
from featkit_train.methods.momentum import BranchOutputs, MomentumTeacher, Targets, Term, project


class Ibot(MomentumTeacher):
    """Match class tokens across views and masked patches within a view (iBOT, algorithm 1)."""

    name: ClassVar[str] = "ibot"
    title: ClassVar[str] = "iBOT"
    paper: ClassVar[str] = "arXiv 2111.07832"
    needs: ClassVar[str] = "images alone"
    when: ClassVar[str] = (
        "thousands of images or more, and patch features matter: parts, segmentation"
    )
    reads: ClassVar[frozenset[str]] = frozenset({"model", "noise", "teacher", "dino", "ibot"})
    patch_loss: ClassVar[bool] = True

    def terms(self, outputs: BranchOutputs, views: Views, targets: Targets) -> dict[str, Term]:
        """Return both losses, and KoLeo if it has a weight."""
        return {
            "dino_loss": self.class_term(outputs, targets),
            "ibot_loss": self.patch_term(outputs, views, targets),
            **self.koleo_terms(outputs),
        }

    def patch_targets(self, teacher_outputs: Sequence[BranchOutputs], *, step: int) -> list[Tensor]:
        """Return the masked patches' targets; all patches update the running center."""
        if self.config.dino.centering == "sinkhorn":
            return super().patch_targets(teacher_outputs, step=step)
        temp = self.patch_temp(step)
        probs = [
            self.patch_center(part.patch_logits, teacher_temp=temp) for part in teacher_outputs
        ]
        all_logits = torch.cat(
            [
                project(self.teacher.head_of_patches, part.patch_tokens.flatten(0, 3))
                for part in teacher_outputs
            ]
        )
        self.patch_center.update(all_logits, gather=self.world.gather)
        return probs
