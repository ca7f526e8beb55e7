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
MOST_FREQUENT = "most frequent label"  # the baseline's name in reports
# Used if a source has no column `label`: the .cls members of a tar, or an image's folder.
STAND_INS = {LABEL: ("class", "folder")}
SHOWN = 3


@dataclass(frozen=True)
class LabeledPair:
    """An embedded training and test part; labels are codes (N,) int64 into the sorted `names`.

    columns: the columns that the labels came from, of the training and of the test part.
    sources: the names of the two sources, for messages.
    """

    train: Embedded[str]
    test: Embedded[str]
    names: list[str]
    columns: tuple[str, str]
    sources: tuple[str, str]

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
        return float(self.right_by_guessing.mean())

    @property
    def right_by_guessing(self) -> np.ndarray:
        """1.0 for each test image (Q,) with the training part's most frequent label, else 0.0."""
        counts = np.bincount(self.train_labels, minlength=len(self.names))
        return np.asarray(self.test_labels == counts.argmax(), np.float64)

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
    return pair_up(train, test, columns, (train_source.name, test_source.name), failures)


def pair_up(
    train: Embedded[str],
    test: Embedded[str],
    columns: tuple[str, str],
    sources: tuple[str, str],
    failures: Sequence[tuple[str, str]],
) -> LabeledPair:
    """Return two embedded parts as a pair. Raises InputError as `embed_labeled` does.

    columns and sources: the columns of the labels and the names of the two sources. failures: of
    the images that could not be embedded; the last one explains an empty part.
    """
    for part, source in zip((train, test), sources, strict=True):
        if not len(part):
            raise InputError(f"{source} has no readable image with a label; {failures[-1][1]}")
    ours, theirs = set(train.known), set(test.known)
    refuse_disjoint(ours, theirs, columns, sources)
    return LabeledPair(train, test, sorted(ours | theirs), columns, sources)


def refuse_disjoint(
    ours: set[str], theirs: set[str], columns: tuple[str, str], sources: tuple[str, str]
) -> None:
    """Raise InputError if the labels of the two parts have none in common."""
    if ours.isdisjoint(theirs):
        raise InputError(
            f"{sources[0]} has labels such as {_some(ours)} ({columns[0]}), {sources[1]} such as"
            f" {_some(theirs)} ({columns[1]}), and none in common; choose a column with --label"
            " that has the same values in both."
        )


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
