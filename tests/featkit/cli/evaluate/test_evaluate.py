"""Promises of all of `featkit evaluate`: its help, its light imports, and equal figures from torch
and ONNX."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from featkit.errors import EnvironmentProblem
from featkit_export.request import ExportRequest, export
from tests.commands import is_one_sentence, run_featkit
from tests.export.backbones import make_run
from tests.featkit.cli.test_app import modules_after
from tests.featkit.evaluate.labeled import write_kinds_folder, write_kinds_parquet, write_kinds_tar

YARDSTICKS = ("all", "copies", "knn", "linear", "retrieval")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn run, its model file, labeled images in three layouts, and a ground truth that
    names some."""
    folder = tmp_path_factory.mktemp("evaluate")
    make_run(folder / "run")
    export(ExportRequest(source=str(folder / "run"), out=folder / "m.onnx"))
    write_kinds_tar(folder / "a.tar", [0, 1, 2] * 8)
    write_kinds_parquet(folder / "b.parquet", [0, 1, 2] * 4)
    write_kinds_folder(folder / "photos", [0, 1, 2] * 3)
    truth = {"easy": [0, 3], "hard": [1], "junk": [2], "bbx": [2, 2, 20, 20]}
    value = {"imlist": ["0", "1", "2", "3", "4", "5"], "qimlist": ["6", "7"], "gnd": [truth, truth]}
    (folder / "gnd.json").write_text(json.dumps(value))
    return folder


@pytest.mark.parametrize("name", YARDSTICKS)
def test_each_explains_itself_with_an_example_of_itself(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    said = run_featkit("evaluate", name, "--help")
    assert (said.code, said.error) == (0, "")
    assert said.out.startswith(f"Usage: featkit evaluate {name} ")
    assert re.search(rf"^Example: featkit evaluate {name} \S", said.out, re.MULTILINE)


def test_help_loads_no_engine() -> None:
    loaded = modules_after(
        "from featkit.cli.app import main; main(['evaluate', 'linear', '--help'])"
    )
    assert {name.split(".")[0] for name in loaded}.isdisjoint(
        {"faiss", "numpy", "onnxruntime", "openvino", "pyarrow", "scipy", "sklearn", "torch"}
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["all", "--train", "a.tar", "--test", "b.parquet", "--retrieval", "b.parquet"],
        ["copies", "photos"],
        ["knn", "a.tar", "b.parquet", "--k", "1", "--k", "5"],
        ["linear", "a.tar", "b.parquet"],
        ["retrieval", "photos", "--group", "folder"],
        ["retrieval", "photos", "--protocol", "revisited", "--ground-truth", "gnd.json"],
    ],
    ids=" ".join,
)
def test_torch_and_onnx_give_the_same_figures(
    arguments: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    said = [
        run_featkit("evaluate", *arguments, "--model", model, "--json")
        for model in ("m.onnx", "run", "run/backbone.safetensors")
    ]
    assert [one.code for one in said] == [0, 0, 0]
    by_file, by_run, by_weights = (json.loads(one.out) for one in said)
    assert by_run == by_file
    assert by_weights == by_file
    assert '"name": "drawn"' in said[1].out


def test_a_run_without_torch_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    said = run_featkit(
        "evaluate", "knn", folder / "a.tar", folder / "b.parquet", "--model", folder / "run"
    )
    assert (said.code, is_one_sentence(said)) == (EnvironmentProblem.exit_code, True)
    assert "pip install 'featkit[export]'" in said.error


def test_a_folder_that_is_no_run_is_one_sentence(folder: Path) -> None:
    said = run_featkit("evaluate", "copies", folder / "photos", "--model", folder / "photos")
    assert (said.code, is_one_sentence(said)) == (2, True)
    assert "has no backbone.safetensors" in said.error
