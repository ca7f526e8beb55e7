"""Damage of each part is found, named, and repaired as far as possible."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from featkit.index import Index
from featkit.index.approximate.building import compact
from featkit.index.approximate.generation import FOLDER
from featkit.index.checking import CATALOGUE, CODES, THUMBNAILS, VECTORS, check
from featkit.index.repairing import repair
from featkit.syncing import sync
from tests.featkit.syncing.conftest import draw
from tests.model_files import make_model_file

WIDTH = 16


@pytest.fixture(scope="module")
def synced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 60 images in `photos`, their index in `i`, and its graph."""
    folder = tmp_path_factory.mktemp("synced")
    for seed in range(60):
        draw(folder / "photos" / f"{seed:02}.png", seed)
    model = make_model_file(folder / "m.onnx", width=WIDTH)
    sync(folder / "photos", folder / "i", model=model)
    with Index.open(folder / "i") as index:
        compact(index, allow_low_recall=True)
    return folder


@pytest.fixture
def index(synced: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(synced / "i", tmp_path / "i"))


def parts(path: Path) -> list[str]:
    with Index.open(path) as opened:
        return [problem.part for problem in check(opened).problems]


def overwrite(path: Path, row: int, vector: np.ndarray) -> None:
    with (path / "vectors.f32").open("r+b") as file:
        file.seek(row * WIDTH * 4)
        file.write(vector.astype("<f4").tobytes())


def test_a_sound_index_has_no_problems(index: Path) -> None:
    seen: list[tuple[int, int]] = []
    with Index.open(index) as opened:
        report = check(opened, on_progress=lambda *counts: seen.append(counts))
    assert (report.problems, report.num_items, report.num_sampled) == ([], 60, 60)
    assert seen == [(60, 0)]


@pytest.mark.parametrize("kind", ["other vector", "zeros", "nan"])
def test_a_damaged_vector_is_found_removed_and_embedded_again(
    index: Path, synced: Path, kind: str
) -> None:
    # row 5 of 60 is not among those that opening an index samples
    vector = {
        "other vector": np.eye(WIDTH)[0],
        "zeros": np.zeros(WIDTH),
        "nan": np.full(WIDTH, np.nan),
    }
    with Index.open(index) as opened:
        before = opened.vector(opened.item_by_key("05.png").id)
        overwrite(index, 5, vector[kind])
        report = check(opened)
    (problem,) = [each for each in report.problems if each.part == VECTORS]
    assert (problem.keys, problem.num_keys) == (("05.png",), 1)
    assert report.damaged == ["05.png"]
    with Index.open(index, writable=True) as opened:
        assert "removed 1 image with a damaged vector" in repair(opened, report).done[0]
        assert "05.png" not in opened
    assert sync(synced / "photos", index).num_new == 1
    assert VECTORS not in parts(index)
    with Index.open(index) as opened:
        again = opened.vector(opened.item_by_key("05.png").id)
    np.testing.assert_allclose(again, before, atol=1e-5)


def test_thumbnails_of_other_images_are_found(index: Path) -> None:
    with Index.open(index, writable=True) as opened:
        items = opened.items(limit=60)
        vectors = np.stack([opened.vector(item.id) for item in items])
        thumbnails = [opened.thumbnail(item.id) for item in items]
        opened.add([item.key for item in items], vectors[::-1].copy(), thumbnails=thumbnails)
    assert parts(index) == [THUMBNAILS]


def test_thumbnails_that_are_no_images_are_found(index: Path) -> None:
    with Index.open(index, writable=True) as opened:
        vector = opened.vector(0)[None]
        opened.add(["00.png"], vector, thumbnails=[b"no jpeg"])
        problems = check(opened).problems
    assert [problem.part for problem in problems] == [THUMBNAILS]
    assert problems[0].keys == ("00.png",)


def test_a_damaged_graph_is_found_and_built_again(index: Path) -> None:
    (graph,) = (index / FOLDER).glob("*.faiss")
    graph.write_bytes(graph.read_bytes()[:-10])
    assert parts(index) == [CODES]
    with Index.open(index, writable=True) as opened:
        report = check(opened)
        assert "approximate is damaged" in report.problems[0].sentence


def test_damaged_pages_of_the_catalogue_are_found(index: Path) -> None:
    connection = sqlite3.connect(index / "catalogue.sqlite")
    (page,) = connection.execute(
        "SELECT rootpage FROM sqlite_master WHERE name = 'thumbnails'"
    ).fetchone()
    (size,) = connection.execute("PRAGMA page_size").fetchone()
    connection.close()
    with (index / "catalogue.sqlite").open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)
    assert CATALOGUE in parts(index)
