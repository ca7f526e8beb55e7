"""Small images for tests: cheap, seeded, and different enough for a model to distinguish."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw


def draw_image(seed: int, *, height: int = 60, width: int = 80) -> Image.Image:
    """Draw a few colored shapes on a colored background."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (width, height), tuple(int(v) for v in rng.integers(0, 256, 3)))
    pen = ImageDraw.Draw(image)
    for _ in range(6):
        left, top = int(rng.integers(0, width - 10)), int(rng.integers(0, height - 10))
        box = (left, top, left + int(rng.integers(6, 40)), top + int(rng.integers(6, 40)))
        color = tuple(int(v) for v in rng.integers(0, 256, 3))
        (pen.ellipse if rng.random() < 0.5 else pen.rectangle)(box, fill=color)
    return image


def draw_folder(folder: Path, count: int, *, height: int = 60, width: int = 80) -> Path:
    """Write `count` JPEG files 000.jpg, 001.jpg ... into a new folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        draw_image(number, height=height, width=width).save(
            folder / f"{number:03d}.jpg", quality=92
        )
    return folder
