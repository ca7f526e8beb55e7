"""Searches by codes find what exact search does, with filters, deletions and later items."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featkit.index import Hit, Index
from featkit.index.approximate import building, searching
from featkit.index.approximate.searching import CodesSearcher, ranked
from featkit.index.searcher import Neighbors
from featkit.index.some_rows import ArrayRows
from tests.featkit.index.approximate.conftest import NUM_ITEMS, WIDTH, clumped


def searcher_of(index: Index) -> CodesSearcher:
    searcher = index.read(lambda state: state.vectors.searcher)
    assert isinstance(searcher, CodesSearcher)
    return searcher


def brute_force(
    query: np.ndarray, vectors: np.ndarray, allowed: np.ndarray, k: int
) -> list[tuple[int, float]]:
    scores = vectors.astype(np.float64) @ query.astype(np.float64)
    ids = sorted(np.flatnonzero(allowed).tolist(), key=lambda i: (-scores[i], i))[:k]
    return [(i, scores[i]) for i in ids]


def recall(
    hits: list[list[Hit]], queries: np.ndarray, vectors: np.ndarray, allowed: np.ndarray
) -> float:
    found = []
    for each, query in zip(hits, queries, strict=True):
        true = brute_force(query, vectors, allowed, len(each))
        if true:
            found.append(len({hit.id for hit in each} & {i for i, _ in true}) / len(true))
    return float(np.mean(found or [1.0]))


def test_a_graph_finds_what_exact_search_finds(index: Path) -> None:
    queries = clumped(200, seed=1)
    with Index.open(index) as opened:
        hits = opened.search(vectors=queries, k=10)
        assert recall(hits, queries, clumped(NUM_ITEMS), np.ones(NUM_ITEMS, bool)) >= 0.95
        for each, query in zip(hits, queries, strict=True):
            scores = [hit.score for hit in each]
            assert scores == sorted(scores, reverse=True)
            for hit in each:
                score = float(clumped(NUM_ITEMS)[hit.id].astype(np.float64) @ query)
                assert hit.score == pytest.approx(score, abs=1e-6)


@pytest.mark.parametrize("least", [0, 2, 30, 300, 1500, 2700, 2990, 2999, 3000])
@pytest.mark.parametrize("k", [1, 10, 50])
@pytest.mark.parametrize("always_walks", [False, True])
def test_filters_give_as_many_hits_as_match(
    index: Path, least: int, k: int, always_walks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if always_walks:  # else what costs less, as measured
        monkeypatch.setattr(
            CodesSearcher, "_scanning_costs_less", lambda _self, num, _more: num < k
        )
    queries = clumped(40, seed=2)
    allowed = np.arange(NUM_ITEMS) >= least
    with Index.open(index) as opened:
        hits = opened.search(vectors=queries, k=k, where=f"number >= {least}")
    assert {len(each) for each in hits} == {min(k, NUM_ITEMS - least)}
    assert all(hit.id >= least for each in hits for hit in each)
    assert recall(hits, queries, clumped(NUM_ITEMS), allowed) >= 0.95


def pretend(searcher: CodesSearcher, *, p50_ms: float, exact_ns: float) -> None:
    """Let a search choose as if these times had been measured, whatever else runs here."""
    record = searcher.generation.record
    measured = replace(record.measured, p50_ms=p50_ms, exact_ns=exact_ns)
    searcher.generation.record = replace(record, measured=measured)


def nearest(index: Index, query: np.ndarray, where: str) -> Neighbors:
    return index.read(lambda state: state.nearest(query[None], k=10, where=where))[0]


@pytest.mark.parametrize("scan_ns", [20_000.0, 1e7])
def test_a_filter_against_the_query_is_answered_well(index: Path, scan_ns: float) -> None:
    """The allowed rows are far from the query: what the graph passes on its way is not enough.
    They are scanned if that is fast, and else found by a wide walk."""
    vectors = clumped(NUM_ITEMS)
    centers = np.random.default_rng(99).standard_normal((40, WIDTH))
    clump = (vectors @ centers.T).argmax(axis=1)
    queries = vectors[[np.flatnonzero(clump == label)[0] for label in range(20)]]
    exact = 0
    with Index.open(index) as opened:
        pretend(searcher_of(opened), p50_ms=10.0, exact_ns=scan_ns)
        for label, query in enumerate(queries):
            allowed = clump != label
            keys = ", ".join(str(i) for i in np.flatnonzero(~allowed))
            where = f"number not in ({keys})"
            (hits,) = opened.search(vectors=query[None], k=10, where=where)
            assert recall([hits], query[None], vectors, allowed) >= 0.9
            exact += nearest(opened, query, where).is_exact
    assert exact == (20 if scan_ns < 1e6 else 0)


def test_few_allowed_rows_are_searched_exactly(index: Path) -> None:
    query = clumped(1, seed=3)
    with Index.open(index) as opened:
        searcher = searcher_of(opened)
        pretend(searcher, p50_ms=1.0, exact_ns=10_000.0)

        def search(where: str | None) -> bool:
            return opened.read(
                lambda state: (
                    searcher.search(query, state.vectors.rows, k=5, allowed=state._allowed(where))[
                        0
                    ].is_exact
                )
            )

        assert not search(None)
        assert search("number < 5")
        assert search("number < 0")


def test_removed_items_are_never_found(index: Path) -> None:
    queries = clumped(50, seed=4)
    with Index.open(index, writable=True) as opened:
        opened.remove(where="label = 'l1'")
        hits = opened.search(vectors=queries, k=20)
        allowed = np.arange(NUM_ITEMS) % 3 != 1
        assert all(allowed[hit.id] for each in hits for hit in each)
        assert recall(hits, queries, clumped(NUM_ITEMS), allowed) >= 0.95


def test_items_added_later_are_found_at_once(index: Path) -> None:
    new = clumped(20, seed=5)
    with Index.open(index) as reader, Index.open(index, writable=True) as writer:
        ids = writer.add([f"new{i}.jpg" for i in range(20)], new)
        hits = reader.search(vectors=new, k=1)
        assert [each[0].id for each in hits] == ids
        assert [each[0].score for each in hits] == pytest.approx([1.0] * 20, abs=1e-6)


def test_more_hits_than_codes_can_give_are_exact(index: Path) -> None:
    query = clumped(1, seed=6)
    with Index.open(index) as opened:
        (hits,) = opened.search(vectors=query, k=NUM_ITEMS + 10)
    true = brute_force(query[0], clumped(NUM_ITEMS), np.ones(NUM_ITEMS, bool), NUM_ITEMS)
    assert [hit.id for hit in hits] == [i for i, _ in true]


def test_equal_vectors_beyond_a_nodes_links_are_found(tmp_path: Path, model: Path) -> None:
    vectors = clumped(1000)
    vectors[200:400] = vectors[200]
    with Index.create(tmp_path / "i", model=model) as made:
        made.add([str(i) for i in range(1000)], vectors)
        building.compact(made, allow_low_recall=True)
        (hits,) = made.search(vectors=vectors[200:201], k=50)
    assert len(hits) == 50
    assert {hit.score for hit in hits} == {hits[0].score}
    assert hits[0].score == pytest.approx(1, abs=1e-6)


@given(
    num_queries=st.integers(1, 5),
    num_candidates=st.integers(1, 40),
    k=st.integers(1, 15),
    seed=st.integers(0, 1000),
)
def test_candidates_are_ranked_as_one_query_at_a_time(
    num_queries: int, num_candidates: int, k: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    vectors = clumped(60, width=48)
    vectors[20:40] = vectors[30]  # equal scores
    coded_ids = np.sort(rng.choice(60, 40, replace=False))
    queries = clumped(num_queries, seed=seed, width=48)
    positions = np.stack(
        [rng.choice(40, num_candidates, replace=False) for _ in range(num_queries)]
    )
    positions[rng.random(positions.shape) < 0.2] = -1
    found = ranked(queries, ArrayRows(vectors), coded_ids, positions, k=k)
    for query, each, ids in zip(queries, found, positions, strict=True):
        candidates = coded_ids[ids[ids >= 0]]
        wide = vectors[candidates].astype(np.float64)
        scores = np.einsum("nd,d->n", wide, query.astype(np.float64)).astype(np.float32)
        order = np.lexsort((candidates, -scores))[:k]
        assert each.ids.tolist() == candidates[order].tolist()
        assert each.scores.tobytes() == scores[order].tobytes()


@pytest.mark.parametrize("num_equal", [0, 1, 8, 60])
@pytest.mark.parametrize("are_kept", [True, False])
def test_later_items_are_ranked_among_the_others(
    index: Path, monkeypatch: pytest.MonkeyPatch, num_equal: int, are_kept: bool
) -> None:
    if not are_kept:
        monkeypatch.setattr(searching, "MAX_OUTSIDE_BYTES", 0)
    queries, new = clumped(30, seed=5), clumped(200, seed=6)
    new[100 : 100 + num_equal] = queries[0]
    vectors = np.concatenate([clumped(NUM_ITEMS), new])
    with Index.open(index, writable=True) as opened:
        opened.add([f"new{i}.jpg" for i in range(len(new))], new)
        hits = opened.search(vectors=queries, k=7)
    everything = np.ones(len(vectors), bool)
    assert recall(hits, queries, vectors, everything) >= 0.95
    for each, query in zip(hits, queries, strict=True):
        true = [i for i, _ in brute_force(query, vectors, everything, 7) if i >= NUM_ITEMS]
        assert [hit.id for hit in each if hit.id >= NUM_ITEMS][: len(true)] == true


def test_one_opened_generation_serves_all_states(index: Path) -> None:
    with Index.open(index) as reader, Index.open(index, writable=True) as writer:
        first = searcher_of(reader).generation
        writer.add(["x.jpg"], clumped(1, seed=7))
        assert searcher_of(reader).generation is first
