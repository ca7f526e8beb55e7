"""Begin walks through a graph at good nodes, and link nodes that nothing leads to.

    n nodes, D width, Q queries, R hits

HNSW begins a walk where a descent through sparse levels ends, which follows only the nearest
neighbor. Among many clumps of vectors that can be the wrong clump, and a short walk does not leave
it: the query then finds none of its nearest. Inserting walks in the same way, and links some
vectors to strangers only. So walks begin at the best nodes that a small graph of every 32nd vector
finds, and nodes with few links get more at the end of a build.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from featkit.index.bounded_faiss import faiss, shared_processors

LINKS = 16  # per node; twice that at the base
EF_CONSTRUCTION = 64
# All graphs are built on these codes: a graph that is built on 1-bit codes is poorer.
BUILT_ON = "SQ4"
LEVEL_SEED = 0

ENTRY_STEP = 32  # a part of the format
NUM_ENTRIES, ENTRY_EFFORT = 4, 48

FEW_LINKS, FEW_LINKED_FROM = 10, 5  # a node with fewer is lost
MOST_LOST, ALWAYS_LINKED = 0.05, 1000  # share and number of the nodes that are linked at most
LOST_EFFORT, LOST_ENTRY_EFFORT = 128, 96
LINKED_BACK = 16
# Links per node that are asked of another builder; the rest is room for those of lost nodes, which
# connect what only its own neighbors lead to.
OTHERS_LINKS = 2 * LINKS - 4
ROWS_AT_ONCE = 50_000

VectorRows = Callable[[np.ndarray], np.ndarray]


class Graph:
    """A graph, and the small one that finds where to begin. Any number of threads may search it.

    index: FAISS's IndexHNSW. entries: another, of every ENTRY_STEP-th of its vectors.
    """

    def __init__(self, index: Any, entries: Any) -> None:
        self.index, self.entries = index, entries

    def search(
        self,
        queries: np.ndarray,
        *,
        num: int,
        effort: int,
        entry_queries: np.ndarray | None = None,
        entry_effort: int = ENTRY_EFFORT,
        selector: Any = None,
    ) -> np.ndarray:
        """Return the R = num nearest nodes of each query, (Q, R) int64, -1 for none.

        queries: (Q, D) float32, C-contiguous. entry_queries: the same for `entries`, if the graph's
        vectors are rotated. effort, entry_effort: efSearch. selector: FAISS's, of allowed nodes.
        """
        made: Any = faiss  # whose stubs lack these classes
        begin = made.SearchParametersHNSW(efSearch=max(NUM_ENTRIES, entry_effort))
        walk = made.SearchParametersHNSW(efSearch=max(effort, num), sel=selector)
        scores = np.empty((len(queries), num), np.float32)
        nodes = np.full((len(queries), num), -1, np.int64)
        with shared_processors(len(queries)):
            distances, entries = self.entries.search(
                queries if entry_queries is None else entry_queries, NUM_ENTRIES, params=begin
            )
            starts = np.where(entries >= 0, entries * ENTRY_STEP, -1).astype(np.int32)
            from_all_starts = 2
            self.index.search_level_0(
                len(queries),
                faiss.swig_ptr(queries),
                num,
                faiss.swig_ptr(starts),
                faiss.swig_ptr(distances),
                faiss.swig_ptr(scores),
                faiss.swig_ptr(nodes),
                NUM_ENTRIES,
                from_all_starts,
                walk,
            )
        return nodes


def begin_graph(width: int) -> Any:
    """Return an empty graph over 4-bit codes, to be trained."""
    return faiss.index_factory(width, f"HNSW{LINKS},{BUILT_ON}", faiss.METRIC_L2)


def add_nodes(index: Any, vectors: np.ndarray) -> None:
    """Add vectors (m, D) float32 to a graph. The caller has bounded FAISS's threads."""
    index.hnsw.efConstruction = EF_CONSTRUCTION
    # Given for all vectors, levels do not depend on what this process has drawn before.
    faiss.copy_array_to_vector(_levels(index.ntotal + len(vectors)), index.hnsw.levels)
    index.add(np.ascontiguousarray(vectors, np.float32))


def add_linked(index: Any, vectors: np.ndarray, links: np.ndarray) -> None:
    """Add vectors (n, D) float32 to an empty graph, with links of the base level found elsewhere.

    links: (n, d) integers, d at most 2 * LINKS. Left out are links to the node itself, second links
    to the same node, and numbers outside of 0 .. n - 1. There are no other levels, since walks do
    not begin there. The caller has bounded FAISS's threads.
    """
    hnsw, base, count = index.hnsw, 2 * LINKS, len(vectors)
    faiss.copy_array_to_vector(np.ones(count, np.int32), hnsw.levels)
    hnsw.prepare_level_tab(count, True)  # of these levels; all links are -1
    kept = faiss.rev_swig_ptr(hnsw.neighbors.data(), hnsw.neighbors.size()).reshape(count, base)
    made: Any = faiss
    storage = made.downcast_index(index.storage)
    for start in range(0, count, ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        storage.add(np.ascontiguousarray(vectors[part], np.float32))
        kept[part, : links.shape[1]] = _tidy(links[part], start, count)
    index.ntotal, hnsw.entry_point, hnsw.max_level = count, 0, 0


def _tidy(links: np.ndarray, start: int, count: int) -> np.ndarray:
    """Return links (m, d) of nodes from `start` on in the same order, those left out as -1 behind
    them, since FAISS reads up to the first -1."""
    nodes = np.arange(start, start + len(links))[:, None]
    is_kept = (links >= 0) & (links < count) & (links != nodes)
    order = np.argsort(links, axis=1, kind="stable")
    in_order = np.take_along_axis(links, order, axis=1)
    is_again = np.zeros_like(is_kept)
    is_again[:, 1:] = in_order[:, 1:] == in_order[:, :-1]
    is_kept &= ~np.take_along_axis(is_again, np.argsort(order, axis=1), axis=1)
    order = np.argsort(~is_kept, axis=1, kind="stable")
    tidied: np.ndarray = np.take_along_axis(np.where(is_kept, links, -1), order, axis=1)
    return tidied


def make_entries(index: Any, rows: VectorRows) -> Any:
    """Return the small graph for a graph over 4-bit codes.

    rows: returns the vectors (m, D) float32 of nodes (m,).
    """
    entries = begin_graph(index.d)
    codes: Any = faiss
    codes.downcast_index(entries.storage).sq = codes.downcast_index(index.storage).sq
    entries.storage.is_trained = entries.is_trained = True
    with shared_processors():
        nodes = np.arange(0, index.ntotal, ENTRY_STEP)
        for start in range(0, len(nodes), ROWS_AT_ONCE):
            add_nodes(entries, rows(nodes[start : start + ROWS_AT_ONCE]))
    return entries


def link_lost(graph: Graph, rows: VectorRows) -> int:
    """Link nodes that have few links, or that few others link to, and return how many there were.

    rows: returns the vectors (m, D) float32 of nodes (m,). A link is only ever added, in the order
    of the nodes, so the result does not depend on the number of threads.
    """
    hnsw, base = graph.index.hnsw, 2 * LINKS
    offsets = faiss.vector_to_array(hnsw.offsets).astype(np.int64)
    links = faiss.rev_swig_ptr(hnsw.neighbors.data(), hnsw.neighbors.size())
    count = graph.index.ntotal
    num_links, num_from = np.zeros(count, np.int64), np.zeros(count, np.int64)
    for start in range(0, count, ROWS_AT_ONCE):
        block = links[offsets[start : min(count, start + ROWS_AT_ONCE), None] + np.arange(base)]
        num_links[start : start + len(block)] = np.count_nonzero(block >= 0, axis=1)
        num_from += np.bincount(block[block >= 0], minlength=count)
    lost = np.flatnonzero((num_links < FEW_LINKS) | (num_from < FEW_LINKED_FROM))
    most = max(ALWAYS_LINKED, int(MOST_LOST * count))
    lost = np.sort(lost[np.argsort((num_links + num_from)[lost], kind="stable")[:most]])

    def link(node: int, other: int) -> None:
        """Add a link if there is room."""
        begin, used = offsets[node], num_links[node]
        if used < base and other not in links[begin : begin + used]:
            links[begin + used] = other
            num_links[node] += 1

    for start in range(0, len(lost), ROWS_AT_ONCE):
        nodes = lost[start : start + ROWS_AT_ONCE]
        nearest = graph.search(
            np.ascontiguousarray(rows(nodes), np.float32),
            num=base + 1,
            effort=LOST_EFFORT,
            entry_effort=LOST_ENTRY_EFFORT,
        )
        for node, near in zip(nodes.tolist(), nearest.tolist(), strict=True):
            others = [other for other in near if other not in (-1, node)]
            for other in others:
                link(node, other)
            for other in others[:LINKED_BACK]:
                link(other, node)
    return len(lost)


def _levels(count: int) -> np.ndarray:
    """Return the number of levels of each node, (count,) int32: 1 plus a geometric number, with
    the probabilities of the paper (HNSW, arXiv 1603.09320, algorithm 1, line 4: mL = 1 / ln M).
    """
    uniform = 1.0 - np.random.default_rng(LEVEL_SEED).random(count)  # above 0
    levels: np.ndarray = 1 + np.floor(-np.log(uniform) / np.log(LINKS))
    return levels.astype(np.int32)
