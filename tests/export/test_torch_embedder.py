"""Promises of the backbone in torch as it is evaluated: its vectors are the model file's, and it
says the same of itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featkit.embedder import Embedder
from featkit_export.recipe import Recipe
from featkit_export.request import ExportRequest, export
from featkit_export.torch_embedder import TorchEmbedder
from featkit_export.verify import draw_images
from tests.export.backbones import make_run
from tests.sentences import refused


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("torch") / "run")


@pytest.mark.parametrize("recipe", [None, Recipe(feature="cls+mean", layers=(1, 2))])
def test_vectors_and_manifest_are_those_of_the_model_file(
    run: Path, recipe: Recipe | None, tmp_path: Path
) -> None:
    options = {} if recipe is None else vars(recipe)
    export(ExportRequest(source=str(run), out=tmp_path / "m.onnx", **options))
    file, torch_embedder = (
        Embedder(tmp_path / "m.onnx", threads=1),
        TorchEmbedder.open(run, recipe=recipe, device="cpu"),
    )
    images = draw_images(5, height=32, width=32)
    np.testing.assert_allclose(torch_embedder.infer(images), file.infer(images), atol=1e-5)
    assert torch_embedder.geometry == file.geometry
    for name in (
        "family",
        "name",
        "patch",
        "width",
        "feature",
        "layers",
        "join",
        "license",
        "opset",
    ):
        assert getattr(torch_embedder.manifest, name) == getattr(file.manifest, name)


def test_vectors_do_not_depend_on_the_batch_and_none_is_none(run: Path) -> None:
    embedder = TorchEmbedder.open(run, device="cpu")
    images = draw_images(5, height=32, width=32)
    whole = embedder.infer(images)
    embedder.batch_size = 2
    np.testing.assert_allclose(embedder.infer(images), whole, atol=1e-6)
    assert embedder.infer(images[:0]).shape == (0, 48)
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, rtol=1e-5)
    assert whole.dtype == np.float32


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with refused("has no backbone.safetensors"):
        TorchEmbedder.open(tmp_path)
