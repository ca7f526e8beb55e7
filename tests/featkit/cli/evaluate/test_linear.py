"""The command `featkit evaluate linear`: its tables and its JSON say what the library says."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from featkit.embedder import Embedder
from featkit.errors import EnvironmentProblem
from featkit.evaluate import LinearReport, evaluate_linear
from featkit.sources import open_source
from tests.commands import is_one_sentence, run_featkit
from tests.featkit.evaluate.labeled import write_kinds_folder, write_kinds_parquet, write_kinds_tar


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A training tar and a Parquet file."""
    folder = tmp_path_factory.mktemp("linear")
    return write_kinds_tar(folder / "a.tar", [0, 1, 2] * 5), write_kinds_parquet(
        folder / "b.parquet", [0, 1, 2, 1]
    )


def expected(parts: tuple[Path, Path], model: Path, *, seed: int = 0) -> LinearReport:
    """Return the library's report."""
    return evaluate_linear(open_source(parts[0]), open_source(parts[1]), Embedder(model), seed=seed)


def test_it_prints_each_method_what_was_tried_and_every_choice(
    parts: tuple[Path, Path], model: Path
) -> None:
    said = run_featkit("evaluate", "linear", *parts, "--model", model, "--quiet")
    assert (said.code, said.error) == (0, "")
    lines = [line.rstrip() for line in said.out.splitlines()]
    report = expected(parts, model)
    assert lines[0] == "4 images of 3 labels by a classifier fitted to 15"
    for line, score in zip(lines[2:4], report.scores, strict=True):
        figures = [f"{figure:.3f}" for figure in (score.accuracy, *score.interval)]
        assert line.replace(" – ", " ").split() == [*score.name.split(), *figures, f"{score.l2:g}"]
    assert lines[4].split() == ["most", "frequent", "label", "0.250"]
    assert lines[5] == "Accuracy on 3 training images held out (seed 0), by l2"
    assert lines[6].split() == ["method", "0.0001", "0.001", "0.01", "0.1", "1", "10"]
    for line, score in zip(lines[7:9], report.scores, strict=True):
        assert line.split() == [*score.name.split(), *(f"{share:.3f}" for share in score.held_out)]
    assert "Features are standardized on the training images." in said.out


def test_json_equals_the_library(parts: tuple[Path, Path], model: Path) -> None:
    said = run_featkit("evaluate", "linear", *parts, "--model", model, "--seed", 3, "--json")
    assert (said.code, said.error) == (0, "")
    assert json.loads(said.out) == json.loads(json.dumps(asdict(expected(parts, model, seed=3))))


def test_one_label_is_refused_in_one_sentence(tmp_path: Path, model: Path) -> None:
    folder = write_kinds_folder(tmp_path / "one", [0, 0])
    said = run_featkit("evaluate", "linear", folder, folder, "--model", model)
    assert (said.code, is_one_sentence(said)) == (2, True)
    assert "has the single label red" in said.error


def test_without_scikit_learn_it_says_what_to_install(
    parts: tuple[Path, Path], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    said = run_featkit("evaluate", "linear", *parts, "--model", model)
    assert (said.code, is_one_sentence(said)) == (EnvironmentProblem.exit_code, True)
    assert "sklearn is not installed" in said.error
    assert "pip install 'featkit[evaluate]'" in said.error


def test_it_says_when_it_fits(parts: tuple[Path, Path], model: Path) -> None:
    said = run_featkit("evaluate", "linear", *parts, "--model", model)
    assert said.code == 0
    assert said.error.splitlines() == [
        f"fitting {name} at 6 strengths of regularization ..." for name in ("test-0", "pixels, 8×8")
    ]
