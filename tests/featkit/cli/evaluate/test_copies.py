"""The command `featkit evaluate copies`: a table for people, JSON for machines, one sentence where
nothing can be measured."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featkit.cli.app import main
from featkit.embedder import Embedder
from featkit.evaluate import CopiesReport, evaluate_copies
from featkit.sources import open_source, subset
from tests.images import draw_folder
from tests.model_files import make_model_file

COUNT = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`images`, one of them unreadable, and a model file `m.onnx`."""
    folder = tmp_path_factory.mktemp("evaluate")
    images = draw_folder(folder / "images", COUNT)
    (images / "bad.jpg").write_bytes(b"no image")
    make_model_file(folder / "m.onnx")
    return folder


def expected(folder: Path, *, seed: int) -> CopiesReport:
    """Return the library's report."""
    return evaluate_copies(open_source(folder / "images"), Embedder(folder / "m.onnx"), seed=seed)


def test_evaluate_prints_each_method_and_each_edit(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(
            [
                "evaluate",
                "copies",
                str(folder / "images"),
                "--model",
                str(folder / "m.onnx"),
                "--quiet",
            ]
        )
        == 0
    )
    said = capsys.readouterr()
    assert said.err == ""
    lines = [line.rstrip() for line in said.out.splitlines()]
    report = expected(folder, seed=0)
    assert lines[0] == "Copies among 4 images (edits v1, seed 0)"
    for number, score in enumerate(report.methods):
        figures = (
            score.recall_at_1,
            *score.interval,
            score.recall_at_10,
            score.mean_average_precision,
        )
        shown = lines[2 + number].replace(" – ", " ").split()
        assert " ".join(shown[:-5]) == score.name
        assert shown[-5:] == [f"{figure:.3f}" for figure in figures]
    singles = lines.index("recall@1 of each edit by itself")
    assert lines[singles + 1].split() == [
        "method",
        "crop",
        "rotate",
        "flip",
        "color",
        "jpeg",
        "blur",
        "text",
    ]
    assert lines[singles + 2].split() == [
        "test-0",
        *(f"{value:.3f}" for value in report.model.single.values()),
    ]
    left_out = lines.index("Left out")
    assert lines[left_out + 2 :] == [
        "bad.jpg  bad.jpg is not an image in a format that can be read."
    ]


def test_evaluate_as_json_equals_the_library(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "evaluate",
        "copies",
        str(folder / "images"),
        "--model",
        str(folder / "m.onnx"),
        "--seed",
        "5",
        "--json",
    ]
    assert main(command) == 0
    said = capsys.readouterr()
    assert said.err == ""
    figures = json.loads(said.out)
    assert figures == json.loads(json.dumps(asdict(expected(folder, seed=5))))
    assert [failure[0] for failure in figures["failures"]] == ["bad.jpg"]


def test_a_column_is_chosen(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [file.read_bytes() for file in sorted((folder / "images").glob("0*.jpg"))]
    columns = {"image": pa.array([b"no image"] * COUNT), "photo": pa.array(images)}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    command = [
        "evaluate",
        "copies",
        str(tmp_path / "t.parquet"),
        "--model",
        str(folder / "m.onnx"),
        "--json",
    ]
    assert main([*command, "--column", "photo"]) == 0
    assert json.loads(capsys.readouterr().out)["num_images"] == COUNT
    assert main(command) == 2
    assert "has 0 readable images" in capsys.readouterr().err


def test_evaluate_of_the_last_images_leaves_the_others_out(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # In the order of keys the unreadable one is the last.
    command = [
        "evaluate",
        "copies",
        str(folder / "images"),
        "--model",
        str(folder / "m.onnx"),
        "--json",
        "--last",
    ]
    assert main([*command, "3"]) == 0
    figures = json.loads(capsys.readouterr().out)
    source = subset(open_source(folder / "images"), [2, 3])
    alone = evaluate_copies(source, Embedder(folder / "m.onnx"))
    assert figures["num_images"] == 2
    assert figures["methods"] == json.loads(json.dumps([asdict(score) for score in alone.methods]))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none", "--model", "m.onnx"], "none does not exist"),
        (["images", "--model", "none.onnx"], "none.onnx does not exist"),
        (["images", "--model", "m.onnx", "--last", "0"], "--last is 0; it has to be 1 or more."),
        (
            ["images", "--model", "m.onnx", "--last", "-3"],
            "--last is -3; it has to be 1 or more.",
        ),
        (["images/bad.jpg", "--model", "m.onnx"], "0 readable images"),
        (["images/000.jpg", "--model", "m.onnx"], "1 readable images"),
    ],
)
def test_what_cannot_be_measured_ends_with_2_and_one_sentence(
    folder: Path,
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    assert main(["evaluate", "copies", *arguments]) == 2
    said = capsys.readouterr()
    assert words in said.err
    assert (said.out, said.err.count("\n")) == ("", 1)
