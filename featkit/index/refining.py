"""Better answers from the same vectors: several queries as one, query expansion, re-ranking by
shared neighbors, and diversity.

n queries, m hits, D width; all vectors have length 1
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from featkit.errors import InputError

ALPHA = 3.0  # of query expansion, as in the paper
POOL = 5  # times as many hits are searched as are kept, if they shall be diverse
LEAST_LENGTH = 1e-3  # of a sum of queries; shorter ones have no direction
MOST_HITS = 1000  # that are expanded with or ordered again; their pairs are compared
# Of k-reciprocal encoding, as in the paper: how many neighbors, how many of them are averaged,
# and the share of the distance itself.
K1, K2, DISTANCE_SHARE = 20, 6, 0.3


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """How to refine the hits of a search. The default changes nothing.

    min_score: leave out hits with a lower score. expand: search again with the query moved towards
    its first `expand` hits (alpha query expansion, Radenović et al., arXiv 1711.02512, with alpha
    3). rerank: order the first `rerank` hits again, those first that share neighbors with the query
    (k-reciprocal encoding, Zhong et al., arXiv 1701.08398, among these hits). diversity: from 0 to
    1; with more, hits that are like earlier hits come later (maximal marginal relevance, Carbonell
    and Goldstein 1998, with lambda = 1 - diversity).

    With `expand`, `rerank` or `diversity`, hits are no longer in the order of their scores, which
    remain cosine similarities to the query itself.
    """

    min_score: float | None = None
    expand: int = 0
    rerank: int = 0
    diversity: float = 0.0

    def __post_init__(self) -> None:
        """Raise InputError for values that mean nothing."""
        if self.min_score is not None and not math.isfinite(self.min_score):
            raise InputError(f"min_score is {self.min_score}; it must be a number.")
        for name, count in (("expand", self.expand), ("rerank", self.rerank)):
            if type(count) is not int or not 0 <= count <= MOST_HITS:
                raise InputError(
                    f"{name} is {count}; it must be a whole number from 0 to {MOST_HITS:,}."
                )
        if not 0 <= self.diversity <= 1:
            raise InputError(f"diversity is {self.diversity}; it must be from 0 to 1.")
        if self.rerank and self.diversity:
            raise InputError(
                "rerank brings hits together that are alike, and diversity sets them apart; use one"
                " of them."
            )

    @property
    def changes_order(self) -> bool:
        """Return whether hits are not simply those with the largest scores."""
        return self.expand > 0 or self.rerank > 0 or self.diversity > 0

    def pool(self, k: int) -> int:
        """Return how many hits to search for k refined ones."""
        return max(k * POOL if self.diversity else k, self.rerank)


def combined(vectors: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    """Return the direction of a weighted sum of vectors (n, D), as (D,) float32 of length 1.

    Negative weights lead away from a vector. InputError for weights that do not fit or whose sum
    has no direction.
    """
    if len(weights) != len(vectors):
        raise InputError(
            f"There are {len(weights)} weights for {len(vectors)} queries; give one for each."
        )
    values = np.asarray(weights, np.float64)
    if not np.isfinite(values).all():
        raise InputError(f"The weights are {list(weights)}; they must be numbers.")
    total: np.ndarray = np.einsum("n,nd->d", values, vectors.astype(np.float64))
    length = float(np.linalg.norm(total))
    if length < LEAST_LENGTH * max(1.0, float(np.abs(values).max(initial=0.0))):
        raise InputError("The queries cancel each other out; change their weights.")
    return (total / length).astype(np.float32)


def expanded(query: np.ndarray, vectors: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return a query moved towards its hits, (D,) float32 of length 1.

    query (D,); vectors (m, D) of the hits, and scores (m,), their inner products with it. As a
    plain loop: query + sum(max(score, 0) ** ALPHA * vector), scaled to length 1.
    """
    weights = np.maximum(scores.astype(np.float64), 0) ** ALPHA
    total: np.ndarray = query + np.einsum("m,md->d", weights, vectors.astype(np.float64))
    moved: np.ndarray = (total / np.linalg.norm(total)).astype(np.float32)
    return moved


def reciprocal_distances(query: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Return the distances of hits from a query by the neighbors that they share, (m,) float64.

    query (D,), vectors (m, D). Only the query and these hits count as neighbors of each other. As
    plain loops over P points, the query first (Zhong et al., arXiv 1701.08398, eq. 2 to 12):

        d[p, q] = |p - q|^2 / max over r of |p - r|^2
        N(p, k) = p itself and the k nearest others
        R(p, k) = {q in N(p, k) if p in N(q, k)}
        S(p) = R(p, K1) + each R(q, K1 / 2) for q in R(p, K1) of which more than 2/3 is in R(p, K1)
        V[p, q] = exp(-d[p, q]) if q in S(p) else 0, divided by the sum over q
        U[p] = mean(V[q] for the K2 first of p itself and its nearest)
        jaccard[q] = 1 - sum(minimum(U[0], U[q])) / sum(maximum(U[0], U[q]))
        return (1 - DISTANCE_SHARE) * jaccard + DISTANCE_SHARE * d[0]
    """
    points = np.concatenate([query[None], vectors]).astype(np.float64)  # (P, D)
    squared = np.maximum(0, 2 - 2 * points @ points.T)  # (P, P)
    farthest = squared.max(axis=1, keepdims=True)
    distances = np.divide(squared, farthest, out=np.zeros_like(squared), where=farthest > 0)
    sorting = distances.copy()
    np.fill_diagonal(sorting, -1.0)  # each is its own nearest, even among equal ones
    order = np.argsort(sorting, axis=1, kind="stable")
    near, near_half = _mutual(order, K1 + 1), _mutual(order, K1 // 2 + 1)
    overlap = near.astype(np.float64) @ near_half.T
    is_added = near & (overlap > 2 / 3 * near_half.sum(axis=1))
    shared = near | (is_added.astype(np.float64) @ near_half > 0)
    weights = np.where(shared, np.exp(-distances), 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    averaged = _members(order, K2).astype(np.float64) @ weights / min(K2, len(order))
    common = np.minimum(averaged[0], averaged).sum(axis=1)
    jaccard = 1 - common / (2 - common)  # all rows sum to 1
    combined_distances: np.ndarray = (1 - DISTANCE_SHARE) * jaccard + DISTANCE_SHARE * distances[0]
    return combined_distances[1:]


def _members(order: np.ndarray, count: int) -> np.ndarray:
    """Return which points are among the first `count` of each row's order, (P, P) bool."""
    members = np.zeros(order.shape, bool)
    np.put_along_axis(members, order[:, :count], True, axis=1)
    return members


def _mutual(order: np.ndarray, count: int) -> np.ndarray:
    """Return which points are among each other's first `count`, (P, P) bool."""
    members = _members(order, count)
    both: np.ndarray = members & members.T
    return both


def diverse(scores: np.ndarray, vectors: np.ndarray, *, k: int, diversity: float) -> np.ndarray:
    """Return the positions of k hits, chosen one after the other for their score and against what
    was chosen: (k,) int64, fewer if there are fewer hits.

    scores (m,), vectors (m, D). As a plain loop over k choices:

        argmax((1 - diversity) * scores[i] - diversity * max(vectors[i] @ vectors[j] for chosen j))
    """
    wide = vectors.astype(np.float64)
    nearest = np.full(len(scores), -np.inf)
    free = np.ones(len(scores), bool)
    chosen: list[int] = []
    for _ in range(min(k, len(scores))):
        penalty = nearest if chosen else np.zeros(len(scores))
        gain = (1 - diversity) * scores.astype(np.float64) - diversity * penalty
        best = int(np.argmax(np.where(free, gain, -np.inf)))
        chosen.append(best)
        free[best] = False
        nearest = np.maximum(nearest, np.einsum("md,d->m", wide, wide[best]))
    return np.array(chosen, np.int64)
