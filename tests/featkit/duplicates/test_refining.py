"""Images are laid over each other exactly, from a position that is nearly right."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from featkit.duplicates.refining import (
    CONTRAST_RADIUS,
    NOISE,
    _detailed,
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
    image, view = local_contrast(gray(seed)), local_contrast(cut(gray(seed)))
    near = WARP + np.array([[0.03, -0.03, 1.5], [0.03, -0.02, -1.0], [0, 0, 0]])
    before = refined_agreement(view, image, WARP)
    after = refined_agreement(view, image, near)
    assert before > 0.9
    assert after == pytest.approx(before, abs=0.02)
    stranger = local_contrast(gray(seed + 50))
    assert refined_agreement(view, stranger, near) < 0.3


def test_brightness_and_contrast_do_not_matter() -> None:
    image = local_contrast(gray(1))
    plain = refined_agreement(local_contrast(cut(gray(1))), image, WARP)
    faded = refined_agreement(local_contrast(0.8 * cut(gray(1)) + 40), image, WARP)
    assert faded == pytest.approx(plain, abs=0.02)


def test_the_agreement_is_the_lower_end_of_an_interval() -> None:
    image, view = local_contrast(gray(2)), local_contrast(cut(gray(2)))
    correlation, detailed = _refined(view, image, WARP)
    assert detailed > 1000
    by_hand = np.tanh(np.arctanh(correlation) - 3.3 / np.sqrt(detailed / 25))
    assert refined_agreement(view, image, WARP) == pytest.approx(by_hand)


def test_no_overlap_is_no_agreement() -> None:
    image = local_contrast(gray(3))
    outside = np.array([[1, 0, 500.0], [0, 1, 0], [0, 0, 1]])
    assert refined_agreement(image, image, outside) == 0
    assert refined_agreement(image * 0, image * 0, np.eye(3)) == 0
    assert refined_agreement(image[:1, :1], image[:1, :1], np.eye(3)) == 0


def test_plain_ground_does_not_count_as_detail() -> None:
    rng = np.random.default_rng(0)
    normal = np.square(rng.standard_normal(5000)) + np.square(rng.standard_normal(5000))
    assert _detailed(normal) == pytest.approx(5000, rel=0.05)
    assert _detailed(np.array([1.0] * 10 + [0.0] * 90)) == 20
    assert _detailed(np.ones(10)) == 10
