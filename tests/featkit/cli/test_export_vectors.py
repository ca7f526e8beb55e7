"""The command `featkit export-vectors`, and the way back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from featkit.index import Index
from tests.commands import run_featkit
from tests.featkit.index.conftest import WIDTH, unit_vectors
from tests.model_files import make_model_file


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model_file(tmp_path / "m.onnx", width=WIDTH)


@pytest.fixture
def index(tmp_path: Path, model: Path) -> Path:
    with Index.create(tmp_path / "i", model=model) as made:
        made.add(["a.jpg", "b.jpg"], unit_vectors(2), metadata=[{"label": "x"}, {"label": "y"}])
    return tmp_path / "i"


def test_vectors_go_out_and_come_back(index: Path, model: Path, tmp_path: Path) -> None:
    file, other = tmp_path / "v.parquet", tmp_path / "other.index"
    code, out, _ = run_featkit("export-vectors", index, file, "--quiet")
    assert code == 0
    assert " ".join(out.split()).startswith(f"{file} has 2 images with vectors of ")
    code, out, error = run_featkit("index", file, "--out", other)
    assert (code, out) == (2, "")
    assert "is another model; name the file of their model with --model" in error
    code, out, _ = run_featkit("index", file, "--out", other, "--model", model, "--quiet")
    assert code == 0
    assert out.splitlines()[0] == f"2 images added; {other} holds 2 images."
    with Index.open(other) as opened:
        assert opened.item_by_key("b.jpg").metadata == {"label": "y"}


def test_a_part_is_chosen_by_a_filter(index: Path, tmp_path: Path) -> None:
    words = ["export-vectors", index, tmp_path / "v.parquet", "--where", "label = 'x'", "--json"]
    code, out, _ = run_featkit(*words)
    assert code == 0
    assert json.loads(out)["items"] == 1


def test_a_folder_is_refused(index: Path, tmp_path: Path) -> None:
    code, _, error = run_featkit("export-vectors", index, tmp_path)
    assert code == 2
    assert "is a folder; name a file" in error
