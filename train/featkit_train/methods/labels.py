"""The supervision of a source's images for methods that learn from labels, by image index."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from featkit_train.networks.classifier import Classifier

UNKNOWN = -1  # class id of an image without a label


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The labels of N images in K classes, and optionally a teacher or its outputs."""

    classes: tuple[str, ...]
    class_ids: np.ndarray = field(repr=False)
    """(N,) int64, UNKNOWN for images without a label."""
    probs: np.ndarray | None = field(default=None, repr=False)
    """(N, K) float32, soft pseudo-labels of images without a label."""
    teacher: Classifier | None = field(default=None, repr=False)
    """Run on every crop."""
    teacher_logits: np.ndarray | None = field(default=None, repr=False)
    """(N, V, K) float32, the teacher's logits for V fixed views of each image, in its place."""
    indices: np.ndarray | None = field(default=None, repr=False)
    """Sorted indices of the images to learn from, possibly repeated; None for all."""

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.classes)
