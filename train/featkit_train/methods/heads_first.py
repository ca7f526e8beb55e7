"""Methods that start from published weights, which come without projection heads: the heads train
first, then the backbone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from featkit_train.methods.dinov2 import DinoV2
from featkit_train.networks.base import Backbone
from featkit_train.published.pretrained import load_pretrained
from featkit_train.weights import BackboneInfo


class HeadsFirst(DinoV2, ABC):
    """DINOv2's losses in two phases; the first lasts `pretrained.head_steps`."""

    # Not "model": the pretrained weights bring their own architecture.
    reads: ClassVar[frozenset[str]] = DinoV2.reads - {"model"} | {"pretrained"}
    warming: bool | None = None  # whether the heads train; None before the first step

    def load_pretrained(self) -> tuple[Backbone, BackboneInfo]:
        """Load the backbone that the config names."""
        source = self.config.pretrained
        weights = Path(source.weights) if source.weights else None
        backbone, info = load_pretrained(
            source.name, weights=weights, branch=source.branch, quiet=True
        )
        self.remarks = info.remarks
        return backbone, info

    def phase_start(self, step: int) -> int:
        """Return 0 in the first phase, and the second phase's first step after it."""
        head_steps = self.config.pretrained.head_steps
        return head_steps if step >= head_steps else 0

    def enter_phase(self, step: int) -> bool:
        """Freeze what does not train in this step's phase; return whether the phase is new."""
        warming = step < self.config.pretrained.head_steps
        changed = warming != self.warming
        self.warming = warming
        self.freeze(warming=warming)
        return changed

    @abstractmethod
    def freeze(self, *, warming: bool) -> None:
        """Freeze and unfreeze parameters: `warming` while the heads train, then for the second
        phase."""
