"""Judge candidates: are they near copies, similar, or neither?"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np

from featkit.duplicates.look import SAME, SURELY_SAME, Look, agreement
from featkit.index import Index
from featkit.index.meaning import Calibration
from featkit.index.state import IndexState
from featkit.resources import usable_cpus

LOOKS_KEPT = 2048  # at 45 kB each
PAIRS_AT_ONCE = 256


class Level(IntEnum):
    """How much two images have in common; a larger value is less."""

    SAME = 1  # the same bytes
    NEAR = 2  # the same content, seen by model and pixels: another size, crop, color, compression
    SIMILAR = 3  # as near as copies by the model, but the pixels do not show the same

    @property
    def word(self) -> str:
        """The name for people."""
        return {1: "same", 2: "near", 3: "similar"}[self.value]


@dataclass(frozen=True, order=True)
class Pair:
    """Two items by id, the first one smaller unless they are of two indexes.

    score: cosine similarity. agreement: of the pixels, as in look.py; None if it was not needed.
    """

    first: int
    second: int
    level: Level
    score: float
    agreement: float | None = None


class Judge:
    """Judges the pairs of items of one index, or of an item of one with an item of another."""

    def __init__(self, index: Index, other: Index, calibration: Calibration, most: Level) -> None:
        self._index, self._other = index, other
        self._calibration, self._most = calibration, most
        self._looks = _Looks(index)
        self._other_looks = self._looks if other is index else _Looks(other)

    def judge(self, first: np.ndarray, second: np.ndarray) -> Iterator[tuple[int, list[Pair]]]:
        """Yield, for each block of candidates, how many are judged and the pairs among the block.

        first, second: ids of items, (p,) int64. Items that were removed are in no pair. Raises what
        reading the indexes raises.
        """
        with ThreadPoolExecutor(usable_cpus()) as pool:
            for start in range(0, len(first), PAIRS_AT_ONCE):
                part = slice(start, start + PAIRS_AT_ONCE)
                scores = self._scores(first[part], second[part])
                judged = pool.map(
                    self._one, first[part].tolist(), second[part].tolist(), scores.tolist()
                )
                yield (
                    min(start + PAIRS_AT_ONCE, len(first)),
                    [pair for pair in judged if pair is not None],
                )

    def _scores(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return exact scores as searches do, (p,) float32, from vectors with their checksums
        compared; -inf if one of the items was removed."""
        own, are_own = _vectors(self._index, first)
        others, are_others = _vectors(self._other, second)
        scores: np.ndarray = np.einsum("pd,pd->p", own, others).astype(np.float32)
        return np.where(are_own & are_others, scores, -np.inf)

    def _one(self, first: int, second: int, score: float) -> Pair | None:
        """Return the pair with its level, or None if the images have too little in common."""
        calibration = self._calibration
        if score < calibration.candidate:
            return None
        views = self._looks.get(first), self._other_looks.get(second)
        agreed = None
        if views[0] is not None and views[1] is not None:
            enough = SAME if score >= calibration.copy else SURELY_SAME
            agreed = agreement(views[0], views[1], enough=enough)
            if agreed >= enough:
                return Pair(first, second, Level.NEAR, score, round(agreed, 3))
        if score >= calibration.copy and self._most >= Level.SIMILAR:
            shown = None if agreed is None else round(agreed, 3)
            return Pair(first, second, Level.SIMILAR, score, shown)
        return None


def _vectors(index: Index, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the vectors of items, (n, D) float64, and which of the items are not removed.

    An open index may keep all its vectors in memory; this does not.
    """

    def read(state: IndexState) -> tuple[np.ndarray, np.ndarray]:
        are_live = state.vectors.live[ids]
        unique, inverse = np.unique(ids[are_live], return_inverse=True)
        unheld = replace(state.vectors, rows=state.vectors.rows.unheld())
        bounded = IndexState(state.path, state.width, state.catalogue, unheld)
        vectors = np.zeros((len(ids), state.width))
        vectors[are_live] = bounded.vectors_of(unique)[inverse]
        return vectors, are_live

    return index.read(read)


class _Looks:
    """Thumbnails of an index, prepared; the last few thousand are kept. Thread-safe."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._kept: OrderedDict[int, Look | None] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, item_id: int) -> Look | None:
        """Return the look of an item; None if it has no thumbnail or was removed."""
        with self._lock:
            if item_id in self._kept:
                self._kept.move_to_end(item_id)
                return self._kept[item_id]
        jpeg = self._index.read(lambda state: state.catalogue.thumbnail(item_id))
        look = Look.of(jpeg) if jpeg else None
        with self._lock:
            self._kept[item_id] = look
            while len(self._kept) > LOOKS_KEPT:
                self._kept.popitem(last=False)
        return look
