"""DINOv2 (arXiv 2304.07193): both losses with heads of their own, Sinkhorn-Knopp or centering, and
KoLeo.

Registers (arXiv 2309.16588), LayerScale and SwiGLU are the model's, stochastic depth is `noise`,
the rates of layers are `optim`'s; the stage at high resolution is a run that begins from another
(`init`) with larger crops.
"""

from __future__ import annotations

from typing import ClassVar

from featkit_train.methods.base import Views
from featkit_train.methods.momentum import BranchOutputs, MomentumTeacher, Targets, Term


class DinoV2(MomentumTeacher):
    """Class tokens across views, masked patches within a view, embeddings spread out (DINOv2,
    section 4)."""

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
        """Both losses and KoLeo."""
        return {
            "dino_loss": self.class_term(outputs, targets),
            "ibot_loss": self.patch_term(outputs, views, targets),
            **self.koleo_terms(outputs),
        }
