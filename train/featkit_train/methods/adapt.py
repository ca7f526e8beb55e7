"""Go on from published weights on pictures of one's own, by DINOv2's losses (arXiv 2304.07193).

Published files come without heads. So the heads learn first, on a frozen backbone, whose features are good while the heads know
nothing; then everything learns, at a low rate. What a few thousand pictures can teach a good backbone is little, and what
they can ruin is much: `watch` ends the run and takes the best back when copies or neighbours are found less often.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import ClassVar

from featkit.errors import InputError
from featkit_train.methods.base import Branch
from featkit_train.methods.dinov2 import DinoV2
from featkit_train.networks.vit import VisionTransformer
from featkit_train.published.pretrained import load_pretrained


class Adapt(DinoV2):
    """DINOv2 from weights made elsewhere: `model` is theirs, and so are the pixels' statistics."""

    unread: ClassVar[frozenset[str]] = frozenset({"model", "gram"})

    def build(self) -> None:
        """Student and teacher begin alike, with new heads."""
        source = self.config.pretrained
        backbone, info = load_pretrained(source.name, weights=Path(source.weights) if source.weights else None, quiet=True)
        if not isinstance(backbone, VisionTransformer):
            raise InputError(f"{source.name} is no Vision Transformer, which `adapt` needs to hide patches; distil it instead.")
        self.mean, self.std = info.geometry.mean, info.geometry.std
        self.student = Branch(backbone.train(), self.config, patch_loss=True)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.warming: bool | None = None

    def phase_start(self, step: int) -> int:
        """The backbone begins when the heads are done."""
        head_steps = self.config.pretrained.head_steps
        return head_steps if step >= head_steps else 0

    def prepare(self, step: int) -> bool:
        """Heads and mask token first, then the backbone with them."""
        warming = step < self.config.pretrained.head_steps
        changed = warming != self.warming
        self.warming = warming
        self.student.backbone.requires_grad_(not warming)
        return changed
