"""What a run is measured by while it learns: copies found among held-out pictures, and nearest neighbours of one label.

Letters: N pictures, D width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import numpy as np

from featkit.errors import InputError
from featkit.evaluate.copies import CopyProbe
from featkit.evaluate.knn import knn_accuracy
from featkit.evaluate.labels import LABEL, find_column, labels_of
from featkit.geometry import Geometry
from featkit.images import decode
from featkit.sources import Source, subset
from featkit_train.watching.meter import Log

DECODE_SIDE = 256  # pixels, what the copies yardstick works on
COPIES, KNN = "copy_recall", "knn"
LEAST_A_LABEL = 4  # pictures, on average; with fewer, neighbours of one label say nothing


class HeldOut:
    """Pictures that nothing is learnt from, prepared once; `labels` are theirs where the source knows any."""

    def __init__(self, source: Source, numbers: np.ndarray, geometry: Geometry) -> None:
        self.pictures: list[np.ndarray] = []
        self.names: list[str] = []
        held_out = subset(source, [int(number) for number in numbers])
        label = _labels(held_out)
        labels: list[str] = []
        for place in range(len(held_out)):
            with contextlib.suppress(InputError):  # one that cannot be read is not measured on
                key = held_out.key(place)
                picture = decode(held_out.read(place), name=key, shorter_side=DECODE_SIDE).pixels
                labels.append(label(place) if label is not None else "")
                self.pictures.append(picture)
                self.names.append(key)
        enough = len(self.pictures) > 1
        self._copies = CopyProbe(self.pictures, geometry, seed=0, num_edits=4) if enough else None
        self._prepared = np.stack([geometry.apply(picture) for picture in self.pictures]) if enough else None
        kinds, codes = np.unique(labels, return_inverse=True)
        self._codes = codes if 1 < len(kinds) <= len(labels) / LEAST_A_LABEL else None

    def measure(self, embed: Callable[[np.ndarray], np.ndarray]) -> Log:
        """Scores by name, the first of them the one to watch; none where there are fewer than two pictures.

        copy_recall: recall@1 of copies. knn: accuracy of the label of every second picture by the 20 nearest of the others.
        embed: prepared pictures (N, H, W, 3) uint8 to unit vectors (N, D) float32.
        """
        if self._copies is None or self._prepared is None:
            return {}
        scores = {COPIES: self._copies.recall_at_1(embed)}
        if self._codes is not None:
            vectors, codes = embed(self._prepared), self._codes
            neighbours = min(20, len(codes[::2]))
            scores[KNN] = knn_accuracy(vectors[::2], codes[::2], vectors[1::2], codes[1::2], k=neighbours)
        return scores


def _labels(source: Source) -> Callable[[int], str] | None:
    """What the source knows of its pictures' kinds, if anything."""
    try:
        return labels_of(source, find_column(source, LABEL))
    except InputError:
        return None
