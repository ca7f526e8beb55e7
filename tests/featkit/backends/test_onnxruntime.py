"""ONNX Runtime: what it is called, and which providers it is asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from featkit.backends import Run, open_backend
from featkit.backends import onnxruntime as module
from featkit.embedder import Embedder
from featkit.errors import InputError
from featkit.modelfile import EMBEDDING
from tests.featkit.backends.graphs import make_layered_file
from tests.sentences import refused


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model file."""
    return make_layered_file(tmp_path_factory.mktemp("model") / "m.onnx")


def built_with(monkeypatch: pytest.MonkeyPatch, *providers: str) -> list[str]:
    """Make onnxruntime say that it was built with these; returns what is loaded before a session."""
    loaded: list[str] = []
    monkeypatch.setattr(ort, "get_available_providers", lambda: [*providers, module.CPU])
    monkeypatch.setattr(ort, "preload_dlls", lambda: loaded.append("cuda"), raising=False)
    return loaded


def test_it_says_what_runs(model: Path) -> None:
    backend = open_backend(model, Run("onnxruntime", "fp32"), threads=1)
    assert backend.kind == Run("onnxruntime", "fp32")
    assert backend.name in ("onnxruntime CPU", "onnxruntime CUDA")


def test_cuda_comes_first_where_it_is_built_in(monkeypatch: pytest.MonkeyPatch) -> None:
    assert module._providers(tensorrt=False) == [module.CPU]
    loaded = built_with(monkeypatch, module.TENSORRT_PROVIDER, module.CUDA)
    assert module._providers(tensorrt=False) == [module.CUDA, module.CPU]
    assert loaded == ["cuda"]


def test_tensorrt_comes_before_cuda_when_asked_for_and_keeps_its_engines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATKIT_CACHE", str(tmp_path / "cache"))
    built_with(monkeypatch, module.CUDA)
    assert module._providers(tensorrt=True) == [module.CUDA, module.CPU]
    built_with(monkeypatch, module.TENSORRT_PROVIDER, module.CUDA)
    first, *others = module._providers(tensorrt=True)
    assert others == [module.CUDA, module.CPU]
    assert isinstance(first, tuple)
    name, options = first
    assert name == module.TENSORRT_PROVIDER
    assert options["trt_engine_cache_enable"] is options["trt_timing_cache_enable"] is True
    assert options["trt_fp16_enable"] is False
    assert options["trt_engine_cache_path"] == str(tmp_path / "cache" / "tensorrt")
    assert (tmp_path / "cache" / "tensorrt").is_dir()


def test_where_tensorrt_does_not_work_the_name_and_the_run_say_what_does(model: Path) -> None:
    if module.TENSORRT_PROVIDER in ort.get_available_providers():
        pytest.skip("this onnxruntime is built with TensorRT")
    embedder = Embedder(model, backend="tensorrt", threads=1)
    assert embedder.backend_name == "onnxruntime CPU (TensorRT does not work here)"
    assert embedder.run == Run("onnxruntime", "fp32")
    assert embedder.with_threads(2).backend_name == embedder.backend_name
    plain = Embedder(model, backend="onnxruntime", threads=1)
    images = np.full((2, 32, 32, 3), 7, np.uint8)
    np.testing.assert_array_equal(embedder.infer(images), plain.infer(images))


def test_only_openvino_computes_in_bf16(model: Path) -> None:
    with refused("onnxruntime does not compute in bf16; use openvino for that."):
        open_backend(model, Run("onnxruntime", "bf16"), threads=1)


def test_nothing_is_computed_for_outputs_that_are_not_asked_for(tmp_path: Path) -> None:
    file = make_layered_file(tmp_path / "m.onnx", size=32)
    backend = module.OnnxRuntimeBackend(file, threads=1)
    images = np.zeros((1, 32, 32, 3), np.uint8)
    asked: list[bool] = []
    session = backend._session

    class Watched:
        """Passes calls on and notes whether the whole graph is to run."""

        def run(self, names: list[str], inputs: dict[str, np.ndarray], options: object) -> object:
            asked.append(options.only_execute_path_to_fetches)  # type: ignore[attr-defined]
            return session.run(names, inputs, options)

    backend._session = Watched()
    backend.run(images)
    backend.run(images, outputs=(EMBEDDING, "patches", "attention"))
    assert asked == [True, False]


def test_a_file_that_is_no_onnx_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"no graph")
    with pytest.raises(InputError, match=r"m.onnx cannot be loaded by ONNX Runtime"):
        open_backend(tmp_path / "m.onnx", Run("onnxruntime", "fp32"), threads=1)
