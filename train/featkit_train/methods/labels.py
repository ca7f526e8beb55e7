"""What a method with labels is told of the images of a source, each by its number there."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from featkit_train.networks.classifier import Classifier

UNKNOWN = -1  # the label of an image that has none


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Of N images and K classes: labels (N,) int64, UNKNOWN where there is none, and what a
    teacher makes of them.

    probs (N, K) float32: soft labels of those without one. teacher: who is asked about every crop;
    teacher_logits (N, V, K) float32: what it said of each of V views, so that it need not be asked.
    numbers: the images to learn from, in rising order, where they are not all or some come more
    than once.
    """

    classes: tuple[str, ...]
    class_ids: np.ndarray = field(repr=False)
    probs: np.ndarray | None = field(default=None, repr=False)
    teacher: Classifier | None = field(default=None, repr=False)
    teacher_logits: np.ndarray | None = field(default=None, repr=False)
    indices: np.ndarray | None = field(default=None, repr=False)

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.classes)
