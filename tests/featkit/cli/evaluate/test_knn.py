"""The command `featkit evaluate knn`: its table and its JSON say what the library says, and
mistakes are one sentence."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featkit.embedder import Embedder
from featkit.evaluate import evaluate_knn
from featkit.sources import open_source
from tests.commands import is_one_sentence, run_featkit
from tests.featkit.evaluate.labeled import write_kinds_parquet, write_kinds_tar


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A training tar, and a Parquet file with a label that the tar lacks and a row without one."""
    folder = tmp_path_factory.mktemp("knn")
    return (
        write_kinds_tar(folder / "a.tar", [0, 1] * 4),
        write_kinds_parquet(folder / "b.parquet", [0, 1, None, 2]),
    )


def test_it_prints_each_method_and_every_choice(parts: tuple[Path, Path], model: Path) -> None:
    said = run_featkit("evaluate", "knn", *parts, "--model", model, "--k", 3, "--k", 20, "--quiet")
    assert (said.code, said.error) == (0, "")
    lines = [line.rstrip() for line in said.out.splitlines()]
    report = evaluate_knn(open_source(parts[0]), open_source(parts[1]), Embedder(model), ks=(3, 20))
    assert lines[0] == "3 images of 3 labels by neighbors among 8"
    for line, score in zip(lines[2:6], report.scores, strict=True):
        figures = [f"{figure:.3f}" for figure in (score.weighted, *score.interval, score.majority)]
        assert line.replace(" – ", " ").split() == [*score.name.split(), str(score.k), *figures]
    assert lines[6].split() == ["most", "frequent", "label", "0.333"]
    assert (
        "Labels: the column class, and label for the test images. The weight of a vote is"
        " exp(cosine / 0.07)." in lines
    )
    assert "Test images whose label is not in the training set: 1." in lines
    assert lines[-1] == "b.parquet/2  b.parquet/2 has no value in the column label."


def test_a_column_is_chosen_of_the_part_that_has_it(
    parts: tuple[Path, Path], model: Path, tmp_path: Path
) -> None:
    table = pq.read_table(parts[1])
    images = [row["bytes"] for row in table["image"].to_pylist()]
    blank = pa.array([b"no image"] * len(images))
    pq.write_table(
        pa.table({"image": blank, "photo": images, "label": table["label"]}),
        tmp_path / "c.parquet",
    )
    command = ["evaluate", "knn", parts[0], tmp_path / "c.parquet", "--model", model, "--json"]
    said = run_featkit(*command, "--column", "photo")
    assert said.code == 0
    assert (
        said.error == "Images are read from the column photo; --column can choose image instead.\n"
    )
    whole = json.loads(run_featkit("evaluate", "knn", *parts, "--model", model, "--json").out)
    assert json.loads(said.out)["scores"] == whole["scores"]
    said = run_featkit("evaluate", "knn", parts[0], parts[0], "--model", model, "--column", "photo")
    assert is_one_sentence(said)
    assert "--column photo applies to Parquet files and data sets only, and " in said.error


def test_json_equals_the_library(parts: tuple[Path, Path], model: Path) -> None:
    said = run_featkit(
        "evaluate",
        "knn",
        *parts,
        "--model",
        model,
        "--label",
        "label",
        "--temperature",
        0.5,
        "--limit",
        2,
        "--json",
    )
    assert (said.code, said.error) == (0, "")
    found = json.loads(said.out)
    # rows 0 and 2, which has no label
    assert (found["num_train"], found["num_test"], found["temperature"]) == (2, 1, 0.5)
    whole = json.loads(run_featkit("evaluate", "knn", *parts, "--model", model, "--json").out)
    library = evaluate_knn(open_source(parts[0]), open_source(parts[1]), Embedder(model))
    assert whole == json.loads(json.dumps(asdict(library)))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--k", "0"], "--k is 0; it has to be 1 or more."),
        (["--temperature", "0"], "--temperature is 0.0; it has to be above 0"),
        (["--limit", "0"], "--limit is 0; it has to be 1 or more."),
        (["--label", "kind"], "has no column kind, only folder, class"),
        (["--model", "none.onnx"], "none.onnx does not exist"),
    ],
)
def test_a_mistake_is_one_sentence(
    parts: tuple[Path, Path], model: Path, arguments: list[str], words: str
) -> None:
    chosen = arguments if "--model" in arguments else [*arguments, "--model", str(model)]
    said = run_featkit("evaluate", "knn", *parts, *chosen)
    assert said.code == 2
    assert is_one_sentence(said)
    assert words in said.error
