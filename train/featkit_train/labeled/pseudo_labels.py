"""What a teacher calls images without labels, and which of them a student learns from (Noisy
Student, arXiv 1911.04252).

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
    """numbers: images to learn from, rising, some more than once where classes are balanced;
    counts (K,): each once."""

    numbers: np.ndarray
    counts: np.ndarray

    @property
    def count(self) -> int:
        """Different images whose label was sure enough."""
        return int(self.counts.sum())


def label_images(
    path: Path,
    teacher: Classifier,
    source: Source,
    geometry: Geometry,
    *,
    on_progress: OnProgress = no_progress,
) -> np.ndarray:
    """(N, K) float32 probabilities of the images as they are, without any noise (the paper's step
    2), also written to `path`.

    An image that cannot be read is of no class: a row of zeros.
    """
    if path.is_file():
        return read_array(path, rows=len(source))
    probs = np.zeros((len(source), teacher.num_classes), np.float32)
    failures: list[tuple[str, str]] = []

    def read(number: int) -> tuple[int, np.ndarray]:
        decoded = decode(
            source.read(number), name=source.key(number), shorter_side=geometry.resize_to
        )
        return number, geometry.apply(decoded.pixels)

    done = 0
    for block in read_blocks(source, read, failures):
        images = np.stack([pixels for _, pixels in block])
        probs[[number for number, _ in block]] = classify(
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
    """Choose among images by probs (N, K): the sure ones, and with `balance` as many of each
    class.

    Balanced (section 3.1, "data filtering and balancing"): of the n sure images in k classes each
    class gets ceil(n / k), the surest where it has more, and where it has fewer all of them and
    random ones of them again.
    """
    best, confidence = probs.argmax(axis=1), probs.max(axis=1)
    sure = np.flatnonzero(confidence >= max(config.confidence, np.finfo(np.float32).tiny))
    counts = np.bincount(best[sure], minlength=probs.shape[1])
    if not config.balance or not len(sure):
        return Accepted(sure, counts)
    wanted = math.ceil(len(sure) / np.count_nonzero(counts))
    rng = rng_for(seed, PSEUDO)
    chosen = []
    for kind in np.flatnonzero(counts):
        members = sure[best[sure] == kind]
        surest = members[np.argsort(-confidence[members], kind="stable")][:wanted]
        chosen.append(np.concatenate([surest, rng.choice(members, size=wanted - len(surest))]))
    return Accepted(np.sort(np.concatenate(chosen)), counts)


def mixed(labeled: int, pseudo: np.ndarray, *, labeled_share: float) -> np.ndarray:
    """Numbers of an epoch's images, rising: all below `labeled`, and from there on those that
    `pseudo` says.

    The former come as often as is needed for their share to be `labeled_share` at least.
    """
    least = labeled_share / (1 - labeled_share) * len(pseudo)
    times = max(1, math.ceil(least / labeled))
    return np.sort(np.concatenate([np.tile(np.arange(labeled), times), labeled + pseudo]))
