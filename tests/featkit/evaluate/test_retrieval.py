"""Promises of the retrieval figures: ranks, ties, recall, average precision and bootstrap
intervals, against plain loops."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from featkit.evaluate import retrieval
from featkit.evaluate.retrieval import (
    Places,
    average_precision,
    bootstrap_interval,
    find_places,
    recall_at_k,
    unit_rows,
)

# Vectors of few small whole numbers: many of their cosines are equal, and the others clearly
# different.
ROWS = st.integers(1, 7).flatmap(
    lambda count: arrays(np.int64, (count, 3), elements=st.integers(-2, 2))
)


def loop_of_places(
    queries: np.ndarray, gallery: np.ndarray, right: np.ndarray
) -> list[tuple[int, int]]:
    """(better, tied) of each query, one item at a time in float64."""
    places = []
    for query, wanted in zip(queries.astype(np.float64), right, strict=True):
        scores = [math.fsum(query * item) for item in gallery.astype(np.float64)]
        better = sum(score > scores[wanted] + 1e-6 for score in scores)
        places.append((better, sum(abs(score - scores[wanted]) <= 1e-6 for score in scores)))
    return places


@given(gallery=ROWS, queries=ROWS, data=st.data())
@settings(max_examples=60, deadline=None)
def test_places_equal_the_loop_with_ties_and_zeros(
    gallery: np.ndarray, queries: np.ndarray, data: st.DataObject
) -> None:
    right = data.draw(arrays(np.int64, len(queries), elements=st.integers(0, len(gallery) - 1)))
    query_rows, gallery_rows = unit_rows(queries), unit_rows(gallery)
    places = find_places(query_rows, gallery_rows, right)
    assert list(zip(places.better, places.tied, strict=True)) == loop_of_places(
        query_rows, gallery_rows, right
    )
    assert len(places) == len(queries)


@pytest.mark.parametrize("side", ["QUERY_BLOCK", "GALLERY_BLOCK"])
def test_ranks_do_not_depend_on_the_blocks(side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    gallery = unit_rows(rng.integers(-2, 3, (50, 4)))
    queries, right = unit_rows(rng.integers(-2, 3, (20, 4))), rng.integers(0, 50, 20)
    whole = find_places(queries, gallery, right)
    for block in (1, 7, 50):
        monkeypatch.setattr(retrieval, side, block)
        cut = find_places(queries, gallery, right)
        np.testing.assert_array_equal(cut.better, whole.better)
        np.testing.assert_array_equal(cut.tied, whole.tied)


def test_ranking_memory_does_not_grow_with_q_times_g() -> None:
    rows = unit_rows(np.random.default_rng(2).standard_normal((12_000, 2)))
    tracemalloc.start()
    try:
        find_places(rows, rows, np.arange(len(rows)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    block_bytes = retrieval.QUERY_BLOCK * retrieval.GALLERY_BLOCK * 4
    # 67 MB; all queries against one block of the gallery are 197 MB of scores
    assert peak < 4 * block_bytes


def test_rows_kept_small_become_vectors_a_block_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "QUERY_BLOCK", 7)
    monkeypatch.setattr(retrieval, "GALLERY_BLOCK", 9)
    rng = np.random.default_rng(3)
    gallery, queries = (
        rng.integers(0, 256, (50, 4), dtype=np.uint8),
        rng.integers(0, 256, (20, 4), dtype=np.uint8),
    )
    right, sizes = rng.integers(0, 50, 20), []

    def to_vectors(rows: np.ndarray) -> np.ndarray:
        assert rows.dtype == np.uint8
        sizes.append(len(rows))
        return unit_rows(rows)

    found = find_places(queries, gallery, right, to_vectors=to_vectors)
    expected = find_places(unit_rows(queries), unit_rows(gallery), right)
    np.testing.assert_array_equal(found.better, expected.better)
    np.testing.assert_array_equal(found.tied, expected.tied)
    assert max(sizes) == 9


@given(
    places=st.lists(st.tuples(st.integers(0, 12), st.integers(1, 6)), min_size=1, max_size=6),
    k=st.integers(1, 15),
)
@settings(max_examples=60, deadline=None)
def test_recall_and_ap_average_over_orders_of_ties(places: list[tuple[int, int]], k: int) -> None:
    found = Places(
        np.array([better for better, _ in places]), np.array([tied for _, tied in places])
    )
    ranks = [[better + 1 + place for place in range(tied)] for better, tied in places]
    recall = [sum(rank <= k for rank in possible) / len(possible) for possible in ranks]
    precision = [sum(1 / rank for rank in possible) / len(possible) for possible in ranks]
    np.testing.assert_allclose(recall_at_k(found, k), recall, rtol=1e-12)
    np.testing.assert_allclose(average_precision(found), precision, rtol=1e-12)


def test_figures_of_ranks_without_ties_can_be_checked_by_hand() -> None:
    places = Places(np.array([0, 1, 4]), np.array([1, 1, 1]))
    assert recall_at_k(places, 1).tolist() == [1, 0, 0]
    assert recall_at_k(places, 2).tolist() == [1, 1, 0]
    assert average_precision(places).tolist() == pytest.approx([1, 1 / 2, 1 / 5])


def test_a_model_that_tells_nothing_apart_scores_chance() -> None:
    gallery = unit_rows(np.ones((8, 5)))
    places = find_places(gallery, gallery, np.arange(8))
    assert recall_at_k(places, 1).tolist() == [1 / 8] * 8
    assert recall_at_k(places, 2).tolist() == [2 / 8] * 8
    assert recall_at_k(places, 10).tolist() == [1.0] * 8


def test_a_permuted_gallery_changes_nothing() -> None:
    rng = np.random.default_rng(1)
    gallery, queries = (
        unit_rows(rng.integers(-2, 3, (30, 3))),
        unit_rows(rng.integers(-2, 3, (30, 3))),
    )
    order = rng.permutation(30)
    here, there = (
        find_places(queries, gallery, np.arange(30)),
        find_places(queries, gallery[order], np.argsort(order)),
    )
    np.testing.assert_array_equal(here.better, there.better)
    np.testing.assert_array_equal(here.tied, there.tied)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(bad: float) -> None:
    gallery = unit_rows(np.eye(3))
    spoilt = gallery.copy()
    spoilt[1, 1] = bad
    for queries, items in ((spoilt, gallery), (gallery, spoilt)):
        with pytest.raises(ValueError, match="finite"):
            find_places(queries, items, np.arange(3))


def test_unit_rows_have_length_1_or_0() -> None:
    rows = unit_rows(np.array([[3.0, 4.0], [0.0, 0.0], [-5.0, 0.0]]))
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0.0, 0.0], [-1.0, 0.0]], rtol=1e-6)


def loop_of_bootstrap(
    values: np.ndarray, *, seed: int, num_resamples: int, level: float
) -> tuple[float, float]:
    """The docstring's loop, with its quantiles by the sorted means."""
    rng = np.random.default_rng(seed)
    count = len(values)
    means = sorted(
        float(np.mean(values[rng.integers(0, count, count)])) for _ in range(num_resamples)
    )

    def quantile(share: float) -> float:
        place = share * (num_resamples - 1)
        below = math.floor(place)
        return means[below] + (place - below) * (
            means[min(below + 1, num_resamples - 1)] - means[below]
        )

    return quantile((1 - level) / 2), quantile((1 + level) / 2)


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_bootstrap_equals_its_loop_and_holds_the_mean(level: float) -> None:
    values = np.random.default_rng(2).random((25, 4))
    interval = bootstrap_interval(values, seed=3, num_resamples=200, level=level)
    assert interval == pytest.approx(
        loop_of_bootstrap(values, seed=3, num_resamples=200, level=level), rel=1e-12
    )
    assert interval[0] < values.mean() < interval[1]


def test_the_bootstrap_draws_whole_images() -> None:
    # All queries of an image share its fate: four times the queries are no more evidence.
    fates = np.repeat([0.0, 1.0], 20)
    alone = bootstrap_interval(fates)
    assert bootstrap_interval(np.repeat(fates[:, None], 4, axis=1)) == pytest.approx(alone)
    low, high = bootstrap_interval(np.repeat(fates, 4))
    assert high - low < 0.7 * (alone[1] - alone[0])


def test_the_bootstrap_of_equal_values_is_their_value() -> None:
    assert bootstrap_interval(np.full((5, 4), 0.75)) == (0.75, 0.75)
