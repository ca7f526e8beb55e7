"""The best position of one image in another equals that of a plain loop."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from featkit.duplicates import positions
from featkit.duplicates.positions import SINGLE_THREADED, best_positions
from featkit.duplicates.views import Look


def look(view: np.ndarray, image: Image.Image) -> Look:
    return Look(view, image, np.asarray(image), 0.0)


def noise(seed: int, H: int = 20, W: int = 24) -> np.ndarray:
    pixels = np.random.default_rng(seed).uniform(0, 255, (H, W))
    return pixels.astype(np.float32)


def by_a_plain_loop(view: np.ndarray, image: Image.Image) -> tuple[float, tuple[int, ...]]:
    """Return the largest correlation of an image that is not turned, and (h, w, top, left)."""
    H, W = view.shape
    best, where = 0.0, (0, 0, 0, 0)
    fit = min(W / image.width, H / image.height)
    for scale in [0.88**step for step in range(8)]:
        w, h = round(image.width * fit * scale), round(image.height * fit * scale)
        if min(w, h) < 7:
            break
        pixels = np.asarray(image.resize((w, h), Image.Resampling.BOX), np.float64)
        for template in (pixels, pixels[:, ::-1]):
            for top, left in np.ndindex(H - h + 1, W - w + 1):
                window = view[top : top + h, left : left + w].astype(np.float64)
                correlation = np.corrcoef(window.ravel(), template.ravel())[0, 1]
                if correlation > best:
                    best, where = float(correlation), (h, w, top, left)
    return best, where


@pytest.mark.parametrize("is_single_threaded", [False, True])
def test_positions_equal_a_plain_loop(
    is_single_threaded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(positions, "IS_SINGLE_THREADED", is_single_threaded)
    first, second = noise(0), noise(1)
    images = [
        Image.fromarray(first[4:18, 6:20].astype(np.uint8)),
        Image.fromarray(second[2:16, 3:17, None].astype(np.uint8)[:, ::-1, 0].copy()),
        Image.fromarray(second[:, 2:18].astype(np.uint8)),  # of another size
    ]
    views = [first, second, second]
    pairs = [(look(view, images[0]), look(view, image)) for view in views for image in images]
    for (view, other), found in zip(pairs, best_positions(pairs, least=0.1), strict=True):
        correlation, where = by_a_plain_loop(view.small, other.image)
        (best,) = [position for position in found if position.angle == 0]
        assert best.correlation == pytest.approx(correlation, abs=1e-4)
        assert (best.h, best.w, best.top, best.left) == where


def test_positions_below_the_least_are_left_out() -> None:
    pair = (
        look(noise(0), Image.new("L", (14, 14))),
        look(noise(1), Image.fromarray(noise(2).astype(np.uint8))),
    )
    (found,) = best_positions([pair], least=0.0)
    least = sorted(position.correlation for position in found)[2]
    (fewer,) = best_positions([pair], least=least)
    assert {position.angle for position in fewer} < {position.angle for position in found}
    assert all(position.correlation > least for position in fewer)


def test_products_come_in_pieces_that_need_one_thread() -> None:
    rng = np.random.default_rng(0)
    templates = rng.standard_normal((3, 10, 300)).astype(np.float32)
    parts = rng.standard_normal((2, 400, 300)).astype(np.float32)
    others = [[look(noise(0), Image.new("L", (9, 9)))] * count for count in (2, 1)]
    assert templates[:2].size * 400 > SINGLE_THREADED
    products = positions._products(templates, parts, others)
    for number, view in enumerate((0, 0, 1)):
        expected = templates[number] @ parts[view].T
        np.testing.assert_allclose(products[number], expected, rtol=1e-4, atol=1e-4)
