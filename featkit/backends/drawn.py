"""Draw images to measure engines with: smooth and rough, dark and light, all different."""

from __future__ import annotations

import numpy as np
from PIL import Image

SMALLEST_GRID = 2  # points per side


def drawn_images(count: int, *, height: int, width: int) -> np.ndarray:
    """Return images (count, height, width, 3) uint8, the same at every call.

    Each is a sum of random colors on grids of 2, 4, 8 … points, smoothed to the full size. As in
    photographs, finer detail is weaker: each finer grid has 2 ** -r times the weight of the one
    before, with r drawn per image from 0.3 (rough) to 1.5 (smooth).
    """
    rng = np.random.default_rng(0)
    images = np.empty((count, height, width, 3), np.uint8)
    for number in range(count):
        fall, contrast, ground = rng.uniform(0.3, 1.5), rng.uniform(30, 90), rng.uniform(60, 200, 3)
        total = np.zeros((height, width, 3))
        grid, weight = SMALLEST_GRID, 1.0
        while grid <= max(height, width):
            points = rng.standard_normal((grid, grid, 3)).astype(np.float32)
            layers = [Image.fromarray(points[..., color]) for color in range(3)]
            size = (width, height)
            smooth = [np.asarray(layer.resize(size, Image.Resampling.BICUBIC)) for layer in layers]
            total += weight * np.stack(smooth, axis=-1)
            grid, weight = 2 * grid, weight * 2.0**-fall
        images[number] = np.clip(ground + contrast * total / max(total.std(), 1e-6), 0, 255).astype(
            np.uint8
        )
    return images
