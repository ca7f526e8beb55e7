"""Promises of the neighbors' vote: equal to plain loops, to numbers checked by hand, and steady
where votes tie."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from featkit.embedder import Embedder
from featkit.evaluate import knn
from featkit.evaluate.knn import (
    KnnReport,
    evaluate_knn,
    knn_accuracy,
    majority_vote,
    nearest,
    weighted_vote,
)
from featkit.evaluate.retrieval import unchanged, unit_rows
from featkit.sources import Source, open_source
from tests.featkit.evaluate.labeled import write_kinds_parquet, write_kinds_tar
from tests.images import draw_image

# Vectors of few small whole numbers: their products are exact, and many of them equal.
ROWS = st.integers(1, 9).flatmap(
    lambda count: arrays(np.float32, (count, 3), elements=st.integers(-2, 2))
)


def loop_of_accuracy(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    *,
    k: int,
    temperature: float,
) -> float:
    """DINO's eval_knn.py, one image at a time: cosines, the k best, exp(cosine / temperature) for
    each one's label."""
    right = 0
    for vector, label in zip(test, test_labels, strict=True):
        cosines = [
            float(vector @ other) / math.hypot(*vector) / math.hypot(*other) for other in train
        ]
        order = sorted(range(len(train)), key=lambda row: (-cosines[row], row))[:k]
        votes: dict[int, float] = {}
        for row in order:
            votes[int(train_labels[row])] = votes.get(int(train_labels[row]), 0.0) + math.exp(
                cosines[row] / temperature
            )
        right += max(votes, key=lambda name: votes[name]) == label
    return right / len(test)


@pytest.mark.parametrize("k", [1, 5, 20, 500])
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_knn_accuracy_equals_the_loop_of_dinos_code(k: int, temperature: float) -> None:
    rng = np.random.default_rng(k)
    centers = rng.standard_normal((6, 8))
    labels = rng.integers(0, 6, 260)
    vectors = centers[labels] + 1.2 * rng.standard_normal((260, 8))
    split = (vectors[:200], labels[:200], vectors[200:], labels[200:])
    found = knn_accuracy(*split, k=k, temperature=temperature)
    assert found == loop_of_accuracy(*split, k=k, temperature=temperature)
    assert 1 / 6 < found < 1


@given(queries=ROWS, gallery=ROWS, k=st.integers(1, 12))
@settings(max_examples=80, deadline=None)
def test_neighbors_equal_the_loop_with_ties_in_the_order_of_rows(
    queries: np.ndarray, gallery: np.ndarray, k: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knn, "QUERY_BLOCK", 2)
        patch.setattr(knn, "GALLERY_BLOCK", 3)
        scores, rows = nearest(queries, gallery, k, to_vectors=unchanged)
    for query, found_scores, found in zip(queries, scores, rows, strict=True):
        order = sorted(range(len(gallery)), key=lambda row: (-float(query @ gallery[row]), row))[:k]
        assert found.tolist() == order
        assert found_scores.tolist() == [float(query @ gallery[row]) for row in order]


def test_a_near_neighbor_outweighs_two_far_ones_when_weighted() -> None:
    # exp(0.9 / 0.07) is 4 times exp(0.8 / 0.07), which two of them do not reach.
    cosines, labels = np.array([[0.9, 0.8, 0.8]]), np.array([["cat", "dog", "dog"]])
    assert weighted_vote(cosines, labels, temperature=0.07).tolist() == ["cat"]
    assert weighted_vote(cosines, labels, temperature=1.0).tolist() == ["dog"]
    assert majority_vote(labels).tolist() == ["dog"]


def test_of_equal_votes_the_nearer_neighbor_wins() -> None:
    labels = np.array([[4, 1, 1, 4, 0], [1, 4, 4, 1, 0]])
    assert majority_vote(labels).tolist() == [4, 1]
    assert weighted_vote(np.full((2, 5), 0.3), labels, temperature=0.07).tolist() == [4, 1]


def test_votes_do_not_depend_on_a_constant_or_overflow() -> None:
    labels = np.array([[0, 1, 1]])
    for shift in (0.0, 0.5, -900.0):
        assert weighted_vote(
            np.array([[0.5, 0.49, 0.49]]) + shift, labels, temperature=0.001
        ).tolist() == [0]


def test_more_neighbors_than_there_are_is_all_of_them() -> None:
    train, labels = np.eye(3), np.array([7, 8, 8])
    scores, rows = nearest(np.eye(3)[:1], train, 20)
    assert (scores.tolist(), rows.tolist()) == ([[1, 0, 0]], [[0, 1, 2]])
    # all say 8
    assert knn_accuracy(train, labels, train, labels, k=20, temperature=100.0) == pytest.approx(
        2 / 3
    )


def test_one_label_is_always_right() -> None:
    rows = np.random.default_rng(0).standard_normal((5, 4))
    assert knn_accuracy(rows, np.zeros(5, int), rows, np.zeros(5, int)) == 1.0


def test_vectors_may_be_of_any_length() -> None:
    rng = np.random.default_rng(1)
    rows, labels = rng.standard_normal((60, 4)), rng.integers(0, 3, 60)
    plain = knn_accuracy(rows[:40], labels[:40], rows[40:], labels[40:], k=3)
    assert knn_accuracy(rows[:40] * 50, labels[:40], rows[40:] / 9, labels[40:], k=3) == plain


def test_what_is_no_neighborhood_is_refused() -> None:
    rows = np.eye(2)
    with pytest.raises(ValueError, match="0 neighbors"):
        nearest(rows, rows, 0)
    with pytest.raises(ValueError, match="among 0 vectors"):
        nearest(rows, rows[:0], 3)
    with pytest.raises(ValueError, match="finite"):
        nearest(np.array([[np.nan, 1.0]]), rows, 1)
    with pytest.raises(ValueError, match="no test vectors"):
        knn_accuracy(rows, np.arange(2), rows[:0], np.arange(0))


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Source, Source]:
    """Twelve training squares and six to classify, two of which carry another's label."""
    folder = tmp_path_factory.mktemp("knn")
    train = write_kinds_tar(folder / "a.tar", [0, 1, 2] * 4)
    test = write_kinds_parquet(folder / "b.parquet", [0, 1, 2, 0, 1, 2])
    return open_source(train), open_source(test)


@pytest.fixture(scope="module")
def report(parts: tuple[Source, Source], model_file: Path) -> KnnReport:
    return evaluate_knn(*parts, Embedder(model_file, threads=1), ks=(3, 50, 60))


def test_the_report_holds_each_method_at_each_k(
    report: KnnReport, parts: tuple[Source, Source], model_file: Path
) -> None:
    assert [(score.name, score.k) for score in report.scores] == [
        ("test-0", 3),
        ("test-0", 12),
        ("centered pixels", 3),
        ("centered pixels", 12),
    ]
    assert (report.num_train, report.num_test, report.num_labels, report.num_unseen) == (
        12,
        6,
        3,
        0,
    )
    assert (report.columns, report.failures) == (("class", "label"), [])
    assert report.most_frequent == pytest.approx(1 / 3)
    assert report.score("centered pixels", 3).weighted == 1.0
    embedder = Embedder(model_file, threads=1)
    vectors = [embedder.embed([part.read(number) for number in range(len(part))]) for part in parts]
    labels = np.array([0, 1, 2] * 4), np.array([0, 1, 2] * 2)
    for k in (3, 12):
        expected = loop_of_accuracy(
            unit_rows(vectors[0]), labels[0], vectors[1], labels[1], k=k, temperature=0.07
        )
        assert report.score("test-0", k).weighted == pytest.approx(expected)
    low, high = report.score("test-0", 3).interval
    assert low <= report.score("test-0", 3).weighted <= high


def test_copies_of_training_images_are_counted(tmp_path: Path, model_file: Path) -> None:
    for part, seeds in (("train", range(8)), ("test", range(10, 16))):
        for seed in seeds:
            folder = tmp_path / part / "ab"[seed % 2]
            folder.mkdir(parents=True, exist_ok=True)
            draw_image(seed, height=120, width=160).save(folder / f"{seed}.png")
    for seed in (2, 3):
        smaller = draw_image(seed, height=120, width=160).resize((90, 64))
        smaller.save(tmp_path / "test" / "a" / f"{seed}.jpg", quality=60)
    parts = open_source(tmp_path / "train"), open_source(tmp_path / "test")
    report = evaluate_knn(*parts, Embedder(model_file, threads=1), label="folder", ks=(1,))
    assert (report.num_test, report.num_near_copies) == (8, 2)
