"""ONNX Runtime: what it is called, and which providers it is asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from PIL import Image

from featkit.backends import Run, open_backend
from featkit.backends import onnxruntime as module
from featkit.embedder import Embedder
from featkit.errors import EnvironmentProblem, InputError
from featkit.modelfile import EMBEDDING
from tests.commands import is_one_sentence, run_featkit
from tests.featkit.backends.graphs import make_layered_file
from tests.sentences import refused

REAL_SESSION = ort.InferenceSession


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model file."""
    return make_layered_file(tmp_path_factory.mktemp("model") / "m.onnx")


def built_with(monkeypatch: pytest.MonkeyPatch, *providers: str) -> list[str]:
    """Pretend that onnxruntime was built with these providers; return what it preloads."""
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


def test_tensorrt_precedes_cuda_and_caches_its_engines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATKIT_CACHE", str(tmp_path / "cache"))
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


class Fallen:
    """A session that silently falls back from its first provider, as ONNX Runtime does."""

    def __init__(self, *_arguments: object, **_options: object) -> None:
        self.session = REAL_SESSION(str(_arguments[0]), providers=[module.CPU])

    def __getattr__(self, name: str) -> object:
        return getattr(self.session, name)


def test_tensorrt_is_run_by_tensorrt_or_not_at_all(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(ort, "get_available_providers", lambda: [module.CPU])
    with refused(
        "TensorRT does not work here: the installed onnxruntime is built without it.",
        error=EnvironmentProblem,
    ):
        Embedder(model, backend="tensorrt", threads=1)
    monkeypatch.setenv("FEATKIT_BACKEND", "tensorrt")
    with refused(
        "TensorRT does not work here", "leave the backend at auto", error=EnvironmentProblem
    ):
        Embedder(model, threads=1)
    # an option wins
    assert Embedder(model, backend="onnxruntime", threads=1).run == Run("onnxruntime", "fp32")
    built_with(monkeypatch, module.TENSORRT_PROVIDER, module.CUDA)
    monkeypatch.setattr(ort, "InferenceSession", Fallen)
    with refused(
        "TensorRT does not work here: ONNX Runtime would run",
        model,
        "on CPU",
        error=EnvironmentProblem,
    ):
        Embedder(model, threads=1)


def test_commands_exit_with_3_without_the_requested_engine(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: [module.CPU])
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "photos" / "a.png")
    embed = ("embed", tmp_path / "photos", "--model", model, "--out", tmp_path / "e")
    for said in (
        run_featkit(*embed, "--backend", "tensorrt"),
        run_featkit(
            "verify", model, tmp_path / "photos", "--backend", "tensorrt", "--precision", "fp32"
        ),
    ):
        assert (said.code, is_one_sentence(said)) == (3, True), said
        assert "TensorRT does not work here" in said.error
    monkeypatch.setenv("FEATKIT_BACKEND", "tensorrt")
    assert run_featkit(*embed).code == 3
    assert not (tmp_path / "e").exists()


def test_only_openvino_computes_in_bf16(model: Path) -> None:
    with refused("onnxruntime does not compute in bf16; use openvino."):
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
