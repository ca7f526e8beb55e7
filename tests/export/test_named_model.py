"""Promises of --model by name: a published backbone is exported once, or the message names the
files to download."""

from __future__ import annotations

import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest

from featkit.errors import EnvironmentProblem, InputError
from featkit.models import default_model_path
from featkit_export import named_model as module
from featkit_export.named_model import NamedModel, named_model
from featkit_export.report import OnStep
from featkit_export.request import ExportRequest
from tests.commands import is_one_sentence, run_featkit
from tests.model_files import make_model_file


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """featkit's cache folder and the hub's, empty and private to this test, without a network."""
    monkeypatch.setenv("FEATKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file."""
    return make_model_file(tmp_path_factory.mktemp("model") / "m.onnx")


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch, model: Path) -> list[str]:
    """Sources that would have been exported; featkit-tiny is copied instead."""
    sources: list[str] = []

    def write(request: ExportRequest, *, on_step: OnStep | None = None) -> None:  # noqa: ARG001
        sources.append(request.source)
        request.out.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(model, request.out)

    monkeypatch.setattr(module, "export", write)
    return sources


def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "torch" else object())


def test_no_name_is_the_model_that_ships(cache: Path) -> None:
    assert named_model(None) == NamedModel(default_model_path())
    assert default_model_path().is_file()
    assert not cache.exists()


def test_path_is_returned_even_if_missing(model: Path, tmp_path: Path, written: list[str]) -> None:
    assert named_model(str(model)).path == model
    shutil.copyfile(model, tmp_path / "odd")
    assert named_model(str(tmp_path / "odd")).path == tmp_path / "odd"
    # Reading the file reports that it is missing.
    assert named_model(str(tmp_path / "none.onnx")).path == tmp_path / "none.onnx"
    assert written == []


def test_name_is_exported_once(cache: Path, written: list[str]) -> None:
    path = cache / "models" / "dinov2-small.onnx"
    assert named_model("dinov2-small") == NamedModel(path, is_new=True)
    assert path.is_file()
    assert named_model("dinov2-small") == NamedModel(path)
    assert len(written) == 1


def test_cached_file_needs_no_exporter(
    cache: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cache / "models").mkdir(parents=True)
    shutil.copyfile(model, cache / "models" / "dinov2-small.onnx")
    monkeypatch.setattr("featkit.extras.find_spec", lambda _name: None)
    without_torch(monkeypatch)
    assert named_model("dinov2-small").path == cache / "models" / "dinov2-small.onnx"


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("facebook/dinov2-small", "facebook-dinov2-small.onnx"),
        ("timm:vit_small.dino", "timm-vit_small.dino.onnx"),
    ],
)
@pytest.mark.usefixtures("written")
def test_file_of_any_name_is_in_the_cache(cache: Path, name: str, file: str) -> None:
    assert named_model(name).path == cache / "models" / file


@pytest.mark.usefixtures("written")
def test_no_name_leads_out_of_the_cache(cache: Path) -> None:
    for name in ("../../x", "/etc/none", "a/../../b", ".."):
        if not Path(name).exists():
            assert named_model(name).path.parent == cache / "models"


@pytest.mark.parametrize(
    ("name", "with_torch", "without"),
    [
        ("dinov2-small", "dinov2-small", "hub:onnx-community/dinov2-small"),
        ("dinov2_vits14", "dinov2_vits14", "hub:onnx-community/dinov2-small"),
        ("facebook/dinov2-base", "facebook/dinov2-base", "hub:onnx-community/dinov2-base"),
        ("dino_vits16", "dino_vits16", "dino_vits16"),  # nobody publishes it as an ONNX file
        ("hub:a/b", "hub:a/b", "hub:a/b"),
    ],
)
def test_published_onnx_file_is_used_only_without_torch(
    written: list[str],
    monkeypatch: pytest.MonkeyPatch,
    cache: Path,
    name: str,
    with_torch: str,
    without: str,
) -> None:
    named_model(name)
    shutil.rmtree(cache)
    without_torch(monkeypatch)
    named_model(name)
    assert written == [with_torch, without]


@pytest.mark.parametrize("has_torch", [True, False])
def test_failed_download_names_the_files_to_fetch(
    monkeypatch: pytest.MonkeyPatch, cache: Path, has_torch: bool
) -> None:
    if not has_torch:
        without_torch(monkeypatch)
    repository = "facebook/dinov2-small" if has_torch else "onnx-community/dinov2-small"
    with pytest.raises(EnvironmentProblem) as caught:
        named_model("dinov2-small")
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


def test_backbone_without_onnx_file_needs_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    without_torch(monkeypatch)
    monkeypatch.setattr(
        "featkit.extras.find_spec", lambda name: None if name == "torch" else object()
    )
    with pytest.raises(EnvironmentProblem, match=r"torch is not installed; .*featkit\[export\]"):
        named_model("dino_vits16")


def test_unknown_name_is_refused_with_a_suggestion() -> None:
    with pytest.raises(InputError, match="similar names: dinov2"):
        named_model("dinov2_vits")


@pytest.mark.usefixtures("written")
def test_demo_says_where_it_keeps_a_new_model(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    said = run_featkit(
        *("demo", tmp_path / "empty", "--model", "dinov2-small", "--port", "0", "--no-browser"),
        *("--cache", tmp_path / "kept"),
    )
    assert f"Exported dinov2-small to {cache / 'models' / 'dinov2-small.onnx'}.\n" in said.out


@pytest.mark.parametrize("has_torch", [True, False])
def test_demo_fails_before_drawing_if_the_model_is_missing(
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
    assert not list(cache.glob("gallery-*"))
