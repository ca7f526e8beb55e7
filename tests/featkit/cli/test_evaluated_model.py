"""Promises of `featkit evaluate --model`: a file, a folder or a published name, with the same
figures from each."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest

from featkit_export.request import ExportRequest, export
from featkit_train.published.zoo import PUBLISHED
from tests.commands import Said, is_one_sentence, run_featkit
from tests.export.backbones import drawn_published
from tests.export.published import publish
from tests.export.zoo_files import write_published
from tests.images import draw_folder
from tests.model_files import make_model_file

NAME = "dinov2_vits14"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """featkit's cache folder and the hub's, empty and private to this test, without a network."""
    monkeypatch.setenv("FEATKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two images."""
    return draw_folder(tmp_path / "photos", 2)


def evaluate(photos: Path, model: object) -> Said:
    """Run the smallest evaluation."""
    return run_featkit("evaluate", "copies", photos, "--model", model, "--json")


def test_a_published_folder_and_its_export_agree(photos: Path, tmp_path: Path) -> None:
    row = PUBLISHED[NAME]
    folder = write_published(row, drawn_published(row).state_dict(), tmp_path / "published")
    export(ExportRequest(source=str(folder), out=tmp_path / "m.onnx"))
    said = [evaluate(photos, model) for model in (folder, tmp_path / "m.onnx")]
    assert [one.code for one in said] == [0, 0]
    by_folder, by_file = (json.loads(one.out) for one in said)
    assert by_folder == by_file
    assert by_folder["methods"][0]["name"] == NAME


@pytest.mark.parametrize("name", [NAME, "dinov2-small", "facebook/dinov2-small", "timm:vit_tiny"])
def test_a_published_name_is_its_file_in_the_cache(
    name: str, photos: Path, cache: Path, model: Path
) -> None:
    (cache / "models").mkdir(parents=True)
    file = cache / "models" / f"{name.replace('/', '-').replace(':', '-')}.onnx"
    shutil.copyfile(model, file)
    said = evaluate(photos, name)
    assert (said.code, said.error) == (0, "")
    assert said.out == evaluate(photos, file).out


def test_a_name_that_cannot_be_fetched_names_the_files(photos: Path) -> None:
    said = evaluate(photos, NAME)
    assert (said.code, is_one_sentence(said)) == (3, True)
    assert "https://huggingface.co/facebook/dinov2-small" in said.error


@pytest.mark.parametrize("has_torch", [True, False])
def test_an_unknown_name_is_refused_even_without_torch(
    has_torch: bool, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_torch:
        monkeypatch.setitem(sys.modules, "torch", None)
    for name, words in (("dinov2_vits", "similar names: dinov2_vits14"), ("m.onx", "m.onx does")):
        said = evaluate(photos, name)
        assert (said.code, is_one_sentence(said)) == (2, True)
        assert words in said.error


def test_featkit_tiny_is_known_by_name(photos: Path, tmp_path: Path) -> None:
    by_name = evaluate(photos, "featkit-tiny")
    assert by_name.out == run_featkit("evaluate", "copies", photos, "--json").out
    assert make_model_file(tmp_path / "featkit-tiny").is_file()


def test_an_onnx_file_made_elsewhere_must_be_exported(photos: Path, tmp_path: Path) -> None:
    folder = publish(tmp_path / "elsewhere", num_registers=0).folder
    said = evaluate(photos, folder)
    assert (said.code, is_one_sentence(said)) == (2, True)
    assert "featkit export" in said.error
