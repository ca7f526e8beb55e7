"""Images are laid over each other exactly, from a position that is nearly right."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from featkit.duplicates.refining import (
    CONTRAST_RADIUS,
    NOISE,
    Contrast,
    _detailed,
    _overlap,
    _refined,
    local_contrast,
    refined_agreement,
)
from tests.featkit.duplicates.conftest import scene

WARP = np.array([[0.7, 0.1, 12.0], [-0.08, 0.75, 9.0], [0, 0, 1]])


def gray(seed: int) -> np.ndarray:
    return np.asarray(scene(seed).convert("L").resize((96, 72)), np.float32)


def cut(pixels: np.ndarray, warp: np.ndarray = WARP) -> np.ndarray:
    """Return the view whose pixels the map takes to those of the image."""
    affine, bicubic = Image.Transform.AFFINE, Image.Resampling.BICUBIC
    data = tuple(warp[:2].ravel().tolist())
    return np.asarray(Image.fromarray(pixels).transform((96, 72), affine, data, bicubic))


def test_local_contrast_equals_a_plain_loop() -> None:
    pixels = gray(0)[:20, :30]
    padded = np.pad(pixels.astype(np.float64), CONTRAST_RADIUS, mode="symmetric")
    differences = np.zeros(pixels.shape)
    for y, x in np.ndindex(pixels.shape):
        window = padded[y : y + 2 * CONTRAST_RADIUS + 1, x : x + 2 * CONTRAST_RADIUS + 1]
        differences[y, x] = pixels[y, x] - window.mean()
    squares = np.pad(differences**2, CONTRAST_RADIUS, mode="symmetric")
    for y, x in np.ndindex(pixels.shape):
        window = squares[y : y + 2 * CONTRAST_RADIUS + 1, x : x + 2 * CONTRAST_RADIUS + 1]
        expected = differences[y, x] / np.sqrt(window.mean() + NOISE**2)
        assert local_contrast(pixels)[y, x] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_a_nearly_right_position_becomes_right(seed: int) -> None:
    image, view = Contrast.of(gray(seed)), Contrast.of(cut(gray(seed)))
    near = WARP + np.array([[0.03, -0.03, 1.5], [0.03, -0.02, -1.0], [0, 0, 0]])
    before = refined_agreement(view, image, WARP)
    after = refined_agreement(view, image, near)
    assert before > 0.9
    assert after == pytest.approx(before, abs=0.02)
    stranger = Contrast.of(gray(seed + 50))
    assert refined_agreement(view, stranger, near) < 0.3


def test_brightness_and_contrast_do_not_matter() -> None:
    image = Contrast.of(gray(1))
    plain = refined_agreement(Contrast.of(cut(gray(1))), image, WARP)
    faded = refined_agreement(Contrast.of(0.8 * cut(gray(1)) + 40), image, WARP)
    assert faded == pytest.approx(plain, abs=0.02)


def test_the_agreement_is_the_lower_end_of_an_interval() -> None:
    image, view = Contrast.of(gray(2)), Contrast.of(cut(gray(2)))
    correlation, detailed = _refined(view, image, WARP)
    assert detailed > 1000
    by_hand = np.tanh(np.arctanh(correlation) - 3.3 / np.sqrt(detailed / 25))
    assert refined_agreement(view, image, WARP) == pytest.approx(by_hand)


def test_no_overlap_is_no_agreement() -> None:
    image = Contrast.of(gray(3))
    plain, dot = Contrast.of(np.zeros((72, 96))), Contrast.of(np.zeros((1, 1)))
    outside = np.array([[1, 0, 500.0], [0, 1, 0], [0, 0, 1]])
    assert refined_agreement(image, image, outside) == 0
    assert refined_agreement(plain, plain, np.eye(3)) == 0
    assert refined_agreement(dot, dot, np.eye(3)) == 0


def test_maps_that_are_not_maps_are_no_agreement() -> None:
    image = Contrast.of(gray(4))
    partly = np.array([[1, 0, np.nan], [0, 1, 0], [0, 0, 1]])
    huge = np.array([[1, 1e308, 0], [0, 1, 1e308], [0, 0, 1]])
    small = np.diag([1e-300, 1.0, 1.0])
    for bad in (np.zeros((3, 3)), np.full((3, 3), np.nan), small, partly, huge):
        assert refined_agreement(image, image, bad) == 0


def test_only_pixels_that_fall_into_the_image_count() -> None:
    rng = np.random.default_rng(5)
    for _ in range(20):
        warp = np.vstack([rng.normal(WARP[:2], [0.4, 0.4, 30.0]), [0, 0, 1]])
        box, inside = _overlap(warp, (72, 96), (50, 60))
        is_inside = np.zeros((72, 96), bool)
        part = is_inside[box.top : box.bottom, box.left : box.right]
        part[np.unravel_index(inside, part.shape)] = True
        ones = Image.fromarray(np.ones((50, 60), np.float32))
        data = tuple(warp[:2].ravel().tolist())
        affine, bilinear = Image.Transform.AFFINE, Image.Resampling.BILINEAR
        expected = np.asarray(ones.transform((96, 72), affine, data, bilinear)) > 0.99
        np.testing.assert_array_equal(is_inside, expected)


def test_plain_ground_does_not_count_as_detail() -> None:
    rng = np.random.default_rng(0)
    normal = np.square(rng.standard_normal(5000)) + np.square(rng.standard_normal(5000))
    assert _detailed(normal) == pytest.approx(5000, rel=0.05)
    assert _detailed(np.array([1.0] * 10 + [0.0] * 90)) == 20
    assert _detailed(np.ones(10)) == 10
