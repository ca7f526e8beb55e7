"""Go on from published weights on images of one's own, by DINOv2's losses (arXiv 2304.07193).

Published files come without heads. So the heads learn first, on a frozen backbone, whose features
are good while the heads know nothing; then everything learns, at a low rate. What a few thousand
images can teach a good backbone is little, and what they can ruin is much: `watch` ends the run
and takes the best back when copies or neighbors are found less often.
"""

from __future__ import annotations

import copy
from typing import ClassVar

from featkit.errors import InputError
from featkit_train.methods.heads_first import HeadsFirst
from featkit_train.methods.momentum import Branch
from featkit_train.networks.vit import VisionTransformer


class Adapt(HeadsFirst):
    """DINOv2 from weights made elsewhere: `model` is theirs, and so are the pixels' statistics."""

    name: ClassVar[str] = "adapt"
    title: ClassVar[str] = "adaptation"
    paper: ClassVar[str] = "arXiv 2304.07193"
    needs: ClassVar[str] = "a published model"
    when: ClassVar[str] = (
        "a published model is nearly good enough, and you have thousands of images of your kind"
    )
    default_recipe: ClassVar[str] = "adapt_dinov2"

    def build(self) -> None:
        """Student and teacher begin alike, with new heads."""
        backbone, info = self.load_pretrained()
        if not isinstance(backbone, VisionTransformer):
            name = self.config.pretrained.name
            raise InputError(
                f"{name} is no Vision Transformer, which `adapt` needs to hide patches; distil it"
                " instead."
            )
        self.mean, self.std = info.geometry.mean, info.geometry.std
        self.student = Branch(backbone.train(), self.config, patch_loss=True)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def freeze(self, *, warming: bool) -> None:
        """Heads and mask token first, then the backbone with them."""
        self.student.backbone.requires_grad_(not warming)
