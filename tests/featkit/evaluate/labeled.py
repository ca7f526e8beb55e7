"""Small labeled sources: colored squares, whose kind is their color, in each layout that labels
come in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.featkit.sources.files import write_tar
from tests.image_files import encoded

COLORS = {0: (220, 40, 40), 1: (40, 200, 60), 2: (50, 60, 220)}
KINDS = {0: "red", 1: "green", 2: "blue"}


def draw_square(kind: int, *, seed: int, side: int = 24) -> Image.Image:
    """A square of the kind's color with some noise."""
    rng = np.random.default_rng([seed, kind])
    noise = rng.normal(0, 30, (side, side, 3))
    return Image.fromarray(np.clip(np.array(COLORS[kind]) + noise, 0, 255).astype(np.uint8))


def write_kinds_tar(path: Path, kinds: list[int], *, seed: int = 0) -> Path:
    """WebDataset: `red/0.png` and `red/0.cls`, which holds 0."""
    members = []
    for number, kind in enumerate(kinds):
        name = f"{KINDS[kind]}/{number}"
        members += [
            (f"{name}.png", encoded(draw_square(kind, seed=seed + number))),
            (f"{name}.cls", str(kind).encode()),
        ]
    return write_tar(path, members)


def write_kinds_parquet(path: Path, kinds: list[int | None], *, seed: int = 100) -> Path:
    """Hugging Face's layout: `image` and `label`, a number or nothing."""
    images = [
        {"bytes": encoded(draw_square(kind or 0, seed=seed + number)), "path": None}
        for number, kind in enumerate(kinds)
    ]
    pq.write_table(pa.table({"image": images, "label": pa.array(kinds, pa.int64())}), path)
    return path


def write_kinds_folder(folder: Path, kinds: list[int], *, seed: int = 200) -> Path:
    """ImageFolder: `red/0.png`."""
    for number, kind in enumerate(kinds):
        file = folder / KINDS[kind] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        draw_square(kind, seed=seed + number).save(file)
    return folder
