"""Short walks through a graph of many clumps find what they look for; FAISS's own descent is the
comparison."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from featkit.index.approximate import graph as graph_module
from featkit.index.approximate.graph import (
    ENTRY_STEP,
    LINKS,
    Graph,
    add_nodes,
    begin_graph,
    link_lost,
    make_entries,
)
from featkit.index.bounded_faiss import faiss

NUM_NODES, WIDTH, NUM_CLUMPS, NUM_QUERIES = 10_000, 24, 500, 300


def clumps(count: int, seed: int) -> np.ndarray:
    """Return unit vectors (count, WIDTH) float32 in many small clumps far from each other."""
    centers = np.random.default_rng(0).standard_normal((NUM_CLUMPS, WIDTH))
    rng = np.random.default_rng(seed)
    made = centers[rng.integers(0, NUM_CLUMPS, count)]
    made = made + 0.2 * rng.standard_normal((count, WIDTH))
    vectors: np.ndarray = (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)
    return vectors


VECTORS, QUERIES = clumps(NUM_NODES, 1), clumps(NUM_QUERIES, 2)


def rows(nodes: np.ndarray) -> np.ndarray:
    return np.asarray(VECTORS[nodes])


def built() -> Graph:
    index = begin_graph(WIDTH)
    index.train(VECTORS)
    add_nodes(index, VECTORS)
    return Graph(index, make_entries(index, rows))


def base_links(graph: Graph) -> np.ndarray:
    hnsw = graph.index.hnsw
    offsets = faiss.vector_to_array(hnsw.offsets).astype(np.int64)
    links = faiss.vector_to_array(hnsw.neighbors)
    return np.asarray(links[offsets[:-1, None] + np.arange(2 * LINKS)])


def recall(nodes: np.ndarray) -> float:
    scores = QUERIES @ VECTORS.T
    true = np.argsort(-scores, axis=1)[:, :10]
    return float(np.mean([np.isin(a, b).mean() for a, b in zip(true, nodes, strict=True)]))


def cut(graph: Graph, is_cut: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
    """Remove the links between nodes for which `is_cut` is true, at all levels."""
    hnsw = graph.index.hnsw
    offsets = faiss.vector_to_array(hnsw.offsets).astype(np.int64)
    levels = faiss.vector_to_array(hnsw.levels)
    per_level = [hnsw.nb_neighbors(level) for level in range(int(levels.max()))]
    links = faiss.rev_swig_ptr(hnsw.neighbors.data(), hnsw.neighbors.size())
    for node in range(NUM_NODES):
        start = offsets[node]
        for count in per_level[: levels[node]]:
            part = links[start : start + count]
            used = part[part >= 0]
            kept = used[~is_cut(np.full(len(used), node), used)]
            part[:] = np.concatenate([kept, np.full(count - len(kept), -1)])
            start += count


def test_walks_begin_on_the_right_side_of_a_gap() -> None:
    graph = built()
    side = VECTORS[:, 0] > 0
    cut(graph, lambda nodes, others: side[nodes] != side[others])
    parameters: Any = faiss
    _, plain = graph.index.search(QUERIES, 20, params=parameters.SearchParametersHNSW(efSearch=64))
    assert recall(plain) < 0.8
    assert recall(graph.search(QUERIES, num=20, effort=64)) > recall(plain) + 0.2


def test_lost_nodes_are_found_again() -> None:
    graph = built()
    lost = np.arange(7, NUM_NODES, 50)  # none of them is an entry
    is_lost = np.isin(np.arange(NUM_NODES), lost)
    is_lost[::ENTRY_STEP] = False
    cut(graph, lambda nodes, others: is_lost[nodes] | is_lost[others])

    def found() -> float:
        nodes = graph.search(VECTORS[is_lost], num=5, effort=32)
        return float((nodes == np.flatnonzero(is_lost)[:, None]).any(axis=1).mean())

    assert found() == 0
    assert link_lost(graph, rows) >= np.count_nonzero(is_lost)
    assert found() > 0.99


def test_entries_are_some_of_the_nodes() -> None:
    graph = built()
    every = np.arange(0, NUM_NODES, ENTRY_STEP)
    assert graph.entries.ntotal == len(every)
    for entry, node in enumerate(every.tolist()):
        np.testing.assert_array_equal(
            graph.entries.reconstruct(entry), graph.index.reconstruct(node)
        )


def test_lost_nodes_get_links_and_none_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = built()
    before = base_links(graph)
    monkeypatch.setattr(graph_module, "FEW_LINKS", 2 * LINKS)  # many nodes are lost then
    num_lost = link_lost(graph, rows)
    after = base_links(graph)
    assert num_lost == max(graph_module.ALWAYS_LINKED, int(graph_module.MOST_LOST * NUM_NODES))
    was_there = before >= 0
    np.testing.assert_array_equal(after[was_there], before[was_there])
    assert np.count_nonzero(after >= 0) > np.count_nonzero(was_there)
    for node, links in enumerate(after.tolist()):
        used = [link for link in links if link >= 0]
        assert node not in used
        assert len(set(used)) == len(used)
        assert all(0 <= link < NUM_NODES for link in used)
        assert links[: len(used)] == used  # FAISS reads up to the first gap


def test_links_do_not_depend_on_threads() -> None:
    made = []
    for threads in (1, 2):
        graph = built()
        faiss.omp_set_num_threads(threads)
        link_lost(graph, rows)
        made.append(base_links(graph))
    np.testing.assert_array_equal(made[0], made[1])


def test_only_allowed_nodes_are_found() -> None:
    graph = built()
    allowed = np.arange(NUM_NODES) % 3 == 0
    bits = np.packbits(allowed, bitorder="little")
    selector = faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))
    nodes = graph.search(QUERIES, num=10, effort=64, selector=selector)
    assert (nodes >= 0).all()
    assert allowed[nodes].all()


@pytest.mark.parametrize("count", [1, 2, 31, 33])
def test_few_nodes_are_all_found(count: int) -> None:
    index = begin_graph(WIDTH)
    index.train(VECTORS[:count])
    add_nodes(index, VECTORS[:count])
    graph = Graph(index, make_entries(index, rows))
    link_lost(graph, rows)
    nodes = graph.search(QUERIES[:3], num=count + 2, effort=16)
    assert [sorted(each) for each in nodes.tolist()] == [[-1, -1, *range(count)]] * 3
