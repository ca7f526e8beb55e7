"""Scans in float32, which nominate candidates.

    Q queries, n rows of a block, D width

FAISS scans one block of rows after another (`knn_inner_product`, without building anything), and
the best of all blocks are merged. Its float32 sums depend on how many queries share a call and on
the position of a row, so callers compute the scores of candidates again.

Few queries and filtered rows of many are multiplied by numpy, since FAISS is slow there. Its BLAS
has threads of its own, which keep a processor busy for milliseconds after their work and so slow
down a search by FAISS that follows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from featkit.index.bounded_faiss import faiss, shared_processors
from featkit.index.searcher import Rows
from featkit.index.some_rows import ArrayRows, ChosenRows
from featkit.index.stored_rows import FEW_QUERIES

PIECE = 1024  # scattered rows that one thread scans
MULTIPLIED_AT_ONCE = 4096  # rows whose products with these queries are in memory; a multiple of 8


def scan(
    queries: np.ndarray, rows: Rows, *, k: int, bits: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the k best rows by float32 for each query among the rows whose bit is set.

    bits: a bitmap, lowest bit first; at least k are set. Scores (Q, k) float32, best first, and ids
    (Q, k) int64.
    """
    if len(queries) < FEW_QUERIES and isinstance(rows, ArrayRows | ChosenRows):
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
            is_all = _are_all_set(block_bits, len(block))
            if is_all or len(queries) < FEW_QUERIES:
                scores, ids = _scan_block(
                    queries, block, k=num, bits=None if is_all else block_bits
                )
            else:
                is_full = best is not None and best[0].shape[1] == k
                least = best[0][:, -1] if best is not None and is_full else None
                scores, ids = _multiply_block(queries, block, k=num, bits=block_bits, least=least)
            best = _merged(best, scores, np.where(ids < 0, ids, ids + start), k=k)
    assert best is not None  # at least k rows are allowed
    return best


def _are_all_set(bits: np.ndarray, count: int) -> bool:
    """Return whether the first `count` bits are set, of bytes whose other bits are not."""
    return bool((bits[: count // 8] == 255).all()) and (
        count % 8 == 0 or int(bits[-1]) == 2 ** (count % 8) - 1
    )


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
    """Return the k largest products of each row, (Q, k) float32, best first, and their columns.

    A column whose bit is not set counts as -inf, and its number is -1. Changes products.
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
    queries: np.ndarray, block: np.ndarray, *, k: int, bits: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Scan one block by FAISS; ids are -1 where fewer than k of its rows are allowed.

    bits: the rows that are allowed; None for all, which is faster for many queries.
    """
    scores = np.empty((len(queries), k), np.float32)
    ids = np.empty((len(queries), k), np.int64)
    selector = None if bits is None else faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))
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
    """Scan some rows of one block for many queries by a matrix product, which FAISS's scan with a
    selector is not; it takes half the time or less.

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
