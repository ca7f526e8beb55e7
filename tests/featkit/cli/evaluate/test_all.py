"""The command `featkit evaluate all`: the figures of the single commands, a table that fits the
terminal, and mistakes in one sentence."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.commands import is_one_sentence, run_featkit
from tests.featkit.evaluate.labeled import write_kinds_folder, write_kinds_parquet, write_kinds_tar
from tests.model_files import make_model_file


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labeled images in three layouts, with a row without a label, an unreadable file, and
    four models, two of which have the same name."""
    folder = tmp_path_factory.mktemp("all")
    write_kinds_tar(folder / "a.tar", [0, 1, 2] * 8)
    write_kinds_parquet(folder / "b.parquet", [0, 1, None, 2] * 3)
    write_kinds_folder(folder / "photos", [0, 1, 2] * 3)
    (folder / "photos" / "red" / "bad.png").write_bytes(b"no image")
    for seed in (1, 2, 3):
        make_model_file(folder / f"{seed}.onnx", seed=seed, width=4 + seed)
    shutil.copyfile(folder / "1.onnx", folder / "again.onnx")
    return folder


@pytest.fixture(autouse=True)
def _inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "80")


EVERYTHING = (
    "--train",
    "a.tar",
    "--test",
    "b.parquet",
    "--retrieval",
    "photos",
    "--copies",
    "photos",
)


def test_figures_equal_those_of_the_single_commands() -> None:
    said = run_featkit(
        *("evaluate", "all", *EVERYTHING, "--retrieval", "b.parquet", "--k", 3, "--limit", 9),
        *("--model", "1.onnx", "--model", "2.onnx", "--json"),
    )
    assert (said.code, said.error) == (0, "")
    report = json.loads(said.out)
    assert report["models"] == ["test-1", "test-2"]
    for number, name in ((1, "test-1"), (2, "test-2")):
        options = ("--model", f"{number}.onnx", "--json", "--limit", 9)
        single = {
            use: json.loads(run_featkit("evaluate", *command, *options).out)
            for use, command in {
                "knn": ("knn", "a.tar", "b.parquet", "--k", 3),
                "linear": ("linear", "a.tar", "b.parquet"),
                "photos": ("retrieval", "photos", "--group", "label"),
                "b.parquet": ("retrieval", "b.parquet", "--group", "label"),
                "copies": ("copies", "photos"),
            }.items()
        }
        every = {
            "knn": report["knn"][name],
            "linear": report["linear"][name],
            "copies": report["copies"][name],
            **report["retrieval"][name],
        }
        assert every.keys() == single.keys()
        for use, found in every.items():
            expected = single[use]
            if number == 2:  # baselines are measured once
                scores = "methods" if use == "copies" else "scores"
                expected[scores] = expected[scores][:1]
            assert found == expected


def test_the_table_has_each_figure_with_its_interval() -> None:
    command = ("evaluate", "all", *EVERYTHING, "--model", "1.onnx")
    said = run_featkit(*command, "--quiet")
    assert (said.code, said.error) == (0, "")
    report = json.loads(run_featkit(*command, "--json").out)
    lines = [line.rstrip() for line in said.out.splitlines()]
    for row in report["rows"]:
        at = lines.index(next(line for line in lines if line.startswith(f"  {row['score']} ")))
        assert lines[at - 1].split()[0] == row["data"]
        figures = row["models"][0]
        assert lines[at - 1].split()[1] == f"{figures['value']:.3f}"
        low, high = figures["interval"]
        assert f" {low:.3f}–{high:.3f}" in lines[at]
    left_out = lines.index("Left out")
    assert [line.split()[:2] for line in lines[left_out + 2 :]] == [
        ["photos", "red/bad.png"],
        *(["b", f"b.parquet/{item}"] for item in (2, 6, 10)),
    ]
    assert "Not measured" not in said.out


@pytest.mark.parametrize("width", [80, 60, 200])
def test_four_models_fit_the_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    models = [f"--model={name}.onnx" for name in ("1", "2", "3", "again")]
    said = run_featkit("evaluate", "all", *EVERYTHING, *models, "--no-linear", "--quiet")
    assert said.code == 0
    table = said.out[: said.out.index("photos: ")].splitlines()
    assert max(map(len, table)) <= width
    # Each interval stays on one line.
    assert not re.search(r"\d–\s*$|\bto\s*$", "\n".join(table), re.MULTILINE)
    num_parts = len([line for line in table if not line.strip()]) + 1
    assert num_parts == {60: 4, 80: 3, 200: 1}[width]
    for name in ("1.onnx", "test-2", "test-3", "again.onnx", "difference", "perceptual hash"):
        assert name in said.out


def test_parts_that_are_not_given_are_named() -> None:
    said = run_featkit("evaluate", "all", "--copies", "photos", "--model", "1.onnx")
    assert said.code == 0
    assert (
        "Not measured: retrieval (no --retrieval), kNN and linear accuracy (no --train and"
        " --test).\n" in said.out
    )
    said = run_featkit("evaluate", "all", *EVERYTHING[:4], "--no-linear", "--model", "1.onnx")
    assert (
        "Not measured: retrieval (no --retrieval), linear accuracy (--no-linear), copies (no"
        " --copies).\n" in said.out
    )


def test_without_scikit_learn_the_rest_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    said = run_featkit("evaluate", "all", *EVERYTHING[:4], "--model", "1.onnx", "--quiet")
    assert said.code == 0
    assert "linear accuracy (sklearn is not installed" in said.out
    assert "pip install 'featkit[evaluate]'" in said.out
    assert "kNN majority, k=20" in said.out
    said = run_featkit("evaluate", "all", *EVERYTHING[:4], "--model", "1.onnx", "--json")
    assert (said.code, json.loads(said.out)["linear"]) == (0, {})
    assert "linear accuracy (sklearn is not installed" in said.error


def test_markdown_has_the_same_figures_and_nothing_else() -> None:
    command = ("evaluate", "all", *EVERYTHING, "--model", "1.onnx", "--model", "2.onnx")
    said = run_featkit(*command, "--markdown", "--quiet")
    assert (said.code, said.error) == (0, "")
    rows = json.loads(run_featkit(*command, "--json").out)["rows"]
    lines = said.out.splitlines()
    assert lines[0].startswith("|  | test-1 | test-2 | difference | centered pixels")
    for line, row in zip(lines[2:], rows, strict=False):
        cells = line.strip("| ").replace("**", "").split(" | ")
        assert cells[0] == f"{row['data']}, {row['score']}"
        for cell, figure in zip(cells[1:3], row["models"], strict=True):
            low, high = figure["interval"]
            assert cell == f"{figure['value']:.3f} ({low:.3f}–{high:.3f})"


def test_a_shell_pattern_gives_several_sources_and_models() -> None:
    several = ("--retrieval", "b.parquet", "photos", "--model", "1.onnx", "2.onnx", "--json")
    each = ("--retrieval", "b.parquet", "--retrieval", "photos", "--retrieval", "photos")
    models = ("--model", "1.onnx", "--model", "2.onnx")
    said = run_featkit("evaluate", "all", *several)
    assert said.code == 0
    assert said.out == run_featkit("evaluate", "all", *each, *models, "--json").out


def test_last_chooses_images_of_copies_only() -> None:
    command = ("evaluate", "all", "--retrieval", "photos", "--copies", "photos", "--last", 3)
    report = json.loads(run_featkit(*command, "--model", "1.onnx", "--json").out)
    assert report["copies"]["test-1"]["num_images"] == 2  # and bad.png
    assert report["retrieval"]["test-1"]["photos"]["num_images"] == 9
    single = run_featkit("evaluate", "copies", "photos", "--last", 3, "--model", "1.onnx", "--json")
    assert json.loads(single.out) == report["copies"]["test-1"]


def test_progress_says_which_model_and_step() -> None:
    said = run_featkit("evaluate", "all", *EVERYTHING, "--model", "1.onnx", "--model", "2.onnx")
    assert said.error.splitlines() == [
        f"fitting {name} at 6 strengths of regularization ..."
        for name in ("test-1", "pixels, 8×8", "test-2")
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "There is nothing to measure; pass --train with --test, --retrieval or --copies."),
        (["--train", "a.tar"], "--train without --test"),
        (["--retrieval", "none.tar"], "none.tar does not exist"),
        (["--retrieval", "photos", "--group", "kind"], "photos has no column kind, only folder"),
        (["--train", "a.tar", "--test", "photos"], "none in common"),
        (["--copies", "photos", "--model", "none.onnx"], "none.onnx does not exist"),
        (["--copies", "photos", "--model", "dinov2_vit"], "similar names: dinov2_vit"),
        (["--copies", "photos", "--model", "1.onnx", "--model", "1.onnx"], "given twice"),
        (["--copies", "photos", "--k", "0"], "--k is 0; it has to be 1 or more."),
        (["--copies", "photos", "--limit", "0"], "--limit is 0; it has to be 1 or more."),
        (["--copies", "photos", "--last", "-1"], "--last is -1; it has to be 1 or more."),
        (["--retrieval", "photos", "--last", "2"], "--last chooses images of --copies"),
        (["--copies", "photos", "--json", "--markdown"], "choose one"),
        (["--retrieval", "photos", "--limit", "2"], "more images with --limit"),
        (["--copies", "photos", "--column", "x"], "--column x applies to Parquet files"),
    ],
)
def test_a_mistake_is_one_sentence(arguments: list[str], words: str) -> None:
    said = run_featkit("evaluate", "all", *arguments)
    assert (said.code, is_one_sentence(said)) == (2, True)
    assert words in said.error
