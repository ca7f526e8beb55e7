"""The command `featkit evaluate retrieval`, by groups and by the protocol of ROxford and RParis."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from featkit.embedder import Embedder
from featkit.evaluate import evaluate_groups, evaluate_revisited, read_ground_truth
from featkit.sources import open_source
from tests.commands import is_one_sentence, run_featkit
from tests.featkit.evaluate.labeled import write_kinds_folder
from tests.images import draw_folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six squares of three kinds, one kind with one image, and a file that is not an image."""
    folder = write_kinds_folder(tmp_path_factory.mktemp("groups") / "photos", [0, 0, 0, 1, 1, 2])
    (folder / "red" / "bad.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def landmarks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`jpg` with six images, one of them unreadable, and gnd.json, in which 000 and 001 are
    queries."""
    folder = tmp_path_factory.mktemp("landmarks")
    images = draw_folder(folder / "jpg", 6)
    (images / "004.jpg").write_bytes(b"no image")
    truth = {"easy": [0], "hard": [1], "junk": [3], "bbx": [0, 0, 40, 40]}
    value = {
        "imlist": ["002", "003", "004", "005"],
        "qimlist": ["000", "001"],
        "gnd": [truth, truth],
    }
    (folder / "gnd.json").write_text(json.dumps(value))
    return folder


def test_groups_are_printed_with_every_choice(photos: Path, model: Path) -> None:
    said = run_featkit(
        "evaluate", "retrieval", photos, "--group", "folder", "--model", model, "--quiet"
    )
    assert (said.code, said.error) == (0, "")
    lines = [line.rstrip() for line in said.out.splitlines()]
    report = evaluate_groups(open_source(photos), Embedder(model), group="folder")
    assert lines[0] == "5 queries among 6 images of 3 groups"
    assert lines[1].split()[-3:] == ["recall@1", "recall@5", "recall@10"]
    for line, score in zip(lines[2:5], report.scores, strict=True):
        figures = (score.mean_average_precision, *score.interval, *score.recall.values())
        assert line.replace(" – ", " ").split() == [
            *score.name.split(),
            *(f"{figure:.3f}" for figure in figures),
        ]
    assert lines[5].startswith(
        "Groups are the column folder; each image is a query against all others."
    )
    assert "Not counted: 1 query whose group has no other image." in lines
    assert lines[-1].startswith("red/bad.png  ")


def test_queries_may_lie_apart_and_json_equals_the_library(
    photos: Path, model: Path, tmp_path: Path
) -> None:
    queries = write_kinds_folder(tmp_path / "queries", [2, 1], seed=300)
    said = run_featkit(
        "evaluate",
        "retrieval",
        photos,
        "--group",
        "folder",
        "--queries",
        queries,
        "--model",
        model,
        "--json",
    )
    library = evaluate_groups(
        open_source(photos), Embedder(model), group="folder", queries=open_source(queries)
    )
    assert (said.code, said.error) == (0, "")
    assert json.loads(said.out) == json.loads(json.dumps(asdict(library)))


def test_the_protocol_is_printed_with_every_choice(landmarks: Path, model: Path) -> None:
    command = [
        "evaluate",
        "retrieval",
        landmarks / "jpg",
        "--protocol",
        "revisited",
        "--ground-truth",
        landmarks / "gnd.json",
    ]
    said = run_featkit(*command, "--model", model, "--quiet")
    assert (said.code, said.error) == (0, "")
    lines = [line.rstrip() for line in said.out.splitlines()]
    truth = read_ground_truth(landmarks / "gnd.json")
    report = evaluate_revisited(open_source(landmarks / "jpg"), truth, Embedder(model))
    assert lines[0] == "2 queries among 4 images, revisited"
    assert [line.split()[-6] for line in lines[2:8]] == ["easy", "medium", "hard"] * 2
    medium = report.scores[0].setups["medium"]
    figures = [
        f"{figure:.3f}" for figure in (medium.mean_average_precision, *medium.precision.values())
    ]
    assert lines[3].split() == ["test-0", "medium", "2", *figures]
    text = " ".join(lines)
    for choice in (
        "trapezoid",
        "cropped to their box",
        "resized to 32×32",
        "rank last",
        "junk (Medium)",
    ):
        assert choice in text
    assert lines[-1].startswith("004.jpg  ")
    as_json = run_featkit(*command, "--model", model, "--json")
    assert json.loads(as_json.out) == json.loads(json.dumps(asdict(report)))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "either --group COLUMN, or --protocol revisited"),
        (["--protocol", "revisited"], "either --group COLUMN, or --protocol revisited"),
        (["--ground-truth", "gnd.json"], "either --group COLUMN, or --protocol revisited"),
        (
            ["--group", "folder", "--protocol", "revisited", "--ground-truth", "gnd.json"],
            "either --group",
        ),
        (
            ["--protocol", "revisited", "--ground-truth", "gnd.json", "--limit", "3"],
            "leave out --queries and --limit",
        ),
        (["--protocol", "revisited", "--ground-truth", "none.json"], "none.json cannot be read"),
        (["--group", "folder"], "has no column folder"),
    ],
)
def test_a_mistake_is_one_sentence(
    landmarks: Path, model: Path, arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(landmarks)
    said = run_featkit("evaluate", "retrieval", "jpg", "--model", model, *arguments)
    assert (said.code, is_one_sentence(said)) == (2, True)
    assert words in said.error
