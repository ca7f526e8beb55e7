"""Rows of an array, and some of other rows, with the interface that searches read rows through."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from featkit.index.searcher import Rows


class ArrayRows:
    """Rows in memory, (N, D) float32, C-contiguous: one block, not copied."""

    ids = None

    def __init__(self, vectors: np.ndarray) -> None:
        assert vectors.flags.c_contiguous
        assert vectors.dtype == np.float32
        self.vectors = vectors
        self.num_rows, self.width = vectors.shape
        self.num_stored = self.num_rows

    def blocks(self, _num_queries: int) -> Iterator[tuple[int, np.ndarray]]:
        yield 0, self.vectors

    def blocks_of(self, ids: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        yield 0, self.vectors[ids]

    def scattered(self) -> tuple[np.ndarray, np.ndarray]:
        """Return what `in_memory` does for all of them."""
        return self.vectors, np.arange(self.num_rows)

    def in_memory(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        return self.vectors, ids

    def take(self, ids: np.ndarray) -> np.ndarray:
        return np.asarray(self.vectors[ids])


class ChosenRows:
    """Some of the rows, by ascending ids: row i is the one with the i-th id."""

    ids = None

    def __init__(self, rows: Rows, chosen: np.ndarray) -> None:
        self._rows, self.chosen = rows, chosen
        self.num_rows = self.num_stored = len(chosen)
        self.width = rows.width

    def blocks(self, _num_queries: int) -> Iterator[tuple[int, np.ndarray]]:
        return self._rows.blocks_of(self.chosen)

    def blocks_of(self, ids: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        return self._rows.blocks_of(self.chosen[ids])

    def scattered(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Return what `in_memory` does for all of them."""
        return self._rows.in_memory(self.chosen)

    def in_memory(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        return self._rows.in_memory(self.chosen[ids])

    def take(self, ids: np.ndarray) -> np.ndarray:
        return self._rows.take(self.chosen[ids])


class ExistingRows(ChosenRows):
    """The rows that exist, if some ids have none: row i is the i-th of them."""

    def scattered(self) -> None:
        """Return None: they are next to each other."""

    def blocks(self, num_queries: int) -> Iterator[tuple[int, np.ndarray]]:
        return self._rows.blocks(num_queries)
