"""Promises of what a run is measured by: held-out images of every kind with their labels, and
vectors of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featkit.sources import open_source
from featkit_train.run_parts import geometry_of
from featkit_train.watching import probe
from featkit_train.watching.probe import COPIES, KNN, HeldOut, Scores
from tests.train.labeled.small import draw_kinds, labeled_config

GEOMETRY = geometry_of(labeled_config("internal"), patch=8)


def by_pixels(images: np.ndarray) -> np.ndarray:
    """Return unit vectors that distinguish images."""
    rows = images.reshape(len(images), -1).astype(np.float32)
    rows -= rows.mean(axis=1, keepdims=True)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def test_copies_are_looked_for_among_some_of_every_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(draw_kinds(tmp_path, 10))
    monkeypatch.setattr(probe, "MAX_COPIES", 4)
    held_out = HeldOut(source, np.arange(20), GEOMETRY)
    assert held_out.labels == ["blue"] * 10 + ["red"] * 10
    assert len(held_out.copy_images) == 4 * 5
    assert held_out.prepared is not None
    originals = held_out.copy_images[::5]
    known = [
        int(np.flatnonzero((held_out.prepared == original).all(axis=(1, 2, 3)))[0])
        for original in originals
    ]
    assert known == [0, 5, 10, 15]
    recall = held_out.copy_recall(by_pixels(held_out.copy_images))
    scores = held_out.measure(by_pixels)
    assert scores is not None
    assert recall == scores.values[COPIES]
    assert 0.25 < recall <= 1.0


def test_knn_is_watched_if_labels_are_plenty_else_copies(tmp_path: Path) -> None:
    source = open_source(draw_kinds(tmp_path, 10))
    both = HeldOut(source, np.arange(20), GEOMETRY).measure(by_pixels)
    one_label = HeldOut(source, np.arange(10), GEOMETRY).measure(by_pixels)
    assert both is not None
    assert one_label is not None
    assert (set(both.values), both.watched) == ({KNN, COPIES}, KNN)
    assert (set(one_label.values), one_label.watched) == ({COPIES}, COPIES)
    assert HeldOut(source, np.arange(1), GEOMETRY).measure(by_pixels) is None


def test_joined_scores_keep_the_first_ones_watched_score() -> None:
    first, second = Scores({"a": 0.1}, "a"), Scores({"b": 0.2}, "b")
    assert Scores.joined(first, second) == Scores({"a": 0.1, "b": 0.2}, "a")
    assert Scores.joined(None, second) == second
    assert Scores.joined(None, None) is None
