"""Tests of the linear classifier: the loss it minimizes, the choice of l2, and the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featkit.embedder import Embedder
from featkit.evaluate import linear
from featkit.evaluate.linear import L2_GRID, choose_l2, evaluate_linear, fit, small_pixels, split
from featkit.sources import open_source
from tests.featkit.evaluate.labeled import write_kinds_folder, write_kinds_parquet, write_kinds_tar
from tests.sentences import refused


def loss(
    features: np.ndarray, labels: np.ndarray, weights: np.ndarray, biases: np.ndarray, *, l2: float
) -> float:
    """The docstring's, one image at a time."""
    standard = (features - features.mean(axis=0)) / features.std(axis=0)
    total = 0.0
    for row, label in zip(standard, labels, strict=True):
        scores = row @ weights + biases
        total -= scores[label] - np.log(np.exp(scores).sum())
    return float(total / len(labels) + l2 / 2 * (weights**2).sum())


@pytest.mark.parametrize("num_labels", [2, 4])
@pytest.mark.parametrize("l2", [0.01, 1.0])
def test_a_fit_is_at_the_least_of_its_loss(num_labels: int, l2: float) -> None:
    rng = np.random.default_rng(num_labels)
    labels = rng.integers(0, num_labels, 80)
    features = rng.standard_normal((num_labels, 5))[labels] + rng.standard_normal((80, 5)) * (
        1,
        10,
        0.1,
        1,
        3,
    )
    (found,) = fit(features, labels, [l2])
    assert found.converged
    least = loss(features, labels, found.weights, found.biases, l2=l2)
    for _ in range(40):
        step, shift = (
            0.03 * rng.standard_normal(found.weights.shape),
            0.03 * rng.standard_normal(num_labels),
        )
        if num_labels == 2:
            step[:, 0] = 0  # the first of two has no weights of its own
        assert (
            loss(features, labels, found.weights + step, found.biases + shift, l2=l2) > least - 1e-6
        )


def test_fits_ignore_scale_offset_and_other_l2s() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 20)
    features = rng.standard_normal((3, 4))[labels] + rng.standard_normal((60, 4))
    (alone,) = fit(features, labels, [0.1])
    beside, _ = fit(features * 1000 + 5, labels, [0.1, 1.0])
    np.testing.assert_allclose(beside.weights, alone.weights, atol=2e-3)
    assert beside.predict(features * 1000 + 5).tolist() == alone.predict(features).tolist()


def test_any_labels_and_constant_features_are_accepted() -> None:
    features = np.array([[0.0, 7.0], [1.0, 7.0], [2.0, 7.0], [3.0, 7.0]])
    labels = np.array([3, 3, 9, 9])
    (found,) = fit(features, labels, [0.01])
    assert found.predict(features).tolist() == [3, 3, 9, 9]
    assert found.accuracy(features, np.array([3, 9, 9, 9])) == 0.75


def test_a_split_holds_out_a_fifth_of_each_label_and_never_all() -> None:
    labels = np.repeat([5, 6, 7], [10, 4, 25])
    fitted, held_out = split(labels, seed=0)
    assert sorted([*fitted, *held_out]) == list(range(39))
    assert np.unique(labels[held_out], return_counts=True)[1].tolist() == [2, 5]
    assert set(labels[fitted]) == {5, 6, 7}
    assert held_out.tolist() == split(labels, seed=0)[1].tolist()
    assert held_out.tolist() != split(labels, seed=1)[1].tolist()


def test_the_best_l2_on_held_out_wins_ties_the_largest() -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 60)
    features = np.concatenate(
        [labels[:, None] + 0.5 * rng.standard_normal((60, 1)), rng.standard_normal((60, 50))],
        axis=1,
    )
    fitted, held_out = split(labels, seed=0)
    l2, accuracies = choose_l2(features, labels, fitted, held_out)
    assert len(accuracies) == len(L2_GRID)
    assert l2 == max(
        grid
        for grid, accuracy in zip(L2_GRID, accuracies, strict=True)
        if accuracy == max(accuracies)
    )
    for one, accuracy in zip(L2_GRID, accuracies, strict=True):
        (alone,) = fit(features[fitted], labels[fitted], [one])
        assert accuracy == pytest.approx(
            alone.accuracy(features[held_out], labels[held_out]), abs=0.09
        )
    # Two clouds far apart: every l2 is right.
    easy = np.repeat([[0.0], [9.0]], 10, axis=0) + rng.standard_normal((20, 1))
    assert choose_l2(easy, np.repeat([0, 1], 10), *split(np.repeat([0, 1], 10), seed=0))[0] == max(
        L2_GRID
    )


def test_where_nothing_can_be_held_out_the_fitted_ones_choose() -> None:
    features, labels = np.array([[0.0], [1.0]]), np.array([0, 1])
    fitted, held_out = split(labels, seed=0)
    assert len(held_out) == 0
    assert choose_l2(features, labels, fitted, held_out) == (max(L2_GRID), [1.0] * len(L2_GRID))


def test_small_pixels_are_the_means_of_4_by_4() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    found = small_pixels(pixels.reshape(2, -1)).reshape(2, 8, 8, 3)
    assert found[1, 2, 7, 0] == pytest.approx(pixels[1, 8:12, 28:32, 0].mean())


def test_a_fit_that_does_not_come_to_its_end_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "MAX_ITERATIONS", 2)
    rng = np.random.default_rng(0)
    (found,) = fit(rng.standard_normal((50, 9)), rng.integers(0, 3, 50), [1e-4])
    assert not found.converged


def test_the_report_has_the_choice_and_both_scores(tmp_path: Path, model_file: Path) -> None:
    train = open_source(write_kinds_tar(tmp_path / "a.tar", [0, 1, 2] * 6))
    test = open_source(write_kinds_parquet(tmp_path / "b.parquet", [0, 1, 2, 0]))
    report = evaluate_linear(train, test, Embedder(model_file, threads=1), seed=4)
    assert [score.name for score in report.scores] == ["test-0", "pixels, 8×8"]
    assert (report.num_train, report.num_held_out, report.num_test, report.num_labels) == (
        18,
        3,
        4,
        3,
    )
    assert (report.seed, report.grid, report.columns) == (4, L2_GRID, ("class", "label"))
    pixels = report.scores[1]
    assert (pixels.accuracy, pixels.interval, pixels.converged) == (1.0, (1.0, 1.0), True)
    assert pixels.l2 in L2_GRID
    assert len(pixels.held_out) == len(L2_GRID)


def test_one_label_alone_is_refused(tmp_path: Path, model_file: Path) -> None:
    source = open_source(write_kinds_folder(tmp_path / "one", [1, 1]))
    with refused("one has the single label green"):
        evaluate_linear(source, source, Embedder(model_file, threads=1))
