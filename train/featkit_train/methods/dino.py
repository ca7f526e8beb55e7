"""DINO (arXiv 2104.14294): a student matches its momentum teacher across views of an image.

Two ways keep the teacher's outputs from collapsing: the paper's running center, and Sinkhorn-Knopp,
which DINOv2 took from SwAV and which works best with a few hundred images. KoLeo is optional and
off by default, as in the paper.
"""

from __future__ import annotations

from typing import ClassVar

from featkit_train.methods.base import Views
from featkit_train.methods.momentum import BranchOutputs, MomentumTeacher, Targets, Term


class Dino(MomentumTeacher):
    """Match class tokens of all crops with those of the global crops (DINO, algorithm 1)."""

    name: ClassVar[str] = "dino"
    title: ClassVar[str] = "DINO"
    paper: ClassVar[str] = "arXiv 2104.14294"
    needs: ClassVar[str] = "images alone"
    when: ClassVar[str] = "a few hundred images or more and no labels; start with this one"
    reads: ClassVar[frozenset[str]] = frozenset({"model", "network", "noise", "teacher", "dino"})

    def terms(self, outputs: BranchOutputs, views: Views, targets: Targets) -> dict[str, Term]:
        """Return DINO's loss, and KoLeo if it has a weight."""
        del views
        return {"dino_loss": self.class_term(outputs, targets), **self.koleo_terms(outputs)}
