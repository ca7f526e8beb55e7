"""Promises of retrieval by groups: equal to the mean over every order of the tied, and to numbers
checked by hand."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featkit.embedder import Embedder
from featkit.evaluate import groups
from featkit.evaluate.groups import RECALL_AT, chance, evaluate_groups, find_groups, num_right
from featkit.evaluate.retrieval import unit_rows
from featkit.sources import open_source
from tests.featkit.evaluate.labeled import write_kinds_folder, write_kinds_parquet, write_kinds_tar
from tests.sentences import refused


def figures_of(ranking: tuple[bool, ...]) -> list[float]:
    """Average precision and recall at each k of one order: which of the images, best first, are
    right."""
    precisions = [
        sum(ranking[: place + 1]) / (place + 1) for place, right in enumerate(ranking) if right
    ]
    return [sum(precisions) / len(precisions), *(float(any(ranking[:k])) for k in RECALL_AT)]


def loop_of_figures(scores: list[int], right: list[bool]) -> list[float]:
    """The mean over all orders in which better scores stand first."""
    orders = [
        order
        for order in itertools.permutations(range(len(scores)))
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
    ]
    return list(
        np.mean([figures_of(tuple(right[place] for place in order)) for order in orders], axis=0)
    )


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_figures_are_means_over_the_orders_of_the_tied(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 6))
    scores = data.draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
    right = data.draw(st.lists(st.booleans(), min_size=count, max_size=count).filter(any))
    # Cosines are 0, 1/4, 2/4, 3/4 with the query (1, 0).
    cosines = np.array(scores) / 4
    gallery = np.stack([cosines, np.sqrt(1 - cosines**2)], axis=1).astype(np.float32)
    found = find_groups(
        np.array([[1.0, 0.0]], np.float32), gallery, np.array([1]), np.array(right, np.int64)
    )
    expected = loop_of_figures(scores, right)
    np.testing.assert_allclose([*found[0], *found[1][0]], expected, rtol=1e-9)


def test_figures_without_ties_can_be_checked_by_hand() -> None:
    # Ranked right, wrong, right: precisions 1 and 2/3.
    gallery = unit_rows(np.array([[1.0, 0.1], [1.0, 0.3], [1.0, 0.5]]))
    precision, recall = find_groups(
        np.array([[1.0, 0.0]], np.float32), gallery, np.array([0]), np.array([0, 1, 0])
    )
    assert precision.tolist() == [pytest.approx((1 + 2 / 3) / 2)]
    assert recall.tolist() == [[1, 1, 1]]


def test_a_query_passes_over_its_own_image() -> None:
    rows = unit_rows(np.array([[1.0, 0.0], [1.0, 0.1], [1.0, 0.4]]))
    codes = np.array([0, 1, 0])
    precision, recall = find_groups(rows[:1], rows, codes[:1], codes, own=np.array([0]))
    assert precision.tolist() == [0.5]  # the image of another group comes first
    assert recall.tolist() == [[0, 1, 1]]


def test_a_model_that_tells_nothing_apart_scores_chance() -> None:
    codes = np.array([0] * 3 + [1] * 9 + [2] * 2)
    rows = unit_rows(np.ones((14, 5)))
    found = find_groups(rows, rows, codes, codes, own=np.arange(14))
    expected = chance(num_right(codes, codes, leave_one_out=True), 13)
    np.testing.assert_allclose(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1])
    # one right image among 13
    assert found[1][-1].tolist() == pytest.approx([1 / 13, 5 / 13, 10 / 13])


def test_chance_of_everything_right_is_1() -> None:
    precision, recall = chance(np.array([4]), 4)
    assert precision.tolist() == [pytest.approx(1)]
    assert recall.tolist() == [[1, 1, 1]]


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    rows, codes = unit_rows(rng.standard_normal((40, 6))), rng.integers(0, 5, 40)
    whole = find_groups(rows, rows, codes, codes, own=np.arange(40))
    monkeypatch.setattr(groups, "SCORES_A_BLOCK", 120)
    monkeypatch.setattr(groups, "GALLERY_BLOCK", 7)
    blocked = find_groups(rows, rows, codes, codes, own=np.arange(40))
    np.testing.assert_allclose(blocked[0], whole[0])
    np.testing.assert_array_equal(blocked[1], whole[1])


def test_numbers_that_are_not_finite_are_refused() -> None:
    rows = np.array([[1.0, 0.0], [np.nan, 1.0]], np.float32)
    with pytest.raises(ValueError, match="finite"):
        find_groups(rows[:1], rows, np.array([0]), np.array([0, 0]))


def test_how_many_are_right_leaves_out_a_query_itself() -> None:
    codes = np.array([0, 0, 1])
    assert num_right(codes, codes, leave_one_out=True).tolist() == [1, 1, 0]
    assert num_right(np.array([1, 7]), codes, leave_one_out=False).tolist() == [1, 0]


def test_a_group_of_one_image_is_no_query_but_a_rival(tmp_path: Path, model_file: Path) -> None:
    source = open_source(write_kinds_folder(tmp_path / "photos", [0, 0, 0, 1, 1, 2]))
    report = evaluate_groups(source, Embedder(model_file, threads=1), group="folder")
    assert (report.num_images, report.num_groups, report.num_queries, report.num_alone) == (
        6,
        3,
        5,
        1,
    )
    assert (report.columns, report.leave_one_out) == (("folder", "folder"), True)
    assert [score.name for score in report.scores] == ["test-0", "centered pixels", "chance"]
    pixels, by_lot = report.scores[1:]
    # pixels distinguish the colors
    assert pixels.mean_average_precision == pytest.approx(1.0)
    # Three queries have 2 right of 5 others, two have 1.
    assert by_lot.recall[1] == pytest.approx((3 * 2 / 5 + 2 * 1 / 5) / 5)


def test_queries_of_another_source_meet_the_same_groups(tmp_path: Path, model_file: Path) -> None:
    gallery = open_source(write_kinds_tar(tmp_path / "a.tar", [0, 0, 1]))
    queries = open_source(write_kinds_parquet(tmp_path / "b.parquet", [1, None, 2]))
    report = evaluate_groups(
        gallery, Embedder(model_file, threads=1), group="label", queries=queries
    )
    assert (report.num_images, report.num_queries, report.num_alone, report.leave_one_out) == (
        3,
        1,
        1,
        False,
    )
    assert report.columns == ("class", "label")
    assert report.scores[1].recall == {1: 1.0, 5: 1.0, 10: 1.0}
    assert report.scores[2].recall[1] == pytest.approx(1 / 3)
    assert [key for key, _ in report.failures] == ["b.parquet/1"]


def test_a_column_that_no_two_images_share_is_refused(tmp_path: Path, model_file: Path) -> None:
    source = open_source(write_kinds_folder(tmp_path / "photos", [0, 1, 2]))
    with refused("has another image of its group", "the column folder"):
        evaluate_groups(source, Embedder(model_file, threads=1), group="folder")
