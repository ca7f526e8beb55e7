"""Labels of images, from a column of their source, as text so that different sources agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from featkit.errors import InputError
from featkit.evaluate.embedding import (
    Embedded,
    ImageModel,
    OnProgress,
    embed_images,
    no_progress,
)
from featkit.sources import Source

LABEL = "label"
# Used if a source has no column `label`: the .cls members of a tar, or an image's folder.
STAND_INS = {LABEL: ("class", "folder")}
SHOWN = 3


@dataclass(frozen=True)
class LabeledPair:
    """An embedded training and test part; labels are codes (N,) int64 into the sorted `names`.

    columns: the columns that the labels came from, of the training and of the test part.
    """

    train: Embedded[str]
    test: Embedded[str]
    names: list[str]
    columns: tuple[str, str]

    @property
    def train_labels(self) -> np.ndarray:
        """Label codes of the training part."""
        return self._codes(self.train.known)

    @property
    def test_labels(self) -> np.ndarray:
        """Label codes of the test part."""
        return self._codes(self.test.known)

    @property
    def num_unseen(self) -> int:
        """Number of test images whose label the training part lacks; no classifier can be right."""
        return int((~np.isin(self.test_labels, self.train_labels)).sum())

    @property
    def most_frequent(self) -> float:
        """The accuracy of always predicting the training part's most frequent label."""
        counts = np.bincount(self.train_labels, minlength=len(self.names))
        return float((self.test_labels == counts.argmax()).mean())

    def _codes(self, labels: Sequence[str]) -> np.ndarray:
        return np.searchsorted(np.array(self.names), np.array(labels))


def embed_labeled(
    train_source: Source,
    test_source: Source,
    model: ImageModel,
    failures: list[tuple[str, str]],
    *,
    label: str = LABEL,
    on_progress: OnProgress = no_progress,
) -> LabeledPair:
    """Embed both parts; unreadable and unlabeled images go to `failures`. label: a column of both
    parts, or a stand-in for `label`. Raises InputError if a part has no such column or no readable
    image, and if the two parts have no label in common.
    """
    columns = (find_column(train_source, label), find_column(test_source, label))
    train = embed_images(
        train_source, model, labels_of(train_source, columns[0]), failures, on_progress=on_progress
    )
    failed = len(failures)

    def after(done: int, failed_here: int) -> None:
        on_progress(len(train_source) + done, failed + failed_here)

    test = embed_images(
        test_source, model, labels_of(test_source, columns[1]), failures, on_progress=after
    )
    for part, source in ((train, train_source), (test, test_source)):
        if not len(part):
            raise InputError(f"{source.name} has no readable image with a label; {failures[-1][1]}")
    ours, theirs = set(train.known), set(test.known)
    if ours.isdisjoint(theirs):
        raise InputError(
            f"{train_source.name} has labels such as {_some(ours)} ({columns[0]}),"
            f" {test_source.name} such as {_some(theirs)} ({columns[1]}), and none in common;"
            " choose a column with --label that has the same values in both."
        )
    return LabeledPair(train, test, sorted(ours | theirs), columns)


def find_column(source: Source, wanted: str) -> str:
    """Return `wanted` or its stand-in, whichever column the first item has.

    Raises InputError, naming the existing columns, if there is none.
    """
    meant: tuple[str, ...] = (wanted, *STAND_INS.get(wanted, ()))
    seen: dict[str, None] = {}
    for number in range(len(source)):
        try:
            metadata = source.metadata(number)
        except InputError:  # reported when the item is read
            continue
        for column in meant:
            if column in metadata:
                return column
        seen |= dict.fromkeys(metadata)
    there = f"only {', '.join(seen)}" if seen else "and no other either"
    do = "choose one of them" if seen else "put the images into one folder per class"
    raise InputError(f"{source.name} has no column {wanted}, {there}; {do}.")


def labels_of(source: Source, column: str) -> Callable[[int], str]:
    """Return a function from an item's index to its value in a column, as text.

    The function raises InputError for an item without a value.
    """

    def label(number: int) -> str:
        value = source.metadata(number).get(column)
        if value is None:
            raise InputError(f"{source.key(number)} has no value in the column {column}.")
        return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)

    return label


def _some(labels: set[str]) -> str:
    found = sorted(labels)
    return ", ".join(found[:SHOWN]) + (" ..." if len(found) > SHOWN else "")
