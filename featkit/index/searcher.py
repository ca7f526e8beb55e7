"""Exact search over a memory map: FAISS's scan finds candidates, and their scores are computed anew in float64.

    Q queries, N rows of the file, D width, k hits wanted

FAISS reads the map in place (`knn_inner_product`, nothing is copied or built) and skips ids that an IDSelector excludes.
Its float32 sums depend on how many queries share a call and on where a row lies, so it only nominates: the answer is the
k best by (score, then smaller id), the same for a query alone or among others, today or after a restart.

An approximate index takes the place of `_scan` for the rows that it holds; rows after those go on being scanned.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from featkit.index.bounded_faiss import faiss, shared_processors

# Candidates beyond k that the first scan asks for, so that a tie at the k-th place rarely needs a second one.
SPARE = 16
QUERIES_AT_ONCE = 256


class Found(NamedTuple):
    """Hits of one query, best first: ids (n,) int64 and scores (n,) float32, n <= k."""

    ids: np.ndarray
    scores: np.ndarray


def exact_search(queries: np.ndarray, vectors: np.ndarray, *, k: int, allowed: np.ndarray) -> list[Found]:
    """The k rows of largest inner product with each query, among those allowed; of equal scores the smaller id first.

    queries (Q, D) and vectors (N, D) float32, rows of unit length, vectors C-contiguous (a memory map is not copied).
    allowed (N,) bool. Fewer than k hits where fewer are allowed. As a plain loop over queries q and allowed ids i:

        sorted((-float32(sum(float64(q) * float64(vectors[i]))), i))[:k]
    """
    if k < 1:
        raise ValueError(f"k is {k}; at least 1 is wanted")
    num_allowed = int(np.count_nonzero(allowed))
    bits = np.packbits(allowed, bitorder="little")
    queries = np.ascontiguousarray(queries, np.float32)
    found: list[Found] = []
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        found += _search(queries[start : start + QUERIES_AT_ONCE], vectors, k=k, bits=bits, num_allowed=num_allowed)
    return found


def _search(queries: np.ndarray, vectors: np.ndarray, *, k: int, bits: np.ndarray, num_allowed: int) -> list[Found]:
    """Scan, rank anew, and scan again with more candidates for those queries whose k-th place is not settled yet."""
    k = min(k, num_allowed)
    if k == 0:
        return [Found(np.zeros(0, np.int64), np.zeros(0, np.float32)) for _ in queries]
    found: dict[int, Found] = {}
    open_queries = np.arange(len(queries))
    num_candidates = min(k + SPARE, num_allowed)
    while len(open_queries):
        nominated, candidates = _scan(queries[open_queries], vectors, k=num_candidates, bits=bits)
        for number, worst, ids in zip(open_queries.tolist(), nominated[:, -1], candidates, strict=True):
            ranked = _rank(queries[number], vectors, ids)
            # A row that FAISS left out scored at most `worst` there, and both sums may be off by a rounding.
            if num_candidates == num_allowed or worst < ranked.scores[k - 1] - _rounding(vectors.shape[1]):
                found[number] = Found(ranked.ids[:k], ranked.scores[:k])
        open_queries = np.array([number for number in open_queries.tolist() if number not in found], np.int64)
        num_candidates = min(4 * num_candidates, num_allowed)
    return [found[number] for number in range(len(queries))]


def _scan(queries: np.ndarray, vectors: np.ndarray, *, k: int, bits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """FAISS's k best of each query, scores (Q, k) float32 and ids (Q, k) int64, among the rows whose bit is set."""
    assert vectors.flags.c_contiguous
    assert vectors.dtype == np.float32
    scores = np.empty((len(queries), k), np.float32)
    ids = np.empty((len(queries), k), np.int64)
    selector = faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))
    with shared_processors():
        faiss.knn_inner_product(
            faiss.swig_ptr(queries),
            faiss.swig_ptr(vectors),
            vectors.shape[1],
            len(queries),
            len(vectors),
            k,
            faiss.swig_ptr(scores),
            faiss.swig_ptr(ids),
            selector,
        )
    return scores, ids


def _rank(query: np.ndarray, vectors: np.ndarray, ids: np.ndarray) -> Found:
    """Candidates by exact score, then id. A row's score depends on nothing but the two vectors."""
    scores = np.einsum("nd,d->n", vectors[ids].astype(np.float64), query.astype(np.float64)).astype(np.float32)
    order = np.lexsort((ids, -scores))
    return Found(ids[order], scores[order])


def _rounding(width: int) -> float:
    """How far a float32 inner product of unit vectors may be from the exact one, in any order of summation, twice over."""
    return 2 * width * float(np.finfo(np.float32).eps)
