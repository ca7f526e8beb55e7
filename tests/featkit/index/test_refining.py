"""Combined queries, expansion and diversity equal their formulas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featkit.errors import InputError
from featkit.index import Index, Refinement
from featkit.index.refining import combined, diverse, expanded
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


@pytest.mark.parametrize(
    "values",
    [
        {"min_score": float("nan")},
        {"expand": -1},
        {"expand": 1.5},
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
