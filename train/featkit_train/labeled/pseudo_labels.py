"""Pseudo-labels: a teacher classifies unlabeled images, and its student learns from the confident
ones (Noisy Student, arXiv 1911.04252).

Letters: N images without labels, K classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featkit.atomic import explain_os_errors, replace_file
from featkit.evaluate.embedding import OnProgress, no_progress, read_blocks
from featkit.geometry import Geometry
from featkit.images import decode
from featkit.sources import Source
from featkit_train.config import SelfTrainingConfig
from featkit_train.labeled.arrays import read_array
from featkit_train.methods.supervised import classify
from featkit_train.networks.classifier import Classifier
from featkit_train.random_streams import PSEUDO, rng_for

PSEUDO_FILE = "pseudo_labels.npy"


@dataclass(frozen=True)
class Accepted:
    """Images to learn from: their indices, ascending, some repeated if classes are balanced; and
    counts (K,) of different images in each class."""

    indices: np.ndarray
    counts: np.ndarray

    @property
    def count(self) -> int:
        """Different images that were confident enough."""
        return int(self.counts.sum())


def label_images(
    path: Path,
    teacher: Classifier,
    source: Source,
    geometry: Geometry,
    *,
    on_progress: OnProgress = no_progress,
) -> np.ndarray:
    """Return the teacher's probabilities (N, K) float32 and write them to `path`, or read them if
    they exist.

    The images are classified without noise or crops (the paper's step 2). An image that cannot be
    read has a row of zeros.
    """
    if path.is_file():
        return read_array(path, rows=len(source))
    probs = np.zeros((len(source), teacher.num_classes), np.float32)
    failures: list[tuple[str, str]] = []

    def read(index: int) -> tuple[int, np.ndarray]:
        decoded = decode(
            source.read(index), name=source.key(index), shorter_side=geometry.resize_to
        )
        return index, geometry.apply(decoded.pixels)

    done = 0
    for block in read_blocks(source, read, failures):
        images = np.stack([pixels for _, pixels in block])
        probs[[index for index, _ in block]] = classify(
            teacher, images, mean=geometry.mean, std=geometry.std
        )[-1]
        done += len(block)
        on_progress(done + len(failures), len(failures))
    with explain_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as temporary, temporary.open("wb") as file:
        np.save(file, probs)
    return probs


def accept(probs: np.ndarray, config: SelfTrainingConfig, *, seed: int) -> Accepted:
    """Choose the confident images by probs (N, K), and with `balance` equally many of each class.

    Balanced (section 3.1, "data filtering and balancing"): with n confident images in k classes,
    each class gets ceil(n / k): its most confident ones, or all of them and random repetitions.
    """
    best, confidence = probs.argmax(axis=1), probs.max(axis=1)
    # At least tiny, so that the zero rows of unreadable images never pass.
    confident = np.flatnonzero(confidence >= max(config.confidence, np.finfo(np.float32).tiny))
    counts = np.bincount(best[confident], minlength=probs.shape[1])
    if not config.balance or not len(confident):
        return Accepted(confident, counts)
    quota = math.ceil(len(confident) / np.count_nonzero(counts))
    rng = rng_for(seed, PSEUDO)
    chosen = []
    for class_id in np.flatnonzero(counts):
        members = confident[best[confident] == class_id]
        most_confident = members[np.argsort(-confidence[members], kind="stable")][:quota]
        repetitions = rng.choice(members, size=quota - len(most_confident))
        chosen.append(np.concatenate([most_confident, repetitions]))
    return Accepted(np.sort(np.concatenate(chosen)), counts)


def mixed(labeled: int, pseudo: np.ndarray, *, labeled_share: float) -> np.ndarray:
    """Return the ascending indices of an epoch's images: the `labeled` first ones of the source,
    and the indices `pseudo` after them.

    Labeled images repeat as often as needed for a share of at least `labeled_share`.
    """
    least = labeled_share / (1 - labeled_share) * len(pseudo)
    times = max(1, math.ceil(least / labeled))
    return np.sort(np.concatenate([np.tile(np.arange(labeled), times), labeled + pseudo]))
