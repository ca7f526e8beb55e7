"""Indexes of other libraries to compare with: FAISS HNSW32,SQ8 and usearch, in this environment.

    N vectors, D width, Q queries

Each is tuned to its own smallest efSearch that reaches a recall, by the queries themselves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from featkit.index.approximate.tuning import Truth, lower_end, recalls
from featkit.index.bounded_faiss import faiss
from featkit.index.searcher import Neighbors
from tests.benchmarks.made_up_index import all_vectors

K, TARGET = 10, 0.95
EFS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768)
FAISS, USEARCH = "FAISS HNSW32,SQ8", "usearch i8"
REFINED = f"{FAISS}, re-ranked"
REFINED_PER_HIT = 4  # candidates of the codes that are ranked by their vectors

Search: TypeAlias = Callable[[np.ndarray], list[Neighbors]]


class Answer(NamedTuple):
    """The nearest of each query, and the seconds that the search took."""

    nearest: list[Neighbors]
    seconds: float


Ask: TypeAlias = Callable[[np.ndarray], Answer]


class Opened(NamedTuple):
    """An index that is ready to be searched, its bytes, and how it is searched."""

    ask: Ask
    num_bytes: int
    facts: dict[str, object]


def timed(search: Search) -> Ask:
    """Return the same search, with the seconds of each call."""

    def ask(queries: np.ndarray) -> Answer:
        started = time.perf_counter()
        nearest = search(queries)
        return Answer(nearest, time.perf_counter() - started)

    return ask


def build_faiss(index: Path, file: Path) -> None:
    """Build the graph that others build: twice the links, codes of 8 bits."""
    vectors = all_vectors(index)
    built: Any = faiss.index_factory(vectors.shape[1], "HNSW32,SQ8", faiss.METRIC_INNER_PRODUCT)
    built.train(vectors[:: max(1, len(vectors) // 50_000)])
    built.add(vectors)
    faiss.write_index(built, str(file))


def build_usearch(index: Path, file: Path) -> None:
    """Build usearch's graph over codes of 8 bits."""
    from usearch.index import Index as Usearch

    vectors = all_vectors(index)
    built = Usearch(
        ndim=vectors.shape[1], metric="cos", dtype="i8", connectivity=16, expansion_add=128
    )
    built.add(np.arange(len(vectors)), vectors)
    built.save(str(file))


def open_faiss(file: Path, truth: Truth, vectors: np.ndarray) -> Opened:
    """Open what `build_faiss` wrote, tuned to the target."""
    built: Any = faiss.read_index(str(file))

    def with_effort(ef: int) -> Search:
        parameters = faiss.SearchParametersHNSW(efSearch=ef)  # type: ignore[attr-defined]

        def search(queries: np.ndarray) -> list[Neighbors]:
            scores, ids = built.search(queries, K, params=parameters)
            return [Neighbors(*row) for row in zip(ids, scores, strict=True)]

        return search

    return _tuned(with_effort, file, truth, vectors)


def open_refined(file: Path, truth: Truth, vectors: np.ndarray) -> Opened:
    """Open what `build_faiss` wrote with its best candidates ranked by their vectors, tuned."""
    made: Any = faiss
    built = made.read_index(str(file))
    refined = made.IndexRefineFlat(built, faiss.swig_ptr(vectors))

    def with_effort(ef: int) -> Search:
        walk = made.SearchParametersHNSW(efSearch=max(ef, REFINED_PER_HIT * K))
        parameters = made.IndexRefineSearchParameters(
            k_factor=REFINED_PER_HIT, base_index_params=walk
        )

        def search(queries: np.ndarray) -> list[Neighbors]:
            scores, ids = refined.search(queries, K, params=parameters)
            return [Neighbors(*row) for row in zip(ids, scores, strict=True)]

        return search

    return _tuned(with_effort, file, truth, vectors)


def open_usearch(file: Path, truth: Truth, vectors: np.ndarray) -> Opened:
    """Open what `build_usearch` wrote, tuned to the target."""
    from usearch.index import Index as Usearch

    built: Any = Usearch(ndim=vectors.shape[1], metric="cos", dtype="i8")
    built.load(str(file))

    def with_effort(ef: int) -> Search:
        def search(queries: np.ndarray) -> list[Neighbors]:
            built.expansion_search = ef
            found = built.search(queries, K)
            keys = np.atleast_2d(found.keys)
            distances = np.atleast_2d(found.distances)
            return [
                Neighbors(ids.astype(np.int64), 1 - each)
                for ids, each in zip(keys, distances, strict=True)
            ]

        return search

    return _tuned(with_effort, file, truth, vectors)


def _tuned(
    with_effort: Callable[[int], Search], file: Path, truth: Truth, vectors: np.ndarray
) -> Opened:
    """Use the smallest efSearch that reaches the target, or the largest if none does."""
    for ef in EFS:
        search = with_effort(ef)
        found = rescored(search(truth.queries), truth.queries, vectors)
        if lower_end(recalls(found, truth, k=K)) >= TARGET:
            break
    return Opened(timed(search), file.stat().st_size, {"effort": ef})


def rescored(
    found: Sequence[Neighbors], queries: np.ndarray, vectors: np.ndarray
) -> list[Neighbors]:
    """Return the same ids with exact scores, since codes give approximate ones."""
    exact = []
    for each, query in zip(found, queries, strict=True):
        ids = each.ids[each.ids >= 0]
        # as exact search computes them: rounding must not count as a miss
        scores = np.einsum("nd,d->n", vectors[ids].astype(np.float64), query.astype(np.float64))
        exact.append(Neighbors(ids, scores.astype(np.float32)))
    return exact
