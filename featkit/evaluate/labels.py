"""What kind each image is of, by a column of its source: text, so that a tar's numbers and a
Parquet file's meet."""

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
# Where a source has no column `label`, what stands for it: a tar's .cls members, and the folder a
# image lies in.
STAND_INS = {LABEL: ("class", "folder")}
SHOWN = 3


@dataclass(frozen=True)
class LabeledPair:
    """A training part and a test part, embedded, with labels as codes (N,) int64 into `names`,
    which are sorted.

    columns: those that the labels came from, of the training part and of the test part.
    """

    train: Embedded[str]
    test: Embedded[str]
    names: list[str]
    columns: tuple[str, str]

    @property
    def train_labels(self) -> np.ndarray:
        """Codes of the training part."""
        return self._codes(self.train.known)

    @property
    def test_labels(self) -> np.ndarray:
        """Codes of the test part."""
        return self._codes(self.test.known)

    @property
    def num_unseen(self) -> int:
        """Test images of labels that the training part does not have, which nothing can get
        right."""
        return int((~np.isin(self.test_labels, self.train_labels)).sum())

    @property
    def most_frequent(self) -> float:
        """The accuracy of always saying the training part's most frequent label; the first of
        equals."""
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
    """Both parts, without the images that cannot be read or have no label, which are added to
    `failures`.

    label: a column of both, with `label` also what stands for it. InputError when a part has no
    such column or nothing that can be read, and when the two have no label in common.
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
            f" {test_source.name} such as {_some(theirs)} ({columns[1]}), and none in common; name"
            " a column with --label that says the same in both."
        )
    return LabeledPair(train, test, sorted(ours | theirs), columns)


def find_column(source: Source, wanted: str) -> str:
    """The column of a source that `wanted` means: itself, or what stands for it, as the first item
    says that has either.

    InputError naming the columns that there are.
    """
    meant: tuple[str, ...] = (wanted, *STAND_INS.get(wanted, ()))
    seen: dict[str, None] = {}
    for number in range(len(source)):
        try:
            metadata = source.metadata(number)
        except InputError:  # of one item, which is told of when it is read
            continue
        for column in meant:
            if column in metadata:
                return column
        seen |= dict.fromkeys(metadata)
    there = f"only {', '.join(seen)}" if seen else "and nothing else that is known of its images"
    do = (
        "name one that says what is wanted"
        if seen
        else "put the images into a folder for each kind"
    )
    raise InputError(f"{source.name} has no column {wanted}, {there}; {do}.")


def labels_of(source: Source, column: str) -> Callable[[int], str]:
    """An item's value in a column as text, by its number; it raises an InputError for one that has
    none."""

    def label(number: int) -> str:
        value = source.metadata(number).get(column)
        if value is None:
            raise InputError(f"{source.key(number)} has nothing in its column {column}.")
        return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)

    return label


def _some(labels: set[str]) -> str:
    found = sorted(labels)
    return ", ".join(found[:SHOWN]) + (" ..." if len(found) > SHOWN else "")
