"""The interface of every index type: search over the committed rows of an index.

    Q queries, N rows, D width

A new index type is one file with a class that has `search`, and one line in `SEARCHERS` of
index_types.py. An approximate type searches the rows that it has indexed and scans the rows that
were committed later, so that a new item is found at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np


class Neighbors(NamedTuple):
    """The rows nearest to one query, best first: ids (n,) int64 and scores (n,) float32, n <= k.

    is_exact: whether no nearer row can exist.
    """

    ids: np.ndarray
    scores: np.ndarray
    is_exact: bool = True


class Rows(Protocol):
    """Rows of D float32 with ids below N, which are read in blocks or by id."""

    num_rows: int  # N
    num_stored: int  # rows that exist
    width: int

    @property
    def ids(self) -> np.ndarray | None:
        """The ids that have a row, ascending; None if all N have one."""
        ...

    def blocks(self, num_queries: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first row, rows (n, D)) in order, in blocks sized for `num_queries`.

        Only ids with a row are counted: row i is the one with the i-th of `ids`.

        Every block except the last has a multiple of 8 rows.
        """
        ...

    def blocks_of(self, ids: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first position, rows (n, D)) of the rows with these ids, ascending, in order.

        Blocks are sized like those of `blocks`.
        """
        ...

    def in_memory(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Return rows that are kept in memory, (m, D) float32, and the places of those with these
        ids in them, (n,) int64, without copying; None if they are not kept."""
        ...

    def take(self, ids: np.ndarray) -> np.ndarray:
        """Return the rows (n, D) with these ids."""
        ...


class Searcher(Protocol):
    """Finds the rows nearest to a query. Called from several threads at once."""

    def search(
        self, queries: np.ndarray, rows: Rows, *, k: int, allowed: np.ndarray
    ) -> list[Neighbors]:
        """Return the nearest allowed rows for each query: by score, then smaller id.

        queries (Q, D) float32 of unit length; allowed (N,) bool. Every id in the result has been
        passed to `rows.take`, since the index verifies the checksums of exactly those rows.
        """
        ...
