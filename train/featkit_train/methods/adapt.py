"""Continue from published weights on the user's own images, by DINOv2's losses (arXiv 2304.07193).

Published files come without heads, so the heads train first on a frozen backbone; otherwise
untrained heads would damage good features. Then everything trains at a low rate. A few thousand
images improve a good backbone only slightly but can damage it badly, so `watch` ends the run and
restores the best weights when held-out copies or neighbors are found less often.
"""

from __future__ import annotations

import copy
from typing import ClassVar

from featkit.errors import InputError
from featkit_train.methods.heads_first import HeadsFirst
from featkit_train.methods.momentum import Branch
from featkit_train.networks.vit import VisionTransformer


class Adapt(HeadsFirst):
    """DINOv2 from published weights, with their architecture and pixel statistics."""

    name: ClassVar[str] = "adapt"
    title: ClassVar[str] = "adaptation"
    paper: ClassVar[str] = "arXiv 2304.07193"
    needs: ClassVar[str] = "a published model"
    when: ClassVar[str] = (
        "a published model is nearly good enough, and you have thousands of images of your kind"
    )
    default_recipe: ClassVar[str] = "adapt_dinov2"

    def build(self) -> None:
        """Create student and teacher from the same weights, with new heads."""
        backbone, info = self.load_pretrained()
        if not isinstance(backbone, VisionTransformer):
            name = self.config.pretrained.name
            raise InputError(
                f"{name} is not a Vision Transformer, which `adapt` needs to hide patches; use"
                " `featkit train distill` instead."
            )
        self.mean, self.std = info.geometry.mean, info.geometry.std
        self.student = Branch(backbone.train(), self.config, patch_loss=True)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def freeze(self, *, warming: bool) -> None:
        """Train heads and mask token first, then the backbone with them."""
        self.student.backbone.requires_grad_(not warming)
