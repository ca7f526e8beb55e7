"""Judge candidates: are they near copies, similar, or neither?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import partial

import numpy as np

from featkit.duplicates.look import SAME, SURELY_SAME
from featkit.duplicates.lookers import Key, Lookers, PairToLookAt
from featkit.index import Index
from featkit.index.meaning import Calibration
from featkit.index.state import IndexState

OWN, OTHER = 0, 1  # indexes


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
        self._others = OWN if other is index else OTHER

    def judge(self, first: np.ndarray, second: np.ndarray) -> Iterator[tuple[int, list[Pair]]]:
        """Yield, for each block of candidates, how many are judged and the pairs among the block.

        first, second: ids of items, (p,) int64. Items that were removed are in no pair. Raises what
        reading the indexes raises.
        """
        with Lookers(len(first)) as lookers:
            for start in range(0, len(first), lookers.pairs_at_once):
                part = slice(start, start + lookers.pairs_at_once)
                scores = self._scores(first[part], second[part])
                pairs = self._judged(lookers, first[part], second[part], scores)
                yield min(part.stop, len(first)), pairs

    def _scores(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return exact scores as searches do, (p,) float32, from vectors with their checksums
        compared; -inf if one of the items was removed."""
        own, are_own = _vectors(self._index, first)
        others, are_others = _vectors(self._other, second)
        scores: np.ndarray = np.einsum("pd,pd->p", own, others).astype(np.float32)
        return np.where(are_own & are_others, scores, -np.inf)

    def _judged(
        self, lookers: Lookers, first: np.ndarray, second: np.ndarray, scores: np.ndarray
    ) -> list[Pair]:
        """Return the pairs with their levels, without those that have too little in common."""
        calibration = self._calibration
        likely = scores >= calibration.candidate
        candidates = [
            PairToLookAt((OWN, a), (self._others, b), self._enough(score))
            for a, b, score in zip(
                first[likely].tolist(),
                second[likely].tolist(),
                scores[likely].tolist(),
                strict=True,
            )
        ]
        agreed = lookers.look(candidates, self._thumbnails)
        pairs: list[Pair] = []
        for pair, agreement, score in zip(candidates, agreed, scores[likely].tolist(), strict=True):
            shown = None if agreement is None else round(agreement, 3)
            if agreement is not None and agreement >= pair.enough:
                pairs.append(Pair(pair.first[1], pair.second[1], Level.NEAR, score, shown))
            elif score >= calibration.copy and self._most >= Level.SIMILAR:
                pairs.append(Pair(pair.first[1], pair.second[1], Level.SIMILAR, score, shown))
        return pairs

    def _thumbnails(self, keys: Sequence[Key]) -> dict[Key, bytes | None]:
        """Return the thumbnails of items; None if one has none or was removed."""
        found: dict[Key, bytes | None] = {}
        for number, index in ((OWN, self._index), (OTHER, self._other)):
            if some := [key for key in keys if key[0] == number]:
                found |= index.read(partial(_thumbnails_in, keys=some))
        return found

    def _enough(self, score: float) -> float:
        """Return which agreement shows that two images are copies, by what the model says."""
        return SAME if score >= self._calibration.copy else SURELY_SAME


def _thumbnails_in(state: IndexState, keys: Sequence[Key]) -> dict[Key, bytes | None]:
    return {key: state.catalogue.thumbnail(key[1]) for key in keys}


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
