"""Blockwise comparison keeps exactly the neighbors that a plain loop keeps."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from featkit.duplicates import nearest as module
from featkit.duplicates.nearest import (
    Bounds,
    Nearest,
    Side,
    compare_by_codes,
    compare_exactly,
    expected_seconds,
)
from featkit.index.exact import ExactSearcher
from featkit.index.some_rows import ArrayRows
from tests.featkit.index.conftest import unit_vectors

BOUNDS = Bounds(candidate=0.1, copy=0.6, few=3, most=6)
Kept = list[list[tuple[int, float]]]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("PANEL", 16), ("TILE", 10), ("SLICE", 5), ("QUERIES_AT_ONCE", 9)):
        monkeypatch.setattr(module, name, value)


def vectors(count: int, seed: int = 0) -> np.ndarray:
    """Vectors of which many are near others, and some are equal."""
    made = unit_vectors(count, seed=seed)
    near = made[: count // 2] + 0.3 * made[count // 2 : count // 2 * 2]
    near[: count // 8] = made[0]
    made[count // 2 : count // 2 * 2] = near
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    return made.astype(np.float32)


def side_of(rows: np.ndarray) -> Side:
    """All rows but each fifth one."""
    return Side(ArrayRows(rows), np.flatnonzero(np.arange(len(rows)) % 5))


def plain_loop(own: np.ndarray, others: np.ndarray, *, is_self: bool) -> Kept:
    kept = []
    for i, vector in enumerate(own):
        scored = sorted(
            (-round(float(vector @ other), 4), j)
            for j, other in enumerate(others)
            if not (is_self and i == j)
        )
        kept.append(
            [
                (j, -score)
                for place, (score, j) in enumerate(scored[: BOUNDS.most])
                if -score >= (BOUNDS.candidate if place < BOUNDS.few else BOUNDS.copy)
            ]
        )
    return kept


def kept_by(found: Nearest) -> Kept:
    return [
        [
            (int(position), round(float(score), 4))
            for position, score in zip(positions, scores, strict=True)
            if position >= 0
        ]
        for positions, scores in zip(found.positions, found.scores, strict=True)
    ]


def exhaust(steps: Iterator[tuple[int, float]]) -> list[tuple[int, float]]:
    return list(steps)


@pytest.mark.parametrize("count", [1, 9, 10, 40, 83])
@pytest.mark.parametrize("is_self", [True, False])
def test_exact_comparison_equals_a_plain_loop(count: int, is_self: bool) -> None:
    side = side_of(vectors(count))
    other = None if is_self else side_of(vectors(57, seed=1))
    found = Nearest(len(side), BOUNDS)
    steps = exhaust(compare_exactly(found, side, other))
    own, others = side.take(0, count), (other or side).take(0, 100)
    expected = plain_loop(own, others, is_self=is_self)
    scores = [[score for _, score in row] for row in kept_by(found)]
    assert scores == [pytest.approx([s for _, s in row], abs=2e-4) for row in expected]
    for row, each in enumerate(kept_by(found)):
        for position, score in each:
            assert float(own[row] @ others[position]) == pytest.approx(score, abs=2e-4)
        assert len({position for position, _ in each}) == len(each)
    assert not steps or steps[-1] == (len(side), 1)


@pytest.mark.parametrize("is_self", [True, False])
def test_search_finds_what_exact_comparison_finds(is_self: bool) -> None:
    side = side_of(vectors(83))
    other = side if is_self else side_of(vectors(57, seed=1))
    exact, searched = Nearest(len(side), BOUNDS), Nearest(len(side), BOUNDS)
    exhaust(compare_exactly(exact, side, None if is_self else other))
    allowed = np.ones(other.rows.num_rows, bool)  # more than those of `other`
    exhaust(compare_by_codes(searched, side, other, ExactSearcher(), allowed, is_self=is_self))
    for first, second in zip(kept_by(exact), kept_by(searched), strict=True):
        scores = [[score for _, score in each] for each in (first, second)]
        assert scores[0] == pytest.approx(scores[1], abs=2e-4)


def test_a_stopped_comparison_continues_from_any_panel() -> None:
    side = side_of(vectors(83))
    whole = Nearest(len(side), BOUNDS)
    panels = exhaust(compare_exactly(whole, side, None))
    assert len(panels) == 5
    for stop in range(len(panels)):
        begun = Nearest(len(side), BOUNDS)
        steps = compare_exactly(begun, side, None)
        for _ in range(stop + 1):
            done, _share = next(steps)
        continued = Nearest(len(side), BOUNDS)
        continued.restore(begun.to_arrays())
        exhaust(compare_exactly(continued, side, None, first=done))
        assert kept_by(continued) == kept_by(whole)
        assert (continued.least == whole.least).all()


def test_equal_vectors_beyond_the_most_are_bounded() -> None:
    same = np.repeat(unit_vectors(1), 200, axis=0)
    side = Side(ArrayRows(same), np.arange(200))
    found = Nearest(200, BOUNDS)
    exhaust(compare_exactly(found, side, None))
    assert {len(row) for row in kept_by(found)} == {BOUNDS.most}
    rows, positions = found.pairs()
    assert not (rows == positions).any()


def test_the_expected_time_grows_with_the_pairs() -> None:
    side = side_of(vectors(83))
    assert expected_seconds(side, None) > 0
    assert expected_seconds(side, side) > 0
