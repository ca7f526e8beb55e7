"""A graph over vectors for approximate search: HNSW (arXiv 1603.09320) over 4-bit codes.

    n vectors, D width, Q queries, R candidates

The codes only nominate candidates; callers rank them by the vectors themselves. Vectors have length
1, so the nearest by Euclidean distance are those with the largest inner product. FAISS 1.15.1 and
later build the same bytes with any number of threads, if the calls of `add` are the same.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from featkit.errors import InputError
from featkit.index.bounded_faiss import faiss, shared_processors
from featkit.paths import text_path

LINKS = 16  # per node; twice that at the base
EF_CONSTRUCTION = 80
LEVEL_SEED = 0
CODES = "SQ4"  # half the bytes of links and codes together, compared with 8 bits
NUM_TRAINED_ON = 50_000
ROWS_PER_ADD = 50_000  # a part of the format: other parts give other bytes


class Graph:
    """A finished graph. Any number of threads may search it."""

    def __init__(self, index: Any) -> None:
        self._index = index

    @classmethod
    def open(cls, path: Path) -> Graph:
        """Read a graph's file into memory. InputError if it is not one.

        It is not mapped, since truncating a mapped file would kill the process.
        """
        try:
            with text_path(path) as text:
                return cls(faiss.read_index(text))
        except RuntimeError as error:
            raise InputError(
                f"{path} is damaged or missing; run `featkit compact` to build it again."
            ) from error

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def search(
        self, queries: np.ndarray, *, num_candidates: int, ef: int, bits: np.ndarray | None = None
    ) -> np.ndarray:
        """Return the positions of R candidates for each query, (Q, R) int64, best first by code.

        -1 fills up if fewer were found. ef: candidates that the search keeps (efSearch of HNSW).
        bits: a bitmap, lowest bit first, of the positions that may be found.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        # FAISS's stubs lack this class.
        parameters = faiss.SearchParametersHNSW(  # type: ignore[attr-defined]
            efSearch=max(ef, num_candidates)
        )
        if bits is not None:
            # The selector keeps a pointer to the bitmap, which this frame keeps alive.
            selector = faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))
            parameters.sel = selector
        with shared_processors():
            _, positions = self._index.search(queries, num_candidates, params=parameters)
        return np.asarray(positions)


def build(
    sample: np.ndarray | None,
    batches: Iterator[np.ndarray],
    *,
    width: int,
    graph: Any | None = None,
    on_added: Callable[[Any], None] = lambda _graph: None,
) -> Any:
    """Return FAISS's index of the vectors in `batches`, each (n, D) float32, trained on a sample.

    graph: one that was begun earlier, to be continued instead; it needs no sample. on_added: called
    with the index after each batch.
    """
    with shared_processors():
        if graph is None:
            assert sample is not None
            begun: Any = faiss.index_factory(width, f"HNSW{LINKS},{CODES}", faiss.METRIC_L2)
            graph = begun
            graph.train(np.ascontiguousarray(sample, np.float32))
        graph.hnsw.efConstruction = EF_CONSTRUCTION
        for batch in batches:
            # Given for all vectors, they do not depend on what this process has drawn before.
            levels = _levels(graph.ntotal + len(batch))
            faiss.copy_array_to_vector(levels, graph.hnsw.levels)
            graph.add(np.ascontiguousarray(batch, np.float32))
            on_added(graph)
    return graph


def _levels(count: int) -> np.ndarray:
    """Return the number of levels of each node, (count,) int32: 1 plus a geometric number, with
    the probabilities of the paper (4, line 4: mL = 1 / ln M).
    """
    uniform = 1.0 - np.random.default_rng(LEVEL_SEED).random(count)  # above 0
    levels: np.ndarray = 1 + np.floor(-np.log(uniform) / np.log(LINKS))
    return levels.astype(np.int32)


def write_graph(graph: Any, path: Path) -> None:
    """Write FAISS's index as a file. OSError if that fails."""
    try:
        with text_path(path) as text:
            faiss.write_index(graph, text)
    except RuntimeError as error:  # FAISS does not say why: the disk is full or the path is wrong
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error


def read_partial(path: Path) -> Any:
    """Read FAISS's index into memory, to continue it. RuntimeError if it is not one."""
    with text_path(path) as text:
        return faiss.read_index(text)
