"""Promises of reading and embedding: the vectors are the Embedder's, blocks change nothing,
failures are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featkit.embedder import Embedder
from featkit.errors import InputError
from featkit.evaluate import embedding
from featkit.evaluate.embedding import cut, embed_images, read_blocks
from featkit.sources import open_source
from tests.images import draw_folder, draw_image
from tests.sentences import refused


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five images, and two files of other kinds."""
    folder = draw_folder(tmp_path_factory.mktemp("embedding") / "images", 5)
    for name in ("0015.jpg", "zz.jpg"):
        (folder / name).write_bytes(b"no image")
    return folder


def test_vectors_equal_the_embedders_failures_are_named(images: Path, model_file: Path) -> None:
    embedder, failures, seen = Embedder(model_file, threads=1), [("before", "why")], []
    found = embed_images(
        open_source(images),
        embedder,
        int,
        failures,
        on_progress=lambda *counts: seen.append(counts),
    )
    good = [images / f"{number:03d}.jpg" for number in range(5)]
    np.testing.assert_allclose(found.vectors, embedder.embed(good), atol=1e-6)
    assert (found.known, found.pixels.shape) == ([0, 1, 3, 4, 5], (5, 3072))
    assert found.pixels.dtype == np.uint8
    assert [key for key, _ in failures] == ["before", "0015.jpg", "zz.jpg"]
    assert seen[-1] == (7, 2)


def test_what_is_known_is_asked_before_the_image_is_read(images: Path, model_file: Path) -> None:
    def know(number: int) -> str:
        raise InputError(f"{number} says nothing.")

    failures: list[tuple[str, str]] = []
    found = embed_images(open_source(images), Embedder(model_file, threads=1), know, failures)
    assert (len(found), found.vectors.shape, found.pixels.shape) == (0, (0, 16), (0, 3072))
    assert failures[2] == ("0015.jpg", "2 says nothing.")
    assert len(failures) == 7


def test_blocks_hold_so_many_items_and_leave_none_out(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def even(number: int) -> int:
        if number % 2:
            raise InputError("It is odd.")
        return number

    monkeypatch.setattr(embedding, "IMAGES_A_BLOCK", 3)
    failures: list[tuple[str, str]] = []
    assert list(read_blocks(open_source(images), even, failures)) == [[0, 2, 4], [6]]
    assert [why for _, why in failures] == ["It is odd."] * 3


def test_a_box_is_in_the_pixels_of_the_whole_image(tmp_path: Path, model_file: Path) -> None:
    # So large that it would be decoded at a quarter, were all of it looked at.
    large = draw_image(3).resize((1600, 1200))
    large.save(tmp_path / "a.jpg", quality=95)
    embedder = Embedder(model_file, threads=1)
    found = embed_images(
        open_source(tmp_path), embedder, int, [], box=lambda _: (400.4, 299.6, 1000.0, 900.0)
    )
    expected = embedder.infer(embedder.geometry.apply(np.asarray(large)[300:900, 400:1000])[None])
    assert float((found.vectors @ expected.T).item()) > 0.999
    assert float((found.vectors @ embedder.embed(tmp_path / "a.jpg").T).item()) < 0.999


def test_boxes_are_clipped_and_refused_outside_the_image() -> None:
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    np.testing.assert_array_equal(cut(pixels, (-3, 1, 2.4, 99), name="a"), pixels[1:, :2])
    with refused("a.jpg has 6×4 pixels", "box 6, 0, 9, 4"):
        cut(pixels, (6, 0, 9, 4), name="a.jpg")
