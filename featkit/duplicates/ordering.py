"""An order of pairs in which the same images come again soon, so that each is prepared once.

Images are gathered around a few of them, by their vectors, and pairs are taken cluster by cluster.
"""

from __future__ import annotations

import numpy as np

from featkit.duplicates.nearest import Side

PER_CLUSTER, MOST_CLUSTERS = 128, 1024
ROWS_AT_ONCE = 8192


def nearby_order(
    first_side: Side, second_side: Side, first: np.ndarray, second: np.ndarray
) -> np.ndarray:
    """Return the order of pairs, (p,) int64, by the ids of their items, (p,) int64 each.

    first_side, second_side: the items of the first and of the second ones.
    """
    is_self = second_side is first_side
    own = np.unique(np.concatenate([first, second]) if is_self else first)
    others = own if is_self else np.unique(second)
    step = max(PER_CLUSTER, -(-len(own) // MOST_CLUSTERS))
    centers = _chained(first_side.rows.take(own[::step]))
    ranks = _ranks(first_side, own, centers)
    other_ranks = ranks if is_self else _ranks(second_side, others, centers)
    major = ranks[np.searchsorted(own, first)]
    minor = other_ranks[np.searchsorted(others, second)]
    if is_self:  # so that all pairs of an image follow each other but for those with earlier ones
        major, minor = np.minimum(major, minor), np.maximum(major, minor)
    return np.argsort(major * max(1, len(others)) + minor, kind="stable")


def _ranks(side: Side, ids: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Return the place of each item in an order by clusters, (n,) int64."""
    clusters = np.empty(len(ids), np.int64)
    for start in range(0, len(ids), ROWS_AT_ONCE):
        vectors = side.rows.take(ids[start : start + ROWS_AT_ONCE])
        clusters[start : start + len(vectors)] = (vectors @ centers.T).argmax(axis=1)
    ranks = np.empty(len(ids), np.int64)
    ranks[np.argsort(clusters, kind="stable")] = np.arange(len(ids))
    return ranks


def _chained(vectors: np.ndarray) -> np.ndarray:
    """Return vectors (n, D) in an order in which each is followed by the nearest of the others."""
    similarities = vectors @ vectors.T
    order = [0] if len(vectors) else []
    while len(order) < len(vectors):
        nearest = similarities[order[-1]].copy()
        nearest[order] = -np.inf
        order.append(int(nearest.argmax()))
    chained: np.ndarray = vectors[order]
    return chained
