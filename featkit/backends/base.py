"""What every engine offers."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class Backend(Protocol):
    """A model file ready to run; safe to call from several threads."""

    @property
    def name(self) -> str:
        """What really runs, such as `onnxruntime CPU`."""
        ...

    def run(self, images: np.ndarray) -> np.ndarray:
        """(N, H, W, 3) uint8 to unit vectors (N, D) float32."""
        ...
