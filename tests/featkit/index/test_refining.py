"""Combined queries, expansion and diversity equal their formulas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featkit.errors import InputError
from featkit.index import Index, Refinement
from featkit.index.refining import combined, diverse, expanded, reciprocal_distances
from tests.featkit.index.conftest import unit_vectors


def test_a_sum_of_queries_has_their_direction() -> None:
    vectors = unit_vectors(3)
    weights = [1.0, 0.5, -0.25]
    total = sum(w * v.astype(np.float64) for w, v in zip(weights, vectors, strict=True))
    np.testing.assert_allclose(combined(vectors, weights), total / np.linalg.norm(total), atol=1e-6)
    np.testing.assert_allclose(combined(vectors[:1], [7]), vectors[0], atol=1e-6)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ([1], "There are 1 weights for 2 queries"),
        ([1, float("nan")], "must be numbers"),
        ([0, 0], "cancel each other out"),
    ],
)
def test_queries_without_a_direction_are_refused(weights: list[float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        combined(unit_vectors(2), weights)
    same = np.repeat(unit_vectors(1), 2, axis=0)
    with pytest.raises(InputError, match="cancel"):
        combined(same, [1, -1])


def test_an_expanded_query_is_the_papers_sum() -> None:
    query, hits = unit_vectors(1)[0], unit_vectors(4, seed=1)
    scores = hits @ query
    total = query.astype(np.float64)
    for score, hit in zip(scores, hits, strict=True):
        total = total + max(float(score), 0.0) ** 3 * hit
    expected = total / np.linalg.norm(total)
    np.testing.assert_allclose(expanded(query, hits, scores), expected, atol=1e-6)


@given(
    count=st.integers(0, 12),
    k=st.integers(1, 14),
    diversity=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_diverse_hits_are_those_of_the_plain_loop(
    count: int, k: int, diversity: float, seed: int
) -> None:
    vectors = unit_vectors(count, seed=seed) if count else np.zeros((0, 16), np.float32)
    scores = np.random.default_rng(seed).uniform(-1, 1, count).astype(np.float32)
    wide = vectors.astype(np.float64)
    chosen: list[int] = []
    while len(chosen) < min(k, count):
        gains = {
            i: (1 - diversity) * float(scores[i])
            - diversity * max((wide[i] @ wide[j] for j in chosen), default=0.0)
            for i in range(count)
            if i not in chosen
        }
        chosen.append(max(gains, key=lambda i: (gains[i], -i)))
    assert diverse(scores, vectors, k=k, diversity=diversity).tolist() == chosen


def reciprocal_loop(points: np.ndarray) -> list[float]:
    """Return distances from the first point as the paper defines them, by plain loops."""
    count, k1, k2 = len(points), 20, 6
    squared = [[max(0.0, 2 - 2 * float(p @ q)) for q in points] for p in points]
    d = [[value / (max(row) or 1.0) for value in row] for row in squared]
    # itself first, even among equal ones
    order = [
        [p, *sorted({*range(count)} - {p}, key=lambda q: (row[q], q))] for p, row in enumerate(d)
    ]

    def near(p: int, k: int) -> set[int]:
        return {q for q in order[p][: k + 1] if p in order[q][: k + 1]}

    rows = []
    for p in range(count):
        shared = near(p, k1)
        for q in near(p, k1):
            candidates = near(q, k1 // 2)
            if len(candidates & near(p, k1)) > 2 / 3 * len(candidates):
                shared |= candidates
        weights = [np.exp(-d[p][q]) if q in shared else 0.0 for q in range(count)]
        rows.append([weight / sum(weights) for weight in weights])
    means = [np.mean([rows[q] for q in order[p][:k2]], axis=0) for p in range(count)]
    jaccard = [
        1 - sum(map(min, means[0], means[q])) / sum(map(max, means[0], means[q]))
        for q in range(1, count)
    ]
    return [0.7 * jaccard[q - 1] + 0.3 * d[0][q] for q in range(1, count)]


@given(count=st.integers(0, 70), spread=st.floats(0.05, 2), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_reciprocal_distances_are_those_of_the_plain_loop(
    count: int, spread: float, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    centers = generator.normal(size=(4, 8))
    points = centers[generator.integers(0, 4, count + 1)]
    points = points + spread * generator.normal(size=points.shape)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    found = reciprocal_distances(points[0], points[1:])
    np.testing.assert_allclose(found, reciprocal_loop(points), atol=1e-12)


def test_equal_vectors_have_equal_reciprocal_distances() -> None:
    same = np.repeat(unit_vectors(1), 30, axis=0)
    found = reciprocal_distances(same[0], same[1:])
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[:4], found[0])


def test_hits_that_share_neighbors_come_first(photos: Path) -> None:
    query, vectors = unit_vectors(1, seed=3)[0], unit_vectors(100)
    where = "key like '%7.jpg' or key like '%3.jpg' or key like '%1.jpg'"
    with Index.open(photos) as index:
        for k, filtered in ((10, None), (40, None), (10, where)):
            (pool,) = index.search(vectors=query[None], k=max(k, 30), where=filtered)
            ids = np.array([hit.id for hit in pool])
            first, rest = ids[:30], ids[30:]
            order = np.argsort(reciprocal_distances(query, vectors[first]), kind="stable")
            refine = Refinement(rerank=30)
            (hits,) = index.search(vectors=query[None], k=k, where=filtered, refine=refine)
            assert [hit.id for hit in hits] == [*first[order], *rest][:k]
            scores = {hit.id: hit.score for hit in pool}
            assert [hit.score for hit in hits] == pytest.approx([scores[hit.id] for hit in hits])
        least = float(np.sort([hit.score for hit in pool])[-15])
        refine = Refinement(rerank=30, min_score=least)
        (hits,) = index.search(vectors=query[None], k=10, where=where, refine=refine)
        assert len(hits) == 10
        assert min(hit.score for hit in hits) >= least


def test_expansion_does_not_depend_on_k(photos: Path) -> None:
    query = unit_vectors(1, seed=3)
    with Index.open(photos) as index:
        (few,) = index.search(vectors=query, k=1, refine=Refinement(expand=5))
        (many,) = index.search(vectors=query, k=20, refine=Refinement(expand=5))
    assert few == many[:1]


def test_reranked_and_diverse_is_refused() -> None:
    with pytest.raises(InputError, match="use one of them"):
        Refinement(rerank=100, diversity=0.5)


@pytest.mark.parametrize(
    "values",
    [
        {"min_score": float("nan")},
        {"expand": -1},
        {"expand": 1.5},
        {"rerank": -1},
        {"rerank": 1001},
        {"rerank": True},
        {"diversity": -0.1},
        {"diversity": 1.1},
    ],
)
def test_values_without_a_meaning_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="must be"):
        Refinement(**values)


def test_hits_below_the_least_score_are_left_out(photos: Path) -> None:
    query = unit_vectors(1, seed=3)
    with Index.open(photos) as index:
        (everything,) = index.search(vectors=query, k=100)
        least = everything[4].score
        (hits,) = index.search(vectors=query, k=100, refine=Refinement(min_score=least))
        assert hits == everything[:5]
        (none,) = index.search(vectors=query, refine=Refinement(min_score=1.1))
        assert none == []
        assert index.search(item=7, refine=Refinement(min_score=0.999))[0].id == 7


def test_an_expanded_search_orders_by_the_expanded_query(photos: Path) -> None:
    query, vectors = unit_vectors(1, seed=3)[0], unit_vectors(100)
    with Index.open(photos) as index:
        (plain,) = index.search(vectors=query[None], k=5)
        (hits,) = index.search(vectors=query[None], k=10, refine=Refinement(expand=5))
    first = [hit.id for hit in plain]
    moved = expanded(query, vectors[first], vectors[first] @ query)
    order = np.argsort(-(vectors.astype(np.float64) @ moved))[:10]
    assert [hit.id for hit in hits] == order.tolist()
    assert [hit.score for hit in hits] == pytest.approx((vectors[order] @ query).tolist(), abs=1e-6)


def test_diverse_hits_are_chosen_from_five_times_as_many(photos: Path) -> None:
    query, vectors = unit_vectors(1, seed=3)[0], unit_vectors(100)
    with Index.open(photos) as index:
        (pool,) = index.search(vectors=query[None], k=50)
        (hits,) = index.search(vectors=query[None], k=10, refine=Refinement(diversity=0.5))
    ids = np.array([hit.id for hit in pool])
    scores = np.array([hit.score for hit in pool], np.float32)
    chosen = ids[diverse(scores, vectors[ids], k=10, diversity=0.5)]
    assert [hit.id for hit in hits] == chosen.tolist()
    assert hits[0].id == pool[0].id
    assert [hit.id for hit in hits] != ids[:10].tolist()


def test_diverse_hits_reach_the_least_score(photos: Path) -> None:
    query = unit_vectors(1, seed=3)
    with Index.open(photos) as index:
        (everything,) = index.search(vectors=query, k=100)
        least = everything[19].score
        refine = Refinement(min_score=least, diversity=0.7)
        (hits,) = index.search(vectors=query, k=10, refine=refine)
    assert len(hits) == 10
    assert min(hit.score for hit in hits) >= least
