"""The commands `featkit list` and `featkit remove`, and filters of `featkit search`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from featkit.embedder import Embedder
from featkit.index import Index
from tests.commands import run_featkit
from tests.images import draw_folder
from tests.model_files import make_model_file

WIDE = "width > height"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model file and six images."""
    folder = tmp_path_factory.mktemp("drawn")
    draw_folder(folder / "images", 6)
    make_model_file(folder / "m.onnx")
    return folder


@pytest.fixture
def index(drawn: Path, tmp_path: Path) -> Path:
    """An index of the images 000.jpg to 005.jpg; every second one is wide and has a label."""
    path = tmp_path / "photos.index"
    images = sorted((drawn / "images").iterdir())
    with Index.create(path, model=drawn / "m.onnx") as made:
        made.add(
            [image.name for image in images],
            Embedder(drawn / "m.onnx").embed(images),
            widths=[640, 480] * 3,
            heights=[480, 640] * 3,
            metadata=[{"label": "a"}, {}] * 3,
        )
    return path


def test_list_prints_items_and_how_many_there_are(index: Path) -> None:
    code, out, _ = run_featkit("list", index, "--limit", 2)
    assert code == 0
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines == [
        "id image size metadata",
        "0 000.jpg 640×480 label=a",
        "1 001.jpg 480×640",
        "2 of 6 images shown.",
    ]
    code, out, _ = run_featkit("list", index, "--where", WIDE, "--offset", 2)
    assert "004.jpg" in out
    assert out.splitlines()[-1] == "1 of 3 images that match shown."
    code, out, _ = run_featkit("list", index, "--where", "label = 'b'")
    assert (code, out) == (0, "0 of 0 images that match shown.\n")


def test_list_prints_json(index: Path) -> None:
    code, out, _ = run_featkit("list", index, "--where", WIDE, "--json", "--limit", 1)
    assert code == 0
    answer = json.loads(out)
    assert answer["items"][0].pop("added").startswith("20")
    assert answer == {
        "total": 3,
        "items": [
            {
                "id": 0,
                "key": "000.jpg",
                "source": "",
                "width": 640,
                "height": 480,
                "metadata": {"label": "a"},
            }
        ],
    }


def test_search_prints_hits_that_match(index: Path, drawn: Path) -> None:
    query = drawn / "images" / "001.jpg"
    code, out, _ = run_featkit("search", index, query, "--where", WIDE)
    assert code == 0
    assert out.splitlines()[0] == "3 images of 6 match."
    assert all(f"00{i}.jpg" in out for i in (0, 2, 4))
    assert "003.jpg" not in out
    code, out, _ = run_featkit("search", index, query, "--where", WIDE, "--json", "-k", 2)
    assert [hit["width"] for hit in json.loads(out)] == [640, 640]


@pytest.mark.parametrize("command", ["list", "remove", "search"])
def test_a_wrong_filter_is_one_sentence(index: Path, drawn: Path, command: str) -> None:
    query = [drawn / "images" / "001.jpg"] if command == "search" else []
    code, out, error = run_featkit(command, index, *query, "--where", "widhh > 5")
    assert (code, out) == (2, "")
    assert error == (
        "featkit: The filter `widhh > 5` is wrong at column 1: there is no column 'widhh'; did you"
        " mean width?\n"
    )


def test_remove_takes_keys_and_a_filter(index: Path) -> None:
    code, out, error = run_featkit("remove", index, "001.jpg", "x\n.jpg", "--where", WIDE)
    assert code == 0
    assert out == f"4 images removed; {index} holds 2 images.\n"
    assert error == f"featkit: {index} has no x\\n.jpg.\n"
    with Index.open(index) as opened:
        assert [item.key for item in opened.items()] == ["003.jpg", "005.jpg"]
    code, out, _ = run_featkit("remove", index, "003.jpg", "--json")
    assert json.loads(out) == {
        "removed": ["003.jpg"],
        "unknown": [],
        "items": 1,
        "dry_run": False,
    }


def test_remove_changes_nothing_in_a_dry_run(index: Path) -> None:
    code, out, _ = run_featkit("remove", index, "--where", WIDE, "--dry-run")
    assert code == 0
    assert "Would be removed" in out
    assert out.splitlines()[-1] == f"3 images would be removed; {index} would hold 3 images."
    with Index.open(index) as opened:
        assert len(opened) == 6


def test_remove_needs_to_know_what(index: Path) -> None:
    code, _, error = run_featkit("remove", index)
    assert code == 2
    assert "takes keys or --where" in error


def test_several_images_are_one_query(index: Path, drawn: Path) -> None:
    images = [drawn / "images" / f"00{i}.jpg" for i in (0, 1, 2)]
    code, out, _ = run_featkit(
        "search", index, *images[:2], "--minus", images[2], "--json", "-k", 6
    )
    assert code == 0
    vectors = Embedder(drawn / "m.onnx").embed(images).astype(float)
    query = vectors[0] + vectors[1] - vectors[2]
    query /= (query**2).sum() ** 0.5
    scores = {hit["key"]: hit["score"] for hit in json.loads(out)}
    for i in range(3):
        assert scores[f"00{i}.jpg"] == pytest.approx(float(vectors[i] @ query), abs=1e-5)
    code, out, _ = run_featkit("search", index, *images[:2], "--minus", images[2])
    title = f"Most similar to {images[0]}, {images[1]}, minus {images[2]}"
    assert " ".join(title.split()) in " ".join(out.split())


def test_search_leaves_out_low_scores(index: Path, drawn: Path) -> None:
    image = drawn / "images" / "003.jpg"
    code, out, _ = run_featkit("search", index, image, "--min-score", 0.9999, "--json")
    assert (code, [hit["key"] for hit in json.loads(out)]) == (0, ["003.jpg"])
    code, out, _ = run_featkit("search", index, image, "--rerank", 100, "--json")
    assert (code, json.loads(out)[0]["key"]) == (0, "003.jpg")
    code, _, error = run_featkit("search", index, image, "--diversity", 2)
    assert (code, "diversity is 2.0; it must be from 0 to 1" in error) == (2, True)
