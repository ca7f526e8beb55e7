"""Recall is measured as its definition says."""

from __future__ import annotations

import numpy as np
import pytest

from featkit.index.approximate.tuning import Truth, lower_end, recalls
from featkit.index.searcher import Neighbors


def neighbors(ids: list[int], scores: list[float]) -> Neighbors:
    return Neighbors(np.array(ids), np.array(scores, np.float32))


def test_recall_is_the_share_of_the_true_nearest() -> None:
    truth = Truth(np.zeros((2, 4), np.float32), [neighbors([1, 2, 3, 4], [0.9, 0.8, 0.7, 0.6])] * 2)
    found = [neighbors([1, 3, 9, 8], [0.9, 0.7, 0.5, 0.4]), neighbors([1], [0.9])]
    assert recalls(found, truth, k=4).tolist() == [0.5, 0.25]
    assert recalls(found, truth, k=1).tolist() == [1.0, 1.0]


def test_equal_scores_are_as_good_as_the_true_ones() -> None:
    truth = Truth(np.zeros((1, 4), np.float32), [neighbors([1, 2], [0.9, 0.5])])
    assert recalls([neighbors([1, 7], [0.9, 0.5])], truth, k=2).tolist() == [1.0]


def test_the_lower_end_is_below_the_mean_by_the_standard_error() -> None:
    shares = np.array([1.0] * 50 + [0.8] * 50)
    assert lower_end(shares) == pytest.approx(0.9 - 1.96 * shares.std(ddof=1) / 10)
    assert lower_end(np.array([1.0])) == 0
