"""Tests of errors before a session opens: missing or duplicate packages, missing weights."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from featkit.backends import Run, is_installed, open_backend
from featkit.backends import opening as module
from featkit.embedder import Embedder
from featkit.errors import EnvironmentProblem
from featkit.modelfile import ExternalWeights, Manifest, check_weights, read_manifest
from tests.model_files import make_model_file
from tests.sentences import refused


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small model file."""
    return make_model_file(tmp_path / "m.onnx")


def with_weights(model: Path, num_bytes: int) -> Manifest:
    """Return the manifest of `model` as if it had external weights."""
    weights = ExternalWeights(file="m.onnx.data", num_bytes=num_bytes, sha256="0" * 64)
    return dataclasses.replace(read_manifest(model), external=weights)


@pytest.mark.parametrize(
    ("backend", "package", "install"),
    [
        (
            "onnxruntime",
            "onnxruntime",
            "onnxruntime is not installed; run: pip install 'featkit[cpu]' (or featkit[gpu]).",
        ),
        (
            "tensorrt",
            "onnxruntime",
            "onnxruntime is not installed; run: pip install 'featkit[cpu]' (or featkit[gpu]).",
        ),
        (
            "openvino",
            "openvino",
            "openvino is not installed; run: pip install 'featkit[openvino]'.",
        ),
    ],
)
def test_a_missing_engine_says_how_to_install_it(
    model: Path, backend: str, package: str, install: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert not is_installed(backend)
    with refused(install, error=EnvironmentProblem):
        open_backend(model, Run(backend, "fp32"), threads=1)
    with refused(install, error=EnvironmentProblem):
        Embedder(model, backend=backend)


def test_two_builds_of_one_module_are_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_installed", lambda package: package.startswith("onnxruntime"))
    with refused(
        "onnxruntime and onnxruntime-gpu are both installed",
        "pip uninstall",
        error=EnvironmentProblem,
    ):
        open_backend(model, Run("onnxruntime", "fp32"), threads=1)


def test_weights_beside_the_file_must_be_there_in_full(model: Path) -> None:
    check_weights(model, read_manifest(model))
    with refused(
        model.parent / "m.onnx.data",
        "which holds the weights of m.onnx, is missing; copy both files",
    ):
        check_weights(model, with_weights(model, 5))
    (model.parent / "m.onnx.data").write_bytes(b"1234")
    with refused(
        "m.onnx.data has 4 bytes, but the weights of m.onnx have 5; copy both files again."
    ):
        check_weights(model, with_weights(model, 5))
    check_weights(model, with_weights(model, 4))


def test_an_embedder_asks_for_them(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featkit.embedder.read_manifest", lambda path: with_weights(path, 5))
    with refused("m.onnx.data", "is missing"):
        Embedder(model)
