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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featkit.errors import InputError
from featkit.index.bounded_faiss import faiss, shared_processors
from featkit.paths import text_path

LINKS = 16  # per node of a graph; twice that at the base
EF_CONSTRUCTION = 80
LEVEL_SEED = ROTATION_SEED = 0
# All graphs are built on these codes: a graph that is built on 1-bit codes is poorer.
BUILT_ON = "SQ4"
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
        return GRAPH_BYTES + code


EFS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
PROBES = (8, 16, 32, 64, 128, 256, 512, 1024, 2048)
FINE_GRAPH = Kind("graph-4", "a graph over 4-bit codes", EFS, (20, 40, 80))
COARSE_GRAPH = Kind("graph-1", "a graph over 1-bit codes", EFS, (40, 80, 160))
LISTS = Kind("lists", "lists of product codes", PROBES, (50, 100, 200))
KINDS = {kind.name: kind for kind in (FINE_GRAPH, COARSE_GRAPH, LISTS)}


class Codes:
    """Finished codes. Any number of threads may search them."""

    def __init__(self, index: Any) -> None:
        self._index = index
        self._is_rotated = isinstance(index, faiss.IndexPreTransform)
        inner = faiss.downcast_index(index.index) if self._is_rotated else index
        self._has_lists = isinstance(inner, faiss.IndexIVF)

    @classmethod
    def open(cls, path: Path) -> Codes:
        """Read a file of codes into memory. InputError if it is not one.

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
        made: Any = faiss  # whose stubs lack these classes
        if self._has_lists:
            parameters = made.SearchParametersIVF(nprobe=effort, sel=selector)
        else:
            kept = max(effort, num_candidates)
            parameters = made.SearchParametersHNSW(efSearch=kept, sel=selector)
        if self._is_rotated:
            parameters = made.SearchParametersPreTransform(index_params=parameters)
        with shared_processors():
            _, positions = self._index.search(queries, num_candidates, params=parameters)
        return np.asarray(positions)


def begin(kind: Kind, sample: np.ndarray, *, num_rows: int) -> Any:
    """Return FAISS's index, trained on a sample (n, D) float32 and still empty."""
    width = sample.shape[1]
    factory = f"HNSW{LINKS},{BUILT_ON}"
    if kind is LISTS:
        factory = f"IVF{num_lists(num_rows)},PQ{_parts(width)}x4fs"
    with shared_processors():
        begun: Any = faiss.index_factory(width, factory, faiss.METRIC_L2)
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
    index: Any, batches: Iterable[np.ndarray], on_added: Callable[[Any], None] = lambda _index: None
) -> None:
    """Add vectors, each batch (n, D) float32. on_added: called with the index after each batch."""
    with shared_processors():
        is_graph = not isinstance(index, faiss.IndexIVF)
        if is_graph:
            index.hnsw.efConstruction = EF_CONSTRUCTION
        for batch in batches:
            if is_graph:
                # Given for all vectors, they do not depend on what this process has drawn before.
                levels = _levels(index.ntotal + len(batch))
                faiss.copy_array_to_vector(levels, index.hnsw.levels)
            index.add(np.ascontiguousarray(batch, np.float32))
            on_added(index)


def finish(kind: Kind, index: Any, sample: np.ndarray, batches: Iterable[np.ndarray]) -> Any:
    """Return what is written to the file: for 1-bit codes, the graph over these codes instead.

    The codes are RaBitQ's (arXiv 2405.12497) of randomly rotated vectors. sample, batches: the
    vectors that `begin` and `add` were given.
    """
    if kind is not COARSE_GRAPH:
        return index
    width = sample.shape[1]
    rotation = faiss.RandomRotationMatrix(width, width)
    rotation.init(ROTATION_SEED)
    storage: Any = faiss.IndexRaBitQ(width, faiss.METRIC_L2)
    with shared_processors():
        storage.train(rotation.apply(np.ascontiguousarray(sample, np.float32)))
        for batch in batches:
            storage.add(rotation.apply(np.ascontiguousarray(batch, np.float32)))
    # The graph frees its codes with itself: the old ones become Python's to free, the new ones its.
    before = index.storage
    index.storage = storage
    before.thisown, storage.thisown = True, False
    return faiss.IndexPreTransform(rotation, index)


def _parts(width: int) -> int:
    """Return into how many parts product codes divide a vector: two dimensions each if possible."""
    return width // 2 if width % 2 == 0 else width


def _levels(count: int) -> np.ndarray:
    """Return the number of levels of each node, (count,) int32: 1 plus a geometric number, with
    the probabilities of the paper (HNSW, arXiv 1603.09320, algorithm 1, line 4: mL = 1 / ln M).
    """
    uniform = 1.0 - np.random.default_rng(LEVEL_SEED).random(count)  # above 0
    levels: np.ndarray = 1 + np.floor(-np.log(uniform) / np.log(LINKS))
    return levels.astype(np.int32)


def write_codes(index: Any, path: Path) -> None:
    """Write FAISS's index as a file. OSError if that fails."""
    try:
        with text_path(path) as text:
            faiss.write_index(index, text)
    except RuntimeError as error:  # FAISS does not say why: the disk is full or the path is wrong
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error


def read_partial(path: Path) -> Any:
    """Read FAISS's index into memory, to continue it. RuntimeError if it is not one."""
    with text_path(path) as text:
        return faiss.read_index(text)
