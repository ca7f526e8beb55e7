"""Exact search: a scan in float32 finds candidates, and their scores are recomputed in float64.

    Q queries, N rows, D width, k requested hits

FAISS scans one block of rows after another (`knn_inner_product`, without building anything); the
best of all blocks are merged, and an IDSelector excludes ids. Its float32 sums depend on how many
queries share a call and on the position of a row, so FAISS only nominates candidates. The answer is
the k best by (score, then smaller id): the same for a query alone or among others, today or after a
restart.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from featkit.index.bounded_faiss import faiss, shared_processors
from featkit.index.searcher import Neighbors, Rows
from featkit.index.vectors import FEW_QUERIES

# Candidates beyond k in the first scan, so that a tie at rank k rarely needs a second scan.
SPARE = 16
RANKED_AT_ONCE = 32  # queries whose candidates' vectors are in memory at once
QUERIES_AT_ONCE = 256
PIECE = 1024  # scattered rows that one thread scans
MULTIPLIED_AT_ONCE = 4096  # rows whose products with these queries are in memory; a multiple of 8
# If at most this share of the rows is allowed, they are gathered instead of scanning all.
FEW_SHARE = 0.1


class ExactSearcher:
    """Compare each query with every row."""

    def search(
        self, queries: np.ndarray, rows: Rows, *, k: int, allowed: np.ndarray
    ) -> list[Neighbors]:
        """Return what `exact_search` does."""
        return exact_search(queries, rows, k=k, allowed=allowed)


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
        scores, candidates = _scan(queries[unsettled], rows, k=num_candidates, bits=bits)
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


def _scan(
    queries: np.ndarray, rows: Rows, *, k: int, bits: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the k best rows by float32 for each query among the rows whose bit is set.

    Scores (Q, k) float32, best first, and ids (Q, k) int64.
    """
    if len(queries) < FEW_QUERIES and isinstance(rows, ChosenRows):
        scattered = rows.scattered()
        if scattered is not None:
            return _best(few_products(queries, *scattered), k=k, bits=bits)
    best: tuple[np.ndarray, np.ndarray] | None = None
    with shared_processors():
        for start, block in _blocks(rows, len(queries)):
            block_bits = bits[start // 8 : (start + len(block) + 7) // 8]
            if not block_bits.any():
                continue
            num = min(k, len(block))
            if len(queries) < FEW_QUERIES:
                scores, ids = _scan_block(queries, block, k=num, bits=block_bits)
            else:
                is_full = best is not None and best[0].shape[1] == k
                least = best[0][:, -1] if best is not None and is_full else None
                scores, ids = _multiply_block(queries, block, k=num, bits=block_bits, least=least)
            best = _merged(best, scores, np.where(ids < 0, ids, ids + start), k=k)
    assert best is not None  # at least k rows are allowed
    return best


def _blocks(rows: Rows, num_queries: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the blocks of rows, in smaller ones if products with many queries are to be kept."""
    for start, block in rows.blocks(num_queries):
        step = len(block) if num_queries < FEW_QUERIES else MULTIPLIED_AT_ONCE
        for first in range(0, len(block), max(1, step)):
            yield start + first, block[first : first + step]


def few_products(queries: np.ndarray, vectors: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return the products of few queries (Q, D) with rows of an array, (Q, n) float32.

    The rows are those at the places (n,), n > 0, and are not copied. For few queries this is faster
    than a matrix product, whose threads and FAISS's would wait for each other's processors. FAISS
    divides queries among processors, so each piece of the rows gets a copy of its query.
    """
    made: Any = faiss  # whose stubs lack the function
    num_pieces = -(-len(places) // PIECE)
    pieces = np.full(num_pieces * PIECE, places[-1], np.int64)
    pieces[: len(places)] = places
    products = np.empty((len(queries), len(pieces)), np.float32)
    with shared_processors(num_pieces):
        for query, row in zip(queries, products, strict=True):
            repeated = np.repeat(query[None], num_pieces, axis=0)
            made.fvec_inner_products_by_idx(
                faiss.swig_ptr(row),
                faiss.swig_ptr(repeated),
                faiss.swig_ptr(vectors),
                faiss.swig_ptr(pieces),
                vectors.shape[1],
                num_pieces,
                PIECE,
            )
    return products[:, : len(places)]


def _best(products: np.ndarray, *, k: int, bits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the k largest of each row, (Q, k) float32, best first, and where they are.

    A column whose bit is not set counts as -inf, and -1 stands for where it is. Changes products.
    """
    width = products.shape[1]
    allowed = np.unpackbits(bits, count=width, bitorder="little").astype(bool)
    if not allowed.all():
        products[:, ~allowed] = -np.inf
    best = np.argpartition(products, width - k, axis=1)[:, width - k :]
    found = np.take_along_axis(products, best, 1)
    order = np.argsort(-found, axis=1, kind="stable")
    scores, ids = np.take_along_axis(found, order, 1), np.take_along_axis(best, order, 1)
    ids[scores == -np.inf] = -1
    return scores, ids


def _scan_block(
    queries: np.ndarray, block: np.ndarray, *, k: int, bits: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Scan one block by FAISS; ids are -1 where fewer than k of its rows are allowed."""
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


def _multiply_block(
    queries: np.ndarray, block: np.ndarray, *, k: int, bits: np.ndarray, least: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Scan one block for many queries by a matrix product, which FAISS's scan with a selector is
    not; it takes half the time or less.

    least: (Q,), scores that rows of this block must exceed to matter. ids are -1, and scores -inf,
    where fewer than k rows are allowed or matter.
    """
    products = queries @ block.T
    if least is None:
        return _best(products, k=k, bits=bits)
    scores = np.full((len(queries), k), -np.inf, np.float32)
    ids = np.full((len(queries), k), -1, np.int64)
    some = np.flatnonzero(products.max(axis=1) > least)
    if len(some):
        scores[some], ids[some] = _best(products[some], k=k, bits=bits)
    return scores, ids


def _merged(
    best: tuple[np.ndarray, np.ndarray] | None, scores: np.ndarray, ids: np.ndarray, *, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Merge the k best rows of each query so far with those of another block, best first.

    Scores and ids are (Q, k), or narrower while there are fewer rows.
    """
    # In numpy: FAISS's own heaps start its threads for each block, which costs more than scanning
    # the block for one query.
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
