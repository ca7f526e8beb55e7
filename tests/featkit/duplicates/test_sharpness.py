"""A blurred image is less sharp, whatever its contrast."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import ImageEnhance, ImageFilter

from featkit.duplicates.sharpness import sharpness
from featkit.images import thumbnail_jpeg
from tests.featkit.duplicates.conftest import scene


def of(image: object) -> float:
    return sharpness(thumbnail_jpeg(np.asarray(image), quality=95))


@pytest.mark.parametrize("seed", range(3))
def test_blur_lessens_and_contrast_does_not(seed: int) -> None:
    image = scene(seed)
    assert of(image.filter(ImageFilter.GaussianBlur(1))) < 0.8 * of(image)
    faded = ImageEnhance.Contrast(image).enhance(0.7)
    assert of(faded) == pytest.approx(of(image), rel=0.15)


def test_plain_and_tiny_images_have_no_sharpness() -> None:
    assert of(np.full((20, 30, 3), 90, np.uint8)) == pytest.approx(0, abs=1e-6)
    assert of(np.zeros((1, 1, 3), np.uint8)) == 0
