"""Exact search: a scan in float32 finds candidates, and their scores are recomputed in float64.

    Q queries, N rows, D width, k requested hits

The answer is the k best by (score, then smaller id): the same for a query alone or among others,
today or after a restart.
"""

from __future__ import annotations

import numpy as np

from featkit.index.ranking import rank, rounding
from featkit.index.scanning import scan
from featkit.index.searcher import Neighbors, Rows
from featkit.index.some_rows import ArrayRows, ChosenRows, ExistingRows

# Candidates beyond k in the first scan, so that a tie at rank k rarely needs a second scan.
SPARE = 16
QUERIES_AT_ONCE = 512
# If at most this share of the rows is allowed, they are gathered instead of scanning all.
FEW_SHARE = 0.1


class ExactSearcher:
    """Compare each query with every row."""

    def search(
        self, queries: np.ndarray, rows: Rows, *, k: int, allowed: np.ndarray
    ) -> list[Neighbors]:
        """Return what `exact_search` does."""
        return exact_search(queries, rows, k=k, allowed=allowed)


def exact_search(
    queries: np.ndarray, vectors: np.ndarray | Rows, *, k: int, allowed: np.ndarray
) -> list[Neighbors]:
    """Return the k allowed rows with the largest inner product for each query.

    queries (Q, D) and vectors (N, D) are float32 with rows of unit length; an array of vectors is
    C-contiguous and not copied. allowed (N,) bool. The result has fewer than k rows if fewer are
    allowed. Raises what reading `vectors` raises. As a plain loop over queries q and allowed ids i:

        sorted((-float32(sum(float64(q) * float64(vectors[i]))), i))[:k]
    """
    if k < 1:
        raise ValueError(f"k is {k}; it must be at least 1")
    rows = ArrayRows(vectors) if isinstance(vectors, np.ndarray) else vectors
    num_allowed = int(np.count_nonzero(allowed))
    if 0 < num_allowed <= FEW_SHARE * rows.num_stored:
        chosen = ChosenRows(rows, np.flatnonzero(allowed))
        found = exact_search(queries, chosen, k=k, allowed=np.ones(num_allowed, bool))
        return [Neighbors(chosen.chosen[each.ids], each.scores) for each in found]
    if (existing := rows.ids) is not None:
        found = exact_search(queries, ExistingRows(rows, existing), k=k, allowed=allowed[existing])
        return [Neighbors(existing[each.ids], each.scores) for each in found]
    bits = np.packbits(allowed, bitorder="little")
    queries = np.ascontiguousarray(queries, np.float32)
    neighbors: list[Neighbors] = []
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        neighbors += _search(
            queries[start : start + QUERIES_AT_ONCE], rows, k=k, bits=bits, num_allowed=num_allowed
        )
    return neighbors


def _search(
    queries: np.ndarray, rows: Rows, *, k: int, bits: np.ndarray, num_allowed: int
) -> list[Neighbors]:
    """Scan and rank; scan again with more candidates for queries whose rank k is not settled."""
    k = min(k, num_allowed)
    if k == 0:
        return [Neighbors(np.zeros(0, np.int64), np.zeros(0, np.float32)) for _ in queries]
    settled: dict[int, Neighbors] = {}
    unsettled = list(range(len(queries)))
    num_candidates = min(k + SPARE, num_allowed)
    while unsettled:
        scores, candidates = scan(queries[unsettled], rows, k=num_candidates, bits=bits)
        ranked = rank(queries[unsettled], rows, candidates)
        for i, worst, ids, exact in zip(unsettled, scores[:, -1], *ranked, strict=True):
            # A row that FAISS left out scored at most `worst` there, and both sums may be off by
            # rounding.
            margin = rounding(rows.width)
            if num_candidates == num_allowed or worst < exact[k - 1] - margin:
                settled[i] = Neighbors(ids[:k], exact[:k])
        unsettled = [i for i in unsettled if i not in settled]
        num_candidates = min(4 * num_candidates, num_allowed)
    return [settled[i] for i in range(len(queries))]
