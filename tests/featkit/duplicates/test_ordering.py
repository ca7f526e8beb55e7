"""Pairs are ordered so that the same images come again soon."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest

from featkit.duplicates import ordering
from featkit.duplicates.nearest import Side
from featkit.duplicates.ordering import nearby_order
from featkit.index.exact import exact_search


class ArrayRows:
    """Vectors in memory: row i is that of item i."""

    def __init__(self, vectors: np.ndarray) -> None:
        self.vectors = vectors

    def take(self, ids: np.ndarray) -> np.ndarray:
        taken: np.ndarray = self.vectors[ids]
        return taken


def clumps(count: int, *, seed: int) -> np.ndarray:
    """Return unit vectors (count, 16) in 20 clumps, in random order."""
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(0).standard_normal((20, 16))
    vectors = centers[rng.integers(0, 20, count)] + 0.2 * rng.standard_normal((count, 16))
    unit: np.ndarray = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit


def side_of(vectors: np.ndarray) -> Side:
    return Side(ArrayRows(vectors), np.arange(len(vectors)))  # type: ignore[arg-type]


def num_prepared(first: np.ndarray, second: np.ndarray, *, kept: int) -> int:
    """Return how many images are prepared if only the `kept` last ones stay."""
    last: OrderedDict[int, None] = OrderedDict()
    count = 0
    for image in np.stack([first, second], axis=1).ravel().tolist():
        count += image not in last
        last[image] = None
        last.move_to_end(image)
        if len(last) > kept:
            last.popitem(last=False)
    return count


@pytest.mark.parametrize("is_self", [True, False])
def test_images_come_again_soon(is_self: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ordering, "PER_CLUSTER", 16)
    side = side_of(clumps(1000, seed=1))
    other = side if is_self else side_of(clumps(1000, seed=2))
    vectors, others = side.take(0, 1000), other.take(0, 1000)
    found = exact_search(vectors, others, k=6, allowed=np.ones(1000, bool))
    first = np.repeat(np.arange(1000), 6)
    second = np.concatenate([each.ids for each in found])
    order = nearby_order(side, other, first, second)
    assert sorted(order.tolist()) == [*range(6000)]
    apart = 0 if is_self else 10_000
    before = num_prepared(first, second + apart, kept=200)
    after = num_prepared(first[order], second[order] + apart, kept=200)
    assert after < before / 2


def test_no_pairs_have_no_order() -> None:
    nothing = np.zeros(0, np.int64)
    side = side_of(clumps(3, seed=0))
    assert nearby_order(side, side, nothing, nothing).tolist() == []
