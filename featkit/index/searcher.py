"""Exact search over rows in memory or in a file: FAISS's scan finds candidates, and their scores
are computed anew in float64.

    Q queries, N rows of the file, D width, k hits wanted

FAISS scans one block of rows after the other (`knn_inner_product`, nothing is built), the best of
all blocks are merged, and an IDSelector excludes ids. Its float32 sums depend on how many queries
share a call and on where a row lies, so it only nominates: the answer is the k best by (score, then
smaller id), the same for a query alone or among others, today or after a restart.

An approximate index takes the place of `_scan` for the rows that it holds; rows after those go on
being scanned.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np

from featkit.index.bounded_faiss import faiss, shared_processors

# Candidates beyond k that the first scan asks for, so that a tie at the k-th place rarely needs a
# second one.
SPARE = 16
QUERIES_AT_ONCE = 256


class Found(NamedTuple):
    """Hits of one query, best first: ids (n,) int64 and scores (n,) float32, n <= k."""

    ids: np.ndarray
    scores: np.ndarray


class Rows(Protocol):
    """N rows of D float32 that are read in blocks and by id (vectors.Rows, or an array in memory)."""

    num_rows: int
    width: int

    def blocks(self, num_queries: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first row, rows (n, D)) in order, in blocks for so many queries; all but the last
        of a multiple of 8 rows."""
        ...

    def take(self, ids: np.ndarray) -> np.ndarray:
        """Rows (n, D) by id."""
        ...


class ArrayRows:
    """Rows that are in memory, (N, D) float32, C-contiguous: one block, not copied."""

    def __init__(self, vectors: np.ndarray) -> None:
        assert vectors.flags.c_contiguous
        assert vectors.dtype == np.float32
        self.vectors = vectors
        self.num_rows, self.width = vectors.shape

    def blocks(self, _num_queries: int) -> Iterator[tuple[int, np.ndarray]]:
        yield 0, self.vectors

    def take(self, ids: np.ndarray) -> np.ndarray:
        return np.asarray(self.vectors[ids])


def exact_search(
    queries: np.ndarray, vectors: np.ndarray | Rows, *, k: int, allowed: np.ndarray
) -> list[Found]:
    """The k rows of largest inner product with each query, among those allowed; of equal scores the
    smaller id first.

    queries (Q, D) and vectors (N, D) float32, rows of unit length; an array of vectors is
    C-contiguous and not copied. allowed (N,) bool. Fewer than k hits where fewer are allowed.
    Raises what `vectors` raises when it is a file that cannot be read. As a plain loop over queries
    q and allowed ids i:

        sorted((-float32(sum(float64(q) * float64(vectors[i]))), i))[:k]
    """
    if k < 1:
        raise ValueError(f"k is {k}; at least 1 is wanted")
    rows = ArrayRows(vectors) if isinstance(vectors, np.ndarray) else vectors
    num_allowed = int(np.count_nonzero(allowed))
    bits = np.packbits(allowed, bitorder="little")
    queries = np.ascontiguousarray(queries, np.float32)
    found: list[Found] = []
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        found += _search(
            queries[start : start + QUERIES_AT_ONCE], rows, k=k, bits=bits, num_allowed=num_allowed
        )
    return found


def _search(
    queries: np.ndarray, rows: Rows, *, k: int, bits: np.ndarray, num_allowed: int
) -> list[Found]:
    """Scan, rank anew, and scan again with more candidates for those queries whose k-th place is
    not settled yet."""
    k = min(k, num_allowed)
    if k == 0:
        return [Found(np.zeros(0, np.int64), np.zeros(0, np.float32)) for _ in queries]
    found: dict[int, Found] = {}
    open_queries = np.arange(len(queries))
    num_candidates = min(k + SPARE, num_allowed)
    while len(open_queries):
        nominated, candidates = _scan(queries[open_queries], rows, k=num_candidates, bits=bits)
        for number, worst, ids in zip(
            open_queries.tolist(), nominated[:, -1], candidates, strict=True
        ):
            ranked = _rank(queries[number], rows, ids)
            # A row that FAISS left out scored at most `worst` there, and both sums may be off by a
            # rounding.
            if num_candidates == num_allowed or worst < ranked.scores[k - 1] - _rounding(
                rows.width
            ):
                found[number] = Found(ranked.ids[:k], ranked.scores[:k])
        open_queries = np.array(
            [number for number in open_queries.tolist() if number not in found], np.int64
        )
        num_candidates = min(4 * num_candidates, num_allowed)
    return [found[number] for number in range(len(queries))]


def _scan(
    queries: np.ndarray, rows: Rows, *, k: int, bits: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """FAISS's k best of each query, scores (Q, k) float32 and ids (Q, k) int64, among the rows
    whose bit is set."""
    best: tuple[np.ndarray, np.ndarray] | None = None
    with shared_processors():
        for start, block in rows.blocks(len(queries)):
            block_bits = bits[start // 8 : (start + len(block) + 7) // 8]
            if block_bits.any():
                scores, ids = _scan_block(queries, block, k=min(k, len(block)), bits=block_bits)
                best = _merged(best, scores, np.where(ids < 0, ids, ids + start), k=k)
    assert best is not None  # since at least k rows are allowed
    return best


def _scan_block(
    queries: np.ndarray, block: np.ndarray, *, k: int, bits: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """As `_scan` for rows in memory; the id is -1 where fewer than k rows are allowed."""
    scores = np.empty((len(queries), k), np.float32)
    ids = np.empty((len(queries), k), np.int64)
    selector = faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))
    faiss.knn_inner_product(
        faiss.swig_ptr(queries),
        faiss.swig_ptr(block),
        block.shape[1],
        len(queries),
        len(block),
        k,
        faiss.swig_ptr(scores),
        faiss.swig_ptr(ids),
        selector,
    )
    return scores, ids


def _merged(
    best: tuple[np.ndarray, np.ndarray] | None, scores: np.ndarray, ids: np.ndarray, *, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k best of each query so far and those of another block, best first; scores and ids (Q,
    k), or fewer.

    In numpy, since FAISS's own heaps start its threads for each block, which costs more than one
    query's scan.
    """
    if best is None:
        return scores, ids
    worst = best[0][:, -1] if best[0].shape[1] == k else np.full(len(scores), -np.inf, np.float32)
    better = np.flatnonzero(scores[:, 0] > worst)  # each block's scores are sorted
    if len(better) == 0:
        return best
    if best[0].shape[1] < k:
        better = np.arange(len(scores))
    all_scores = np.concatenate([best[0][better], scores[better]], axis=1)
    all_ids = np.concatenate([best[1][better], ids[better]], axis=1)
    order = np.argsort(-all_scores, axis=1, kind="stable")[:, :k]
    merged = np.take_along_axis(all_scores, order, 1), np.take_along_axis(all_ids, order, 1)
    if len(better) == len(scores):
        return merged
    best[0][better], best[1][better] = merged
    return best


def _rank(query: np.ndarray, rows: Rows, ids: np.ndarray) -> Found:
    """Candidates by exact score, then id. A row's score depends on nothing but the two vectors."""
    scores = np.einsum(
        "nd,d->n", rows.take(ids).astype(np.float64), query.astype(np.float64)
    ).astype(np.float32)
    order = np.lexsort((ids, -scores))
    return Found(ids[order], scores[order])


def _rounding(width: int) -> float:
    """How far a float32 inner product of unit vectors may be from the exact one, in any order of
    summation, twice over."""
    return 2 * width * float(np.finfo(np.float32).eps)
