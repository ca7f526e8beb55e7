"""Promises of the masks: how many, how large, of what shape, and that a seed decides them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featkit_train.config import IbotConfig
from featkit_train.images.masks import LEAST_BLOCK, block_mask, draw_mask

GRIDS = st.tuples(st.integers(1, 16), st.integers(1, 16))


@settings(max_examples=100, deadline=None)
@given(
    grid=GRIDS, share=st.floats(0.0, 1.0), aspect=st.floats(0.1, 1.0), seed=st.integers(0, 2**32)
)
def test_mask_hides_no_more_than_requested(
    grid: tuple[int, int], share: float, aspect: float, seed: int
) -> None:
    num_masked = int(share * grid[0] * grid[1])
    mask = block_mask(np.random.default_rng(seed), grid=grid, num_masked=num_masked, aspect=aspect)
    assert mask.shape == grid
    assert mask.dtype == bool
    assert mask.sum() <= num_masked
    if min(grid) >= 8 and 0 < num_masked <= 0.5 * mask.size and aspect > 0.2:
        assert mask.any()


@settings(max_examples=50, deadline=None)
@given(share=st.floats(0.1, 0.5), seed=st.integers(0, 2**32))
def test_mask_hides_about_as_many_as_requested(share: float, seed: int) -> None:
    num_masked = int(share * 14 * 14)
    mask = block_mask(np.random.default_rng(seed), grid=(14, 14), num_masked=num_masked, aspect=0.3)
    assert num_masked - LEAST_BLOCK <= mask.sum() <= num_masked


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32), low=st.floats(0.0, 0.5), width=st.floats(0.0, 0.4))
def test_masked_crop_hides_a_share_within_the_bounds(seed: int, low: float, width: float) -> None:
    config = IbotConfig(mask_probability=1.0, mask_ratio=(low, low + width))
    mask = draw_mask(np.random.default_rng(seed), grid=(12, 10), config=config)
    assert int(low * 120) - LEAST_BLOCK <= mask.sum() <= (low + width) * 120


def test_masked_crops_follow_their_probability() -> None:
    config = IbotConfig(mask_probability=0.3, mask_ratio=(0.1, 0.5))
    shares = np.array(
        [
            draw_mask(np.random.default_rng(seed), grid=(16, 16), config=config).mean()
            for seed in range(1000)
        ]
    )
    assert (shares > 0).mean() == pytest.approx(0.3, abs=0.05)
    assert np.histogram(shares[shares > 0], bins=4, range=(0.09, 0.5))[0] == pytest.approx(
        [75] * 4, abs=35
    )


@pytest.mark.parametrize(("probability", "ratio"), [(0.0, (0.5, 0.5)), (1.0, (0.0, 0.0))])
def test_zero_probability_or_share_hides_nothing(
    probability: float, ratio: tuple[float, float]
) -> None:
    config = IbotConfig(mask_probability=probability, mask_ratio=ratio)
    assert not any(
        draw_mask(np.random.default_rng(seed), grid=(8, 8), config=config).any()
        for seed in range(20)
    )


def rectangle(mask: np.ndarray) -> tuple[int, int] | None:
    """Return height and width of a mask that is one rectangle, else None."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    height, width = int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1
    return (height, width) if height * width == mask.sum() else None


@pytest.mark.parametrize(
    ("aspect", "shapes"), [(0.25, {(1, 4), (2, 2), (4, 1)}), (0.9, {(2, 2)}), (1.0, {(2, 2)})]
)
def test_blocks_are_rectangles_within_their_aspect_bounds(
    aspect: float, shapes: set[tuple[int, int]]
) -> None:
    masks = [
        block_mask(np.random.default_rng(seed), grid=(32, 32), num_masked=4, aspect=aspect)
        for seed in range(200)
    ]
    assert {
        shape for mask in masks if mask.sum() == 4 and (shape := rectangle(mask)) is not None
    } == shapes


def test_mask_is_made_of_blocks_not_scattered_patches() -> None:
    lonely = 0
    for seed in range(50):
        mask = block_mask(np.random.default_rng(seed), grid=(14, 14), num_masked=70, aspect=0.3)
        padded = np.pad(mask, 1)
        neighbors = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
        lonely += int((mask & ~neighbors).sum())
    assert lonely < 50  # of 3,500; drawn one by one there would be 250 and more


def test_draws_depend_on_the_seed() -> None:
    config = IbotConfig(mask_probability=1.0)
    masks = [
        draw_mask(np.random.default_rng(seed), grid=(14, 14), config=config) for seed in (0, 0, 1)
    ]
    assert np.array_equal(masks[0], masks[1])
    assert not np.array_equal(masks[0], masks[2])
