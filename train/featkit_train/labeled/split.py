"""Split labeled images into those to learn from and those to measure on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featkit.errors import InputError
from featkit.sources import Source, concatenate, subset
from featkit.sources.base import is_image
from featkit.wording import counted
from featkit_train.config import TrainConfig
from featkit_train.images.order import LEAST_TO_HOLD_OUT, split_held_out
from featkit_train.methods.labels import codes_of, label_of_each


@dataclass(frozen=True)
class Split:
    """Labeled images in two disjoint parts, to train on (`learned`) and to measure on (`held_out`).

    The labels (N,) int64 of `learned` are indices into the sorted `classes`.

    num_unlabeled: images without a label, which are in neither part.
    """

    learned: Source
    labels: np.ndarray
    classes: tuple[str, ...]
    held_out: Source
    num_unlabeled: int


def split_labeled(
    sources: Sequence[Source], config: TrainConfig, *, held_out: Source | None = None
) -> Split:
    """Split the images: hold out `held_out`, or run.held_out of them (at most a tenth), drawn by
    the seed.

    InputError if there are fewer than two classes, if nothing is held out to measure on, or if an
    image is in both parts.
    """
    source, column = concatenate(sources), config.labels.column
    labeled = [
        (index, label)
        for index, label in enumerate(label_of_each(source, column))
        if label is not None
    ]
    learned_ids = np.arange(len(labeled))
    if held_out is None:
        learned_ids, held_out_ids = split_held_out(
            len(labeled), wanted=config.run.held_out, seed=config.run.seed
        )
        held_out = subset(source, [labeled[index][0] for index in held_out_ids])
    if not len(held_out):
        raise InputError(_nothing_held_out(source, len(labeled)))
    learned = [labeled[index] for index in learned_ids]
    classes = tuple(sorted({label for _, label in learned}))
    if len(classes) < 2:
        raise InputError(
            f"The images of {source.name} have {counted(len(classes), 'label')} in {column}; at"
            " least two are needed."
        )
    images = subset(source, [index for index, _ in learned])
    check_disjoint(images, held_out, what="labeled")
    return Split(
        learned=images,
        labels=codes_of([label for _, label in learned], classes),
        classes=classes,
        held_out=held_out,
        num_unlabeled=len(source) - len(labeled),
    )


def check_disjoint(learned: Source, held_out: Source, *, what: str) -> None:
    """Raise InputError if an image is in both. what: the word for `learned` in the message."""
    held_out_images = {_identity(held_out, index) for index in range(len(held_out))}
    for index in range(len(learned)):
        if _identity(learned, index) in held_out_images:
            raise InputError(
                f"{learned.key(index)} is among both the held-out and the {what} images, so a"
                " student would learn what it is measured on. Name other images with --held-out."
            )


def _nothing_held_out(source: Source, num_labeled: int) -> str:
    sentence = f"No images of {source.name} are held out to measure on"
    if num_labeled >= LEAST_TO_HOLD_OUT:
        return f"{sentence}; set run.held_out, or name others with --held-out."
    return (
        f"{sentence}: at most a tenth of the labeled images can be, and only {num_labeled} are"
        " labeled."
        f" Name others with --held-out, or give at least {LEAST_TO_HOLD_OUT}."
    )


def _identity(source: Source, index: int) -> tuple[Path, str]:
    """Return an image's file and, in a file of many images, its name there. They do not depend on
    the folder that the source was opened at."""
    file = source.file(index).resolve()
    return file, "" if is_image(file.name) else source.key(index).partition(file.name)[2]
