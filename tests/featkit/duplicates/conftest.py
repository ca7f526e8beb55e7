"""Images with structure at many sizes, and an index of some with copies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from featkit.embedder import Embedder
from featkit.evaluate.edits import apply_edits, draw_compound
from featkit.images import thumbnail_jpeg
from featkit.index import Index
from featkit.models import default_model_path

NUM_IMAGES = 30


def scene(seed: int, *, height: int = 192, width: int = 256) -> Image.Image:
    """Draw spots of all sizes and a few shapes, different for each seed."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for cells in (2, 4, 8, 16, 32):
        spots = rng.uniform(0, 255, (cells * 3 // 4 + 1, cells, 3)).astype(np.uint8)
        grown = Image.fromarray(spots).resize((width, height), Image.Resampling.BICUBIC)
        total += (np.asarray(grown, np.float64) - 128) / cells**0.5
    image = Image.fromarray(np.clip(128 + total, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(3):
        left, top = int(rng.integers(0, width - 40)), int(rng.integers(0, height - 40))
        color = tuple(int(v) for v in rng.integers(0, 256, 3))
        pen.ellipse((left, top, left + int(rng.integers(20, 60)), top + 40), fill=color)
    return image


def copy_of(seed: int, *, number: int = 0) -> Image.Image:
    """Return an edited copy of a scene, as `featkit evaluate copies` makes them."""
    return apply_edits(scene(seed), draw_compound(seed=0, key=str(seed), number=number))


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of 30 scenes, 0.jpg to 29.jpg, and of copies of the first four, copy-0.jpg …"""
    path = tmp_path_factory.mktemp("scenes") / "photos.index"
    images = {f"{seed}.jpg": scene(seed) for seed in range(NUM_IMAGES)}
    images |= {f"copy-{seed}.jpg": copy_of(seed) for seed in range(4)}
    arrays = [np.asarray(image) for image in images.values()]
    with Index.create(path, model=default_model_path()) as made:
        made.add(
            [*images],
            Embedder(threads=1).embed(arrays),
            widths=[image.width for image in images.values()],
            heights=[image.height for image in images.values()],
            thumbnails=[thumbnail_jpeg(array) for array in arrays],
        )
    return path
