"""DINOv3 (arXiv 2508.10104): DINOv2's losses with rotary positions, and Gram anchoring in a later
stage.

Rotary positions are configured in `model`, their jitter in `noise`. The Gram teacher is an earlier
teacher of the same run. It sees the global crops' boxes at a higher resolution and without color
changes, and its patch tokens are scaled down to the student's grid.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from featkit.errors import InputError
from featkit_train.losses import gram_loss
from featkit_train.methods.base import Views
from featkit_train.methods.dinov2 import DinoV2
from featkit_train.methods.momentum import BranchOutputs, Targets, Term
from featkit_train.networks.base import Backbone
from featkit_train.networks.normalization import Statistics, renormalize
from featkit_train.published.pretrained import load_pretrained


class DinoV3(DinoV2):
    """DINOv2's terms, a separate last norm for local crops (section 3.2), and the Gram term if it
    has a weight (section 4)."""

    name: ClassVar[str] = "dinov3"
    title: ClassVar[str] = "DINOv3"
    paper: ClassVar[str] = "arXiv 2508.10104"
    needs: ClassVar[str] = "images alone"
    when: ClassVar[str] = (
        "millions of images and many GPUs; dense features stay good over a long training"
    )
    reads: ClassVar[frozenset[str]] = DinoV2.reads | {"gram"}
    local_norm: ClassVar[bool] = True
    new_state: ClassVar[tuple[str, ...]] = ("gram_teacher.",)

    def build(self) -> None:
        """Create student and teacher, and the Gram teacher if its term has a weight."""
        super().build()
        if (
            self.student.local_norm is not None
        ):  # DDP waits for the gradient of every trainable parameter
            self.student.local_norm.requires_grad_(self.config.crops.num_local > 0)
        self.gram_teacher: Backbone | None = None
        if self.config.gram.weight > 0:
            self.gram_teacher = self._first_gram_teacher().requires_grad_(False)

    def _first_gram_teacher(self) -> Backbone:
        gram = self.config.gram
        self.gram_statistics: Statistics = (self.mean, self.std)
        if gram.teacher is None:
            return copy.deepcopy(self.teacher.backbone)
        backbone, info = load_pretrained(gram.teacher, quiet=True)
        for size in (
            gram.size,
            *(resolution.gram_size for resolution in self.config.crops.resolutions),
        ):
            if size % backbone.patch:
                raise InputError(
                    f"gram.teacher {gram.teacher} has patches of {backbone.patch} pixels, but"
                    f" {size} is not a multiple of that; change gram.size."
                )
        self.gram_statistics = (info.geometry.mean, info.geometry.std)
        ours = {name: tensor.shape for name, tensor in self.teacher.backbone.state_dict().items()}
        theirs = {name: tensor.shape for name, tensor in backbone.state_dict().items()}
        if gram.max_updates and ours != theirs:
            raise InputError(
                f"gram.teacher {Path(gram.teacher).name} has another architecture than the student,"
                " so it cannot be updated; set gram.max_updates to 0."
            )
        return backbone

    @property
    def gram_size(self) -> int | None:
        """Pixels of the Gram teacher's crops; None without one."""
        return self.config.gram.size if self.gram_teacher is not None else None

    def branches(self) -> Sequence[nn.Module]:
        """Return student, teacher and Gram teacher."""
        return [
            *super().branches(),
            *([self.gram_teacher] if self.gram_teacher is not None else []),
        ]

    def start_run(self) -> None:
        """Copy the run's initial teacher into the Gram teacher, unless `gram.teacher` names
        another."""
        if self.gram_teacher is not None and self.config.gram.teacher is None:
            self.gram_teacher.load_state_dict(self.teacher.backbone.state_dict())

    def enter_phase(self, step: int) -> bool:
        """Copy the teacher into the Gram teacher at regular steps (section 4.2)."""
        updates, rest = divmod(step, self.config.gram.update_every)
        if (
            self.gram_teacher is not None
            and rest == 0
            and 1 <= updates <= self.config.gram.max_updates
        ):
            self.gram_teacher.load_state_dict(self.teacher.backbone.state_dict())
        return False

    def terms(self, outputs: BranchOutputs, views: Views, targets: Targets) -> dict[str, Term]:
        """Return DINOv2's terms, and the Gram term over all patches of the global crops."""
        terms = super().terms(outputs, views, targets)
        if self.gram_teacher is not None:
            crops = renormalize(
                views.gram_crops.flatten(0, 1),
                given=(self.mean, self.std),
                wanted=self.gram_statistics,
            )
            with torch.no_grad():
                patches = self.gram_teacher(crops).patch_tokens
            terms["gram_loss"] = Term(
                self.config.gram.weight, gram_loss(outputs.patch_tokens.flatten(0, 1), patches)
            )
        return terms
