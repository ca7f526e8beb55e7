"""Promises of --model by name: a published backbone becomes a file once, or one is told what to
fetch."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from featkit.cli import named_model
from featkit.cli.named_model import model_file
from featkit.errors import EnvironmentProblem, InputError
from featkit.models import default_model_path
from tests.commands import is_one_sentence, run_featkit


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """featkit's cache folder and the hub's, of this test's own and empty, without a network."""
    monkeypatch.setenv("FEATKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch, model: Path) -> list[str]:
    """What model files were made of, in place of fetching it."""
    sources: list[str] = []

    def write(source: str, wanted: Any, _say: object) -> dict[str, Any]:
        sources.append(source)
        wanted.out.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(model, wanted.out)
        return {}

    monkeypatch.setattr(named_model, "write_full", write)
    return sources


def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        named_model, "find_spec", lambda name: None if name == "torch" else object()
    )


def test_no_name_is_the_model_that_ships(cache: Path) -> None:
    assert model_file(None) == default_model_path()
    assert default_model_path().is_file()
    assert not cache.exists()


def test_a_file_is_itself_also_where_it_is_missing(
    model: Path, tmp_path: Path, written: list[str]
) -> None:
    assert model_file(str(model)) == model
    shutil.copyfile(model, tmp_path / "odd")
    assert model_file(str(tmp_path / "odd")) == tmp_path / "odd"
    # whoever reads it says so
    assert model_file(str(tmp_path / "none.onnx")) == tmp_path / "none.onnx"
    assert written == []


def test_a_name_is_made_into_a_file_once(
    cache: Path, written: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = model_file("dinov2-small")
    assert path == cache / "models" / "dinov2-small.onnx"
    assert path.is_file()
    assert capsys.readouterr().out == f"dinov2-small is kept as {path}.\n"
    assert model_file("dinov2-small") == path
    assert len(written) == 1
    assert capsys.readouterr().out == ""
    model_file("dinov2-base", quiet=True)
    assert capsys.readouterr().out == ""


def test_a_file_in_the_cache_is_used_without_any_of_what_makes_one(
    cache: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cache / "models").mkdir(parents=True)
    shutil.copyfile(model, cache / "models" / "dinov2-small.onnx")
    monkeypatch.setattr("featkit.cli.extras.find_spec", lambda _name: None)
    without_torch(monkeypatch)
    assert model_file("dinov2-small") == cache / "models" / "dinov2-small.onnx"


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("facebook/dinov2-small", "facebook-dinov2-small.onnx"),
        ("timm:vit_small.dino", "timm-vit_small.dino.onnx"),
    ],
)
@pytest.mark.usefixtures("written")
def test_the_file_of_any_name_stays_in_the_cache_folder(cache: Path, name: str, file: str) -> None:
    assert model_file(name) == cache / "models" / file


@pytest.mark.usefixtures("written")
def test_no_name_leads_out_of_the_cache_folder(cache: Path) -> None:
    for name in ("../../x", "/etc/none", "a/../../b", ".."):
        if not Path(name).exists():
            assert model_file(name).parent == cache / "models"


@pytest.mark.parametrize(
    ("name", "with_torch", "without"),
    [
        ("dinov2-small", "dinov2-small", "hub:onnx-community/dinov2-small"),
        ("dinov2_vits14", "dinov2_vits14", "hub:onnx-community/dinov2-small"),
        ("facebook/dinov2-base", "facebook/dinov2-base", "hub:onnx-community/dinov2-base"),
        ("dino_vits16", "dino_vits16", "dino_vits16"),  # that nobody keeps as an ONNX file
        ("hub:a/b", "hub:a/b", "hub:a/b"),
    ],
)
def test_torch_takes_the_weights_and_without_it_the_file_that_others_made(
    written: list[str],
    monkeypatch: pytest.MonkeyPatch,
    cache: Path,
    name: str,
    with_torch: str,
    without: str,
) -> None:
    model_file(name)
    shutil.rmtree(cache)
    without_torch(monkeypatch)
    model_file(name)
    assert written == [with_torch, without]


@pytest.mark.parametrize("has_torch", [True, False])
def test_what_cannot_be_fetched_says_what_to_fetch_by_hand(
    monkeypatch: pytest.MonkeyPatch, cache: Path, has_torch: bool
) -> None:
    if not has_torch:
        without_torch(monkeypatch)
    repository = "facebook/dinov2-small" if has_torch else "onnx-community/dinov2-small"
    with pytest.raises(EnvironmentProblem) as caught:
        model_file("dinov2-small", quiet=True)
    message = str(caught.value)
    assert "\n" not in message
    assert f"https://huggingface.co/{repository}" in message
    assert "featkit export" in message
    for file in (
        "config.json",
        "preprocessor_config.json",
        "model*.safetensors" if has_torch else "onnx/model.onnx",
    ):
        assert file in message
    assert not list(cache.rglob("*.onnx"))


def test_without_torch_a_backbone_that_nobody_keeps_as_onnx_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without_torch(monkeypatch)
    monkeypatch.setattr(
        "featkit.cli.extras.find_spec", lambda name: None if name == "torch" else object()
    )
    with pytest.raises(EnvironmentProblem, match=r"torch is not installed; .*featkit\[export\]"):
        model_file("dino_vits16", quiet=True)


def test_an_unknown_name_is_refused_with_its_neighbor() -> None:
    with pytest.raises(InputError, match="near to it: dinov2"):
        model_file("dinov2_vits", quiet=True)


@pytest.mark.parametrize("has_torch", [True, False])
def test_the_page_over_a_model_that_cannot_be_fetched_ends_with_3_and_the_same_words(
    monkeypatch: pytest.MonkeyPatch, cache: Path, has_torch: bool
) -> None:
    if not has_torch:
        without_torch(monkeypatch)
    said = run_featkit("demo", "--model", "dinov2-small", "--port", "0", "--no-browser", "--quiet")
    assert said.code == 3
    assert is_one_sentence(said)
    repository = "facebook/dinov2-small" if has_torch else "onnx-community/dinov2-small"
    assert f"https://huggingface.co/{repository}" in said.error
    assert "--model" in said.error
    assert not list(cache.glob("gallery-*"))  # it is said before anything is drawn
