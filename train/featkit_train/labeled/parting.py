"""Images with labels, parted into those that are learned from and those that nothing is ever
learned from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featkit.errors import InputError
from featkit.evaluate.labels import find_column, labels_of
from featkit.sources import Source, concatenate, subset
from featkit.sources.base import is_image
from featkit.wording import counted
from featkit_train.config import TrainConfig
from featkit_train.images.order import LEAST_TO_HOLD_OUT, split_held_out
from featkit_train.methods.supervised import codes_of


@dataclass(frozen=True)
class Parted:
    """learned: images with labels (N,) int64 into `classes`, which are sorted. No part of the run
    is shown held_out but to be measured on. num_unlabeled: images without a label, which are in
    neither.
    """

    learned: Source
    labels: np.ndarray
    classes: tuple[str, ...]
    held_out: Source
    num_unlabeled: int


def part(
    sources: Sequence[Source], config: TrainConfig, *, held_out: Source | None = None
) -> Parted:
    """Part the images by the config: held_out, else run.held_out of them (a tenth at most), drawn
    by the seed.

    InputError where fewer than two classes are learned, where nothing is held out, which says
    whether a student is any better, and where what is held out is learned as well.
    """
    source, column = concatenate(sources), config.labels.column
    label_of = labels_of(source, find_column(source, column))
    known: list[tuple[int, str]] = []
    for number in range(len(source)):
        try:
            known.append((number, label_of(number)))
        except InputError:
            continue  # counted in num_unlabeled
    numbers = np.arange(len(known))
    if held_out is None:
        numbers, held = split_held_out(len(known), wanted=config.run.held_out, seed=config.run.seed)
        held_out = subset(source, [known[place][0] for place in held])
    if not len(held_out):
        few = len(known) < LEAST_TO_HOLD_OUT
        why = (
            f"at most a tenth is, and {counted(len(known), 'image')} with labels are fewer than"
            f" {LEAST_TO_HOLD_OUT}"
        )
        raise InputError(
            f"No images of {source.name} are held out to compare with"
            + (
                f": {why}; name others with --held-out."
                if few
                else "; set run.held_out, or name others with --held-out."
            )
        )
    learned = [known[place] for place in numbers]
    classes = tuple(sorted({label for _, label in learned}))
    if len(classes) < 2:
        raise InputError(
            f"The images of {source.name} have {len(classes)} label ({column}); there is nothing"
            " to tell apart."
        )
    images = subset(source, [number for number, _ in learned])
    check_apart(images, held_out, what="labeled")
    return Parted(
        learned=images,
        labels=codes_of([label for _, label in learned], classes),
        classes=classes,
        held_out=held_out,
        num_unlabeled=len(source) - len(known),
    )


def check_apart(learned: Source, held_out: Source, *, what: str) -> None:
    """InputError where an image is in both; what: how those to learn from are called."""
    kept = {_identity(held_out, number) for number in range(len(held_out))}
    for number in range(len(learned)):
        if _identity(learned, number) in kept:
            raise InputError(
                f"{learned.key(number)} is held out, and among the {what} images as well; a"
                " student would learn what it is measured on. Name other images with --held-out."
            )


def _identity(source: Source, number: int) -> tuple[Path, str]:
    """The file that an image lies in, and in a file of many its name there: whatever folder the
    source was opened at."""
    file = source.file(number).resolve()
    return file, "" if is_image(file.name) else source.key(number).partition(file.name)[2]
