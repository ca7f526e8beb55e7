"""The command `featkit calibrate`, and what searches say from then on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from featkit.index import Index
from featkit_demo.gallery import draw_gallery
from tests.commands import run_featkit
from tests.featkit.index.conftest import unit_vectors
from tests.images import draw_image


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 24 drawn images in `photos`, and their index in `i`."""
    folder = tmp_path_factory.mktemp("calibrate")
    draw_gallery(folder / "photos", kinds=("mug", "fish", "tiles", "lake"), num_instances=2)
    assert run_featkit("sync", folder / "photos", folder / "i", "--quiet").code == 0
    return folder


def test_a_new_index_says_what_its_scores_mean(gallery: Path) -> None:
    query = gallery / "photos" / "objects" / "mug" / "mug-1-front.jpg"
    said = run_featkit("search", gallery / "i", query, "--json", "-k", "24")
    meanings = [hit["meaning"] for hit in json.loads(said.out)]
    assert meanings[0] == "copy"
    assert meanings[-1] == "unrelated"
    assert meanings == sorted(meanings, key=["copy", "similar", "unrelated"].index)
    said = run_featkit("search", gallery / "i", query)
    assert "meaning" in said.out
    assert "Nothing close" not in said.out


def test_a_query_like_nothing_is_said_so(gallery: Path, tmp_path: Path) -> None:
    draw_image(5).save(tmp_path / "noise.jpg")
    said = run_featkit("search", gallery / "i", tmp_path / "noise.jpg")
    assert "Nothing close: even the first is unrelated." in said.out


def test_the_levels_are_printed(gallery: Path) -> None:
    said = run_featkit("calibrate", gallery / "i", "--quiet")
    assert said.code == 0, said.error
    assert "means a copy" in " ".join(said.out.split())
    assert "Measured on 24 of 24 images." in " ".join(said.out.split())
    said = run_featkit("calibrate", gallery / "i", "--json")
    facts = json.loads(said.out)
    assert 0 < facts["similar"] <= facts["copy"] <= 1


def test_an_index_without_thumbnails_is_refused(gallery: Path, tmp_path: Path) -> None:
    with Index.create(tmp_path / "i", model=gallery / "i" / "model.onnx") as index:
        index.add([f"{i}.jpg" for i in range(30)], unit_vectors(30, width=index.width))
    said = run_featkit("calibrate", tmp_path / "i")
    assert said.code == 2
    assert "has 0 images with thumbnails" in said.error
