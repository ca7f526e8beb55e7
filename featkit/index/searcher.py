"""Exact search over one committed state of an index, by FAISS, on the memory map itself.

Deleted ids are excluded inside the search by an ID selector, so that k live items come back wherever there are k.
"""

from __future__ import annotations

from dataclasses import dataclass

import faiss
import numpy as np


@dataclass(frozen=True)
class Snapshot:
    """One committed state: rows (n, D) float32, and the sorted ids of deleted ones among them."""

    rows: np.ndarray
    deleted: np.ndarray

    @property
    def num_live(self) -> int:
        """Items that can be found."""
        return len(self.rows) - len(self.deleted)


def search_exact(snapshot: Snapshot, queries: np.ndarray, *, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k live rows of highest inner product for each query.

    queries (q, D) float32. Returns scores (q, k') float32 and ids (q, k') int64, best first, k' = min(k, live items).
    Reads the rows where they are mapped: no copy of the index is made.
    """
    k = min(k, snapshot.num_live)
    queries = np.ascontiguousarray(queries, np.float32)
    scores = np.empty((len(queries), k), np.float32)
    ids = np.empty((len(queries), k), np.int64)
    if k == 0 or len(queries) == 0:
        return scores, ids
    live = np.ones(len(snapshot.rows), bool)
    live[snapshot.deleted] = False
    bitmap = np.packbits(live, bitorder="little")
    selector = faiss.IDSelectorBitmap(len(live), faiss.swig_ptr(bitmap)) if len(snapshot.deleted) else None
    faiss.knn_inner_product(
        faiss.swig_ptr(queries),
        faiss.swig_ptr(snapshot.rows),
        queries.shape[1],
        len(queries),
        len(snapshot.rows),
        k,
        faiss.swig_ptr(scores),
        faiss.swig_ptr(ids),
        selector,
    )
    return scores, ids
