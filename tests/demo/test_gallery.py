"""The sample gallery is reproducible, and every kind can be drawn."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featkit_demo.gallery import (
    NUM_VIEWS,
    OBJECTS,
    SCENES,
    TEXTURES,
    draw_gallery,
    draw_views,
    encode,
)

ALL_KINDS = [
    (group, kind)
    for group, table in (("objects", OBJECTS), ("scenes", SCENES), ("textures", TEXTURES))
    for kind in table
]


def test_gallery_has_the_same_bytes_for_the_same_seed(tmp_path: Path) -> None:
    kinds = ["mug", "marble", "lake"]
    first = draw_gallery(tmp_path / "a", kinds=kinds, num_instances=1)
    second = draw_gallery(tmp_path / "b", kinds=kinds, num_instances=1)
    assert [file.relative_to(tmp_path / "a") for file in first] == [
        file.relative_to(tmp_path / "b") for file in second
    ]
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]


def test_gallery_is_labeled_by_folder_and_reports_every_image(tmp_path: Path) -> None:
    counts: list[tuple[int, int]] = []
    files = draw_gallery(
        tmp_path,
        kinds=["apple", "tiles"],
        num_instances=1,
        on_progress=lambda *now: counts.append(now),
    )
    names = [file.relative_to(tmp_path).as_posix() for file in files]
    assert names == sorted(names)
    assert names[0] == "objects/apple/apple-1-close.jpg"
    assert {name.rsplit("/", 1)[0] for name in names} == {"objects/apple", "textures/tiles"}
    assert counts == [(k, 2 * NUM_VIEWS) for k in range(1, 2 * NUM_VIEWS + 1)]
    assert [path for path in tmp_path.rglob("*") if ".partial" in path.name] == []


def test_seeds_and_instances_differ() -> None:
    def front(instance: int, seed: int) -> np.ndarray:
        return np.asarray(draw_views("objects", "mug", instance, seed=seed)[0][1], dtype=np.float32)

    base = front(0, 0)
    assert np.abs(base - front(1, 0)).mean() > 5
    assert np.abs(base - front(0, 1)).mean() > 5


@pytest.mark.parametrize(("group", "kind"), ALL_KINDS)
def test_every_kind_fills_the_image_with_structure(group: str, kind: str) -> None:
    (view, image), *others = draw_views(group, kind, 0)
    pixels = np.asarray(image, dtype=np.float32)
    assert (image.size, len(others) + 1, view) == (
        (480, 360),
        NUM_VIEWS,
        {"objects": "front", "scenes": "day", "textures": "flat"}[group],
    )
    coarse = np.asarray(image.resize((24, 18), Image.Resampling.BOX), dtype=np.float32)
    assert coarse.std() > 9  # structure that remains when averaging removes the grain
    black = (pixels.max(axis=2) < 8).mean()
    assert black < 0.02, "the edge of a swatch is visible"


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such kinds: unicorn"):
        draw_gallery(tmp_path, kinds=["unicorn"])


def test_encoded_images_are_small_jpegs() -> None:
    data = encode(draw_views("objects", "fish", 0)[0][1])
    assert Image.open(io.BytesIO(data)).format == "JPEG"
    assert len(data) < 80_000
