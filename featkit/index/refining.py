"""Better answers from the same vectors: several queries as one, query expansion, and diversity.

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


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """How to refine the hits of a search. The default changes nothing.

    min_score: leave out hits with a lower score. expand: search again with the query moved towards
    its first `expand` hits (alpha query expansion, Radenović et al., arXiv 1711.02512, with alpha
    3). diversity: from 0 to 1; with more, hits that are like earlier hits come later (maximal
    marginal relevance, Carbonell and Goldstein 1998, with lambda = 1 - diversity).

    With `expand` or `diversity`, hits are no longer in the order of their scores, which remain
    cosine similarities to the query itself.
    """

    min_score: float | None = None
    expand: int = 0
    diversity: float = 0.0

    def __post_init__(self) -> None:
        """Raise InputError for values that mean nothing."""
        if self.min_score is not None and not math.isfinite(self.min_score):
            raise InputError(f"min_score is {self.min_score}; it must be a number.")
        if not isinstance(self.expand, int) or self.expand < 0:
            raise InputError(f"expand is {self.expand}; it must be a whole number from 0 on.")
        if not 0 <= self.diversity <= 1:
            raise InputError(f"diversity is {self.diversity}; it must be from 0 to 1.")

    @property
    def changes_order(self) -> bool:
        """Return whether hits are not simply those with the largest scores."""
        return self.expand > 0 or self.diversity > 0


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
