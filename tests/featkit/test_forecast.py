"""A forecast from a sample comes near what embedding all images costs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featkit.embedder import Embedder
from featkit.forecast import forecast, runs
from featkit.pipeline import embed_source
from featkit.sources import open_source
from tests.images import draw_folder
from tests.sentences import refused


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_folder(tmp_path_factory.mktemp("forecast") / "photos", 60)


def test_bytes_of_all_follow_from_a_sample(photos: Path, tmp_path: Path) -> None:
    source, embedder = open_source(photos), Embedder(threads=1)
    found = forecast(source, embedder, out=tmp_path / "a" / "b", num_sampled=30)
    assert (found.num_images, found.num_sampled, found.num_failed) == (60, 30, 0)
    true_bytes = sum(path.stat().st_size for path in photos.iterdir())
    assert found.source_bytes == pytest.approx(true_bytes, rel=0.2)
    embed_source(source, embedder, tmp_path / "emb")
    written = sum(path.stat().st_size for path in (tmp_path / "emb").rglob("*.parquet"))
    assert found.embeddings_bytes == pytest.approx(written, rel=0.4)
    assert found.embeddings_bytes < found.index_bytes < found.free_bytes
    assert found.fits
    assert found.embed_seconds == pytest.approx(60 / found.images_per_s)
    assert found.search.kind is None


def test_unreadable_images_are_counted(photos: Path, tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"{number:03}.jpg").write_bytes(
            b"no image" if number % 2 else (next(photos.iterdir())).read_bytes()
        )
    found = forecast(open_source(tmp_path), Embedder(threads=1), out=tmp_path, num_sampled=100)
    assert (found.num_sampled, found.num_failed) == (40, 20)
    assert found.search.num_items == 20


def test_sources_without_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "0.jpg").write_bytes(b"no image")
    with refused("None of 1 sampled images of", "can be read; the first is 0.jpg"):
        forecast(open_source(tmp_path), Embedder(threads=1), out=tmp_path)


@pytest.mark.parametrize(("count", "most"), [(5, 10), (10, 10), (1000, 128), (130, 128), (50, 3)])
def test_runs_are_spread_over_the_source(count: int, most: int) -> None:
    numbers = runs(count, most=most)
    assert numbers == sorted(set(numbers))
    assert numbers[0] >= 0
    assert 0.6 * count <= numbers[-1] < count
    assert min(count, most) / 2 <= len(numbers) <= most
    assert max(np.diff(numbers), default=0) <= 2 * count / min(8, len(numbers)) + 1
