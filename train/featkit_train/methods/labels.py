"""The supervision of a source's images for methods that learn from labels, by image index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from featkit.errors import InputError
from featkit.evaluate.labels import find_column, labels_of
from featkit.sources import Source
from featkit.wording import counted
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


def label_of_each(source: Source, column: str) -> list[str | None]:
    """Return each image's label, None for an image without one.

    InputError if no image has that column.
    """
    label_of = labels_of(source, find_column(source, column))
    labels: list[str | None] = []
    for index in range(len(source)):
        try:
            labels.append(label_of(index))
        except InputError:
            labels.append(None)
    return labels


def labels_to_learn(source: Source, column: str, train_ids: np.ndarray) -> Labels:
    """Return the labels of a source's images; the classes are those of the images to learn from.

    train_ids: their indices. InputError if they have fewer than two classes.
    """
    labels = label_of_each(source, column)
    classes = tuple(sorted({label for i in train_ids if (label := labels[i]) is not None}))
    if len(classes) < 2:
        raise InputError(
            f"The images of {source.name} have {counted(len(classes), 'label')} in {column}; at"
            " least two are needed."
        )
    class_ids = codes_of([label or "" for label in labels], classes)
    return Labels(classes=classes, class_ids=class_ids)


def codes_of(labels: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """Return the class id of each label (N,) int64, UNKNOWN for labels that are not classes."""
    class_ids = {name: class_id for class_id, name in enumerate(classes)}
    return np.array([class_ids.get(label, UNKNOWN) for label in labels], np.int64)
