"""Score a run on held-out images while it trains: copy recall, and kNN accuracy if there are
labels.

Letters: N images, D width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from featkit.errors import InputError
from featkit.evaluate.copies import CopyProbe
from featkit.evaluate.labels import LABEL, find_column, labels_of
from featkit.geometry import Geometry
from featkit.images import decode
from featkit.sources import Source, evenly, subset
from featkit_train.log import Log
from featkit_train.watching.standing import held_out_knn, labels_tell

DECODE_SIDE = 256  # pixels, as in `featkit evaluate copies`
COPIES, KNN = "copy_recall", "knn"
MAX_COPIES = 200  # images in copy recall; each is embedded in five views


@dataclass(frozen=True)
class Scores:
    """Scores on held-out images, by their names in the log. `watched` names the score that decides
    which model is best."""

    values: Log
    watched: str

    @property
    def watched_value(self) -> float:
        """The watched score; higher is better."""
        return self.values[self.watched]

    @staticmethod
    def joined(first: Scores | None, second: Scores | None) -> Scores | None:
        """Return the scores of both; `watched` is that of the first."""
        if first is None or second is None:
            return first or second
        return Scores({**first.values, **second.values}, first.watched)


class HeldOut:
    """Held-out images, prepared once, with their labels if the source has them."""

    def __init__(
        self, source: Source, indices: np.ndarray, geometry: Geometry, *, label: str = LABEL
    ) -> None:
        self.images: list[np.ndarray] = []
        self.names: list[str] = []
        self.labels: list[str] = []  # "" for an unknown one
        held_out = subset(source, [int(index) for index in indices])
        label_of = _labels(held_out, label)
        for index in range(len(held_out)):
            with contextlib.suppress(InputError):  # unreadable images are left out
                key = held_out.key(index)
                image = decode(held_out.read(index), name=key, shorter_side=DECODE_SIDE).pixels
                self.labels.append(label_of(index) if label_of is not None else "")
                self.images.append(image)
                self.names.append(key)
        enough = len(self.images) > 1
        originals = [self.images[index] for index in evenly(len(self.images), most=MAX_COPIES)]
        self._copies = CopyProbe(originals, geometry, seed=0, num_edits=4) if enough else None
        self.prepared = (
            np.stack([geometry.apply(image) for image in self.images]) if enough else None
        )
        self._codes = np.unique(self.labels, return_inverse=True)[1]

    @property
    def copy_images(self) -> np.ndarray:
        """The prepared images (N, H, W, 3) uint8 of copy recall, originals and edits. ValueError if
        there are fewer than two originals."""
        return self._probe().images

    def copy_recall(self, vectors: np.ndarray) -> float:
        """Return recall@1 of copies from unit vectors (N, D) of copy_images."""
        return self._probe().recall_of(vectors)

    def _probe(self) -> CopyProbe:
        if self._copies is None:
            raise ValueError("copy recall needs at least two images")
        return self._copies

    def measure(self, embed: Callable[[np.ndarray], np.ndarray]) -> Scores | None:
        """Score an embedding; None if fewer than two images are held out.

        knn, if there are enough images of each label: kNN accuracy of every second image by its 20
        nearest neighbors among the others. It is then the watched score.
        copy_recall: recall@1 of copies.
        embed: prepared images (N, H, W, 3) uint8 to unit vectors (N, D) float32.
        """
        if self._copies is None or self.prepared is None:
            return None
        knn = held_out_knn(embed(self.prepared), self._codes) if labels_tell(self._codes) else None
        copies = Scores({COPIES: self._copies.recall_at_1(embed)}, watched=COPIES)
        return copies if knn is None else Scores({KNN: knn, **copies.values}, watched=KNN)


def _labels(source: Source, column: str) -> Callable[[int], str] | None:
    """Return a function from index to label, or None if the source has no labels."""
    try:
        return labels_of(source, find_column(source, column))
    except InputError:
        return None
