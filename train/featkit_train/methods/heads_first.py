"""Methods over weights made elsewhere, which come without heads: the heads learn first, then what
they were learned for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from featkit_train.methods.dinov2 import DinoV2
from featkit_train.networks.base import Backbone
from featkit_train.published.pretrained import load_pretrained
from featkit_train.weights import BackboneInfo


class HeadsFirst(DinoV2, ABC):
    """DINOv2's losses in two phases, `pretrained.head_steps` long the first."""

    # Not "model": the pretrained weights bring their own architecture.
    reads: ClassVar[frozenset[str]] = DinoV2.reads - {"model"} | {"pretrained"}
    warming: bool | None = None  # whether the heads learn; None ahead of the first step

    def load_pretrained(self) -> tuple[Backbone, BackboneInfo]:
        """The backbone that the config names, and what it is."""
        source = self.config.pretrained
        weights = Path(source.weights) if source.weights else None
        backbone, info = load_pretrained(
            source.name, weights=weights, branch=source.branch, quiet=True
        )
        self.remarks = info.remarks
        return backbone, info

    def phase_start(self, step: int) -> int:
        """The second phase begins when the heads are done."""
        head_steps = self.config.pretrained.head_steps
        return head_steps if step >= head_steps else 0

    def enter_phase(self, step: int) -> bool:
        """Freeze what does not learn in this step's phase; says whether the phase is a new one."""
        warming = step < self.config.pretrained.head_steps
        changed = warming != self.warming
        self.warming = warming
        self.freeze(warming=warming)
        return changed

    @abstractmethod
    def freeze(self, *, warming: bool) -> None:
        """Say which weights learn while the heads warm up, and which afterwards."""
