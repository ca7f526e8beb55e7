"""Exact search equals a plain sort."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featkit.index.exact import exact_search
from featkit.index.searcher import Neighbors
from featkit.index.stored_rows import FileRows
from featkit.index.vectors import VectorFile
from tests.featkit.index.conftest import unit_vectors


def brute_force(
    query: np.ndarray, vectors: np.ndarray, *, k: int, allowed: np.ndarray
) -> list[tuple[float, int]]:
    """Return (minus score, id) of the k best rows by the docstring's loop."""
    scored = [
        (
            -float(
                np.float32(np.sum(query.astype(np.float64) * vectors[number].astype(np.float64)))
            ),
            number,
        )
        for number in np.flatnonzero(allowed).tolist()
    ]
    return sorted(scored)[:k]


def pairs(found: Neighbors) -> list[tuple[float, int]]:
    return [
        (-score, number)
        for number, score in zip(found.ids.tolist(), found.scores.tolist(), strict=True)
    ]


@settings(max_examples=60, deadline=None)
@given(
    num_rows=st.integers(1, 300),
    num_directions=st.integers(1, 300),
    num_queries=st.integers(1, 40),
    k=st.integers(1, 320),
    share=st.sampled_from([0.0, 0.02, 0.1, 0.5, 1.0]),
    seed=st.integers(0, 1000),
)
def test_search_equals_a_plain_sort_even_with_ties(
    num_rows: int, num_directions: int, num_queries: int, k: int, share: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    directions = np.eye(8, dtype=np.float32)[rng.integers(0, 8, num_directions)] * rng.choice(
        [-1, 1], (num_directions, 1)
    )
    vectors = directions[rng.integers(0, num_directions, num_rows)].astype(np.float32)
    vectors[rng.random(num_rows) < 0.3] = unit_vectors(1, seed=seed, width=8)
    allowed = rng.random(num_rows) < share
    queries = np.concatenate([unit_vectors(num_queries, seed=seed + 1, width=8), vectors[:1]])
    found = exact_search(queries, vectors, k=k, allowed=allowed)
    assert len(found) == len(queries)
    for query, one in zip(queries, found, strict=True):
        wanted = brute_force(query, vectors, k=k, allowed=allowed)
        assert one.ids.tolist() == [number for _, number in wanted]
        np.testing.assert_allclose(one.scores, [-score for score, _ in wanted], rtol=0, atol=1e-7)


def test_ties_of_far_more_than_k_rows_are_sorted_by_id() -> None:
    vectors = np.repeat(unit_vectors(1), 5000, axis=0)
    (found,) = exact_search(unit_vectors(1), vectors, k=3, allowed=np.ones(5000, bool))
    assert found.ids.tolist() == [0, 1, 2]


def test_an_answer_does_not_depend_on_the_other_queries() -> None:
    vectors, queries = unit_vectors(3000, width=384), unit_vectors(64, seed=1, width=384)
    allowed = np.ones(3000, bool)
    together = exact_search(queries, vectors, k=20, allowed=allowed)
    for query, one in zip(queries, together, strict=True):
        (alone,) = exact_search(query[None], vectors, k=20, allowed=allowed)
        assert pairs(alone) == pairs(one)


def test_excluded_rows_are_never_found() -> None:
    vectors = unit_vectors(200)
    allowed = np.ones(200, bool)
    allowed[7] = False
    (found,) = exact_search(vectors[7:8], vectors, k=200, allowed=allowed)
    assert sorted(found.ids.tolist()) == np.flatnonzero(allowed).tolist()


@pytest.mark.parametrize("held", [False, True])
def test_few_allowed_rows_of_a_file_are_found_exactly(tmp_path: Path, held: bool) -> None:
    vectors = unit_vectors(40_000, width=24)
    (tmp_path / "vectors.f32").write_bytes(vectors.tobytes())
    rows = FileRows(VectorFile(tmp_path / "vectors.f32", width=24), len(vectors))
    queries = unit_vectors(5, seed=1, width=24)
    if held:
        for _ in range(2):
            exact_search(queries, rows, k=1, allowed=np.ones(len(vectors), bool))
    allowed = np.zeros(len(vectors), bool)
    # more than a block of rows, spread over the file
    allowed[np.random.default_rng(0).choice(len(vectors), 3500, replace=False)] = True
    for query, one in zip(queries, exact_search(queries, rows, k=50, allowed=allowed), strict=True):
        wanted = brute_force(query, vectors, k=50, allowed=allowed)
        assert one.ids.tolist() == [number for _, number in wanted]


def test_no_allowed_rows_give_no_hits() -> None:
    (found,) = exact_search(
        unit_vectors(1), np.zeros((0, 16), np.float32), k=5, allowed=np.zeros(0, bool)
    )
    assert pairs(found) == []
    with pytest.raises(ValueError, match="k is 0"):
        exact_search(unit_vectors(1), unit_vectors(3), k=0, allowed=np.ones(3, bool))
