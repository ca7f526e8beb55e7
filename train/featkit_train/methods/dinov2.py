"""DINOv2 (arXiv 2304.07193): DINO's and iBOT's losses with separate heads, Sinkhorn-Knopp or
centering, and KoLeo.

The rest of the paper is configured elsewhere: registers (arXiv 2309.16588), LayerScale and SwiGLU
in `model`, stochastic depth in `noise`, layer-wise learning rates in `optim`. Its stage at high
resolution is a second run with larger crops that starts from the first (`init`).
"""

from __future__ import annotations

from typing import ClassVar

from featkit_train.methods.base import Views
from featkit_train.methods.momentum import BranchOutputs, MomentumTeacher, Targets, Term


class DinoV2(MomentumTeacher):
    """Match class tokens across views and masked patches within a view, and spread embeddings out
    (DINOv2, section 4)."""

    name: ClassVar[str] = "dinov2"
    title: ClassVar[str] = "DINOv2"
    paper: ClassVar[str] = "arXiv 2304.07193"
    needs: ClassVar[str] = "images alone"
    when: ClassVar[str] = (
        "tens of thousands of images or more and a GPU: the best general features; the paper's"
        " results take many GPUs"
    )
    reads: ClassVar[frozenset[str]] = frozenset({"model", "noise", "teacher", "dino", "ibot"})
    patch_loss: ClassVar[bool] = True

    def terms(self, outputs: BranchOutputs, views: Views, targets: Targets) -> dict[str, Term]:
        """Return both losses and KoLeo."""
        return {
            "dino_loss": self.class_term(outputs, targets),
            "ibot_loss": self.patch_term(outputs, views, targets),
            **self.koleo_terms(outputs),
        }
