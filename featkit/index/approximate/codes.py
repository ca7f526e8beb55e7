"""Short codes of vectors, and how they are searched: by a graph or by lists.

    n vectors, D width, Q queries, R candidates

The codes only nominate candidates; callers rank them by the vectors themselves. Vectors have length
1, so the nearest by Euclidean distance are those with the largest inner product. FAISS 1.15.1 and
later build the same graph with any number of threads, if the calls of `add` are the same.
"""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featkit.errors import InputError
from featkit.index.approximate.graph import (
    ENTRY_STEP,
    OTHERS_LINKS,
    Graph,
    VectorRows,
    add_linked,
    add_nodes,
    begin_graph,
    link_lost,
    make_entries,
)
from featkit.index.approximate.on_gpu import Gpu
from featkit.index.bounded_faiss import faiss, shared_processors
from featkit.paths import text_path

ROTATION_SEED = 0
GRAPH_BYTES = 148  # of a node's links, its level and its offset
NUM_TRAINED_ON = 50_000
TRAINED_ON_PER_LIST = 50
ROWS_PER_ADD = 50_000  # a part of the format: other parts give other bytes
LISTS_PER_ROOT = 4  # lists per square root of n


@dataclass(frozen=True)
class Kind:
    """One kind of codes and of their search.

    effort: what a search visits: the candidates that a graph's walk keeps (efSearch), or lists.
    efforts, candidates: what is tried when a search is tuned to a recall.
    """

    name: str
    about: str
    efforts: tuple[int, ...]
    candidates: tuple[int, ...]

    def bytes_per_row(self, width: int) -> int:
        """Return how many bytes of a file a vector takes."""
        if self is LISTS:
            return _parts(width) // 2 + 8
        code = width // 2 if self is FINE_GRAPH else width // 8 + 8
        return GRAPH_BYTES + code + (GRAPH_BYTES + width // 2) // ENTRY_STEP


EFS = (20, 24, 32, 40, 48, 56, 64, 80, 96, 128, 192, 256, 384, 512)
PROBES = (8, 16, 32, 64, 128, 256, 512, 1024, 2048)
FINE_GRAPH = Kind("graph-4", "a graph over 4-bit codes", EFS, (20, 40, 80))
COARSE_GRAPH = Kind("graph-1", "a graph over 1-bit codes", EFS, (40, 80, 160))
LISTS = Kind("lists", "lists of product codes", PROBES, (50, 100, 200))
KINDS = {kind.name: kind for kind in (FINE_GRAPH, COARSE_GRAPH, LISTS)}


class Codes:
    """Finished codes. Any number of threads may search them.

    entries: the small graph that belongs to a graph; None for lists.
    """

    def __init__(self, index: Any, entries: Any | None = None) -> None:
        self._index = index
        self._rotation = None
        self._graph = None
        if entries is not None:
            made: Any = faiss  # whose stubs lack these functions
            graph: Any = index
            if isinstance(graph, faiss.IndexPreTransform):
                self._rotation = made.downcast_VectorTransform(self._index.chain.at(0))
                graph = made.downcast_index(self._index.index)
            self._graph = Graph(graph, entries)

    @classmethod
    def open(cls, path: Path) -> Codes:
        """Read a file of codes into memory. InputError if it is not one.

        It is not mapped, since truncating a mapped file would kill the process.
        """
        made: Any = faiss
        try:
            with text_path(path) as text:
                reader = made.FileIOReader(text)
                index = made.read_index(reader)
                has_lists = isinstance(index, faiss.IndexIVF)
                return cls(index, None if has_lists else made.read_index(reader))
        except RuntimeError as error:
            raise InputError(
                f"{path} is damaged or missing; run `featkit compact` to build it again."
            ) from error

    def write(self, path: Path) -> None:
        """Write the file that `open` reads. OSError if that fails."""
        write_codes(path, self._index, *([] if self._graph is None else [self._graph.entries]))

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def search(
        self,
        queries: np.ndarray,
        *,
        num_candidates: int,
        effort: int,
        bits: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return the positions of R candidates for each query, (Q, R) int64, best first by code.

        -1 fills up if fewer were found. effort: see `Kind`. bits: a bitmap, lowest bit first, of
        the positions that may be found.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        # FAISS keeps pointers to the selector and its bitmap, which this frame keeps alive.
        selector = None
        if bits is not None:
            selector = faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))
        if self._graph is not None:
            rotated = queries if self._rotation is None else self._rotation.apply(queries)
            return self._graph.search(
                rotated,
                num=num_candidates,
                effort=effort,
                entry_queries=queries,
                selector=selector,
            )
        made: Any = faiss  # whose stubs lack this class
        parameters = made.SearchParametersIVF(nprobe=effort, sel=selector)
        with shared_processors():
            _, positions = self._index.search(queries, num_candidates, params=parameters)
        return np.asarray(positions)


def begin(kind: Kind, sample: np.ndarray, *, num_rows: int, gpu: Gpu | None = None) -> Any:
    """Return FAISS's index, trained on a sample (n, D) float32 and still empty."""
    width = sample.shape[1]
    with shared_processors():
        begun: Any = (
            faiss.index_factory(
                width, f"IVF{num_lists(num_rows)},PQ{_parts(width)}x4fs", faiss.METRIC_L2
            )
            if kind is LISTS
            else begin_graph(width)
        )
        with gpu.training(begun) if gpu is not None and kind is LISTS else nullcontext():
            begun.train(np.ascontiguousarray(sample, np.float32))
    return begun


def num_trained_on(kind: Kind, num_rows: int) -> int:
    """Return how many of `num_rows` vectors `begin` should be given."""
    wanted = NUM_TRAINED_ON
    if kind is LISTS:
        wanted = max(wanted, TRAINED_ON_PER_LIST * num_lists(num_rows))
    return min(wanted, num_rows)


def num_lists(num_rows: int) -> int:
    """Return into how many lists vectors are divided, at most one for each 39, as FAISS advises."""
    return max(1, min(LISTS_PER_ROOT * math.isqrt(num_rows), num_rows // 39))


def add(
    index: Any,
    batches: Iterable[np.ndarray],
    on_added: Callable[[Any], None] = lambda _index: None,
    *,
    gpu: Gpu | None = None,
) -> None:
    """Add vectors, each batch (n, D) float32. on_added: called with the index after each batch.

    With a GPU, a graph takes all vectors as one batch.
    """
    with shared_processors():
        for batch in batches:
            if isinstance(index, faiss.IndexIVF):
                with nullcontext() if gpu is None else gpu.assigning(index):
                    index.add(np.ascontiguousarray(batch, np.float32))
            elif gpu is not None:
                add_linked(index, batch, gpu.links(batch, OTHERS_LINKS))
            else:
                add_nodes(index, batch)
            on_added(index)


def finish(kind: Kind, index: Any, sample: np.ndarray, rows: VectorRows) -> Codes:
    """Return the codes that are written to the file.

    Nodes of a graph that were lost are linked, and 1-bit codes take the place of its 4-bit ones:
    RaBitQ's (arXiv 2405.12497) of randomly rotated vectors. sample: the vectors that `begin` was
    given. rows: returns the vectors (m, D) float32 at positions (m,) of those that `add` was given.
    """
    if kind is LISTS:
        return Codes(index)
    graph = Graph(index, make_entries(index, rows))
    link_lost(graph, rows)
    if kind is COARSE_GRAPH:
        return Codes(_with_bits(index, sample, rows), graph.entries)
    return Codes(index, graph.entries)


def _with_bits(index: Any, sample: np.ndarray, rows: VectorRows) -> Any:
    """Return a graph over 4-bit codes with 1-bit codes instead."""
    width = sample.shape[1]
    rotation = faiss.RandomRotationMatrix(width, width)
    rotation.init(ROTATION_SEED)
    storage: Any = faiss.IndexRaBitQ(width, faiss.METRIC_L2)
    with shared_processors():
        storage.train(rotation.apply(np.ascontiguousarray(sample, np.float32)))
        for start in range(0, index.ntotal, ROWS_PER_ADD):
            part = rows(np.arange(start, min(index.ntotal, start + ROWS_PER_ADD)))
            storage.add(rotation.apply(np.ascontiguousarray(part, np.float32)))
    # The graph frees its codes with itself: the old ones become Python's to free, the new ones its.
    before = index.storage
    index.storage = storage
    before.thisown, storage.thisown = True, False
    return faiss.IndexPreTransform(rotation, index)


def _parts(width: int) -> int:
    """Return into how many parts product codes divide a vector: two dimensions each if possible."""
    return width // 2 if width % 2 == 0 else width


def write_codes(path: Path, *indexes: Any) -> None:
    """Write FAISS's indexes to a file, one after another. OSError if that fails."""
    made: Any = faiss
    try:
        with text_path(path) as text:
            writer = made.FileIOWriter(text)
            for index in indexes:
                faiss.write_index(index, writer)
            del writer  # closes the file
    except RuntimeError as error:  # FAISS does not say why: the disk is full or the path is wrong
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error


def read_partial(path: Path) -> Any:
    """Read FAISS's index into memory, to continue it. RuntimeError if it is not one."""
    with text_path(path) as text:
        return faiss.read_index(text)
