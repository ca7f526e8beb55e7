"""Drawn images: the same each time, each its own, with dark and light, smooth and rough among
them."""

from __future__ import annotations

import numpy as np
import pytest

from featkit.backends.drawn import drawn_images


def test_drawn_images_repeat_and_extend() -> None:
    few, many = drawn_images(3, height=48, width=64), drawn_images(8, height=48, width=64)
    assert many.shape == (8, 48, 64, 3)
    assert many.dtype == np.uint8
    np.testing.assert_array_equal(few, many[:3])


def test_no_two_drawn_images_are_alike() -> None:
    images = drawn_images(16, height=32, width=32).reshape(16, -1).astype(np.float64)
    images -= images.mean(axis=1, keepdims=True)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    cosines = images @ images.T - np.eye(16)
    assert np.abs(cosines).max() < 0.9
    assert np.abs(cosines).mean() < 0.3


def test_drawn_images_use_the_range_of_a_photograph() -> None:
    images = drawn_images(16, height=64, width=64).astype(np.float64)
    assert images.min() == 0
    assert images.max() == 255
    assert images.std(axis=(1, 2, 3)).min() > 15
    rough = np.abs(np.diff(images, axis=2)).mean(axis=(1, 2, 3))
    assert rough.max() > 2 * rough.min()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (8, 8), (14, 200)])
def test_drawn_images_may_have_any_size(height: int, width: int) -> None:
    assert drawn_images(2, height=height, width=width).shape == (2, height, width, 3)
