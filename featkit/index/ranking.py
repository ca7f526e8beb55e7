"""Ranking of candidates by their exact scores.

Q queries, R candidates of each, D width
"""

from __future__ import annotations

import numpy as np

from featkit.index.searcher import Rows

RANKED_AT_ONCE = 32  # queries whose candidates' vectors are in memory at once


def rank(
    queries: np.ndarray, rows: Rows, ids: np.ndarray, *, k: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Sort the candidates (Q, R) of each query by exact score, then id; return ids and scores.

    -1 stands for a missing one, which comes last with the score -inf. A score depends on nothing
    but the two vectors. k: return only the k best, which costs less.
    """
    k = ids.shape[1] if k is None else min(k, ids.shape[1])
    ranked_ids = np.empty((len(ids), k), np.int64)
    ranked_scores = np.empty((len(ids), k), np.float32)
    # One allocation for all parts: getting fresh memory for each costs more than the products.
    room = _Room(min(RANKED_AT_ONCE, len(ids)) * ids.shape[1], rows.width)
    for start in range(0, len(queries), RANKED_AT_ONCE):
        part = slice(start, start + RANKED_AT_ONCE)
        ranked_ids[part], ranked_scores[part] = _rank(queries[part], rows, ids[part], k, room)
    return ranked_ids, ranked_scores


class _Room:
    """Memory for gathered vectors of width D, used again and again."""

    def __init__(self, num_vectors: int, width: int) -> None:
        self._narrow = np.empty((num_vectors, width), np.float32)
        self._wide = np.empty((num_vectors, width), np.float64)

    def gather(self, taken: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Return the vectors (Q, R, D) at these places (Q, R), valid until the next call."""
        narrow = self._narrow[: places.size]
        np.take(taken, places.reshape(-1), axis=0, out=narrow, mode="clip")
        return narrow.reshape(*places.shape, -1)

    def widen(self, narrow: np.ndarray) -> np.ndarray:
        """Return what `gather` returned as float64, valid until the next call."""
        wide = self._wide[: narrow.size // narrow.shape[-1]].reshape(narrow.shape)
        np.copyto(wide, narrow)
        return wide


def _rank(
    queries: np.ndarray, rows: Rows, ids: np.ndarray, k: int, room: _Room
) -> tuple[np.ndarray, np.ndarray]:
    unique, inverse = np.unique(ids, return_inverse=True)
    num_skipped = int(len(unique) > 0 and unique[0] == -1)
    taken = rows.take(unique[num_skipped:])
    if len(taken) == 0:
        taken = np.zeros((1, rows.width), np.float32)
    places = np.maximum(inverse.reshape(ids.shape) - num_skipped, 0)
    if k < ids.shape[1]:
        narrow = room.gather(taken, places)
        rough = np.einsum("qrd,qd->qr", narrow, queries)
        rough[ids < 0] = -np.inf
        order = np.argsort(-rough, axis=1)
        rough = np.take_along_axis(rough, order, 1)
        # In spite of rounding, none of those that are left out can be among the k best.
        is_near = rough >= rough[:, k - 1 : k] - rounding(rows.width)
        order = order[:, : int(np.count_nonzero(is_near, axis=1).max(initial=k))]
        ids, places = np.take_along_axis(ids, order, 1), np.take_along_axis(places, order, 1)
    wide = room.widen(room.gather(taken, places))
    scores = np.einsum("qrd,qd->qr", wide, queries.astype(np.float64)).astype(np.float32)
    scores[ids < 0] = -np.inf
    order = np.lexsort((ids, -scores), axis=1)[:, :k]
    return np.take_along_axis(ids, order, 1), np.take_along_axis(scores, order, 1)


def rounding(width: int) -> float:
    """Return twice the largest error of a float32 inner product of unit vectors.

    The bound holds for any order of summation.
    """
    return 2 * width * float(np.finfo(np.float32).eps)
