"""ONNX Runtime: TensorRT if requested, else CUDA if it works, else the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import numpy as np
import onnxruntime as ort

from featkit.backends.base import FP32, ONNXRUNTIME, TENSORRT, Cancel, Cancelled, Run
from featkit.errors import EnvironmentProblem, FeatkitError, InputError
from featkit.modelfile import EMBEDDING, INPUT, read_manifest
from featkit.paths import text_path
from featkit.resources import cache_folder

CPU, CUDA, TENSORRT_PROVIDER = (
    "CPUExecutionProvider",
    "CUDAExecutionProvider",
    "TensorrtExecutionProvider",
)
PROVIDER_NAMES = {TENSORRT_PROVIDER: "TensorRT", CUDA: "CUDA", CPU: "CPU"}
# Small batches stay in a CPU's caches: a ViT-S/14 at 224 ran at 6.2 images per core and second in
# batches of 2, and at 5.0 in batches of 16; a small ViT of 64 tokens was fastest in batches of 8 to
# 16. A GPU needs large batches to be busy.
TOKENS_PER_CALL = {"CPU": 512, "CUDA": 8192, "TensorRT": 8192}

Provider = str | tuple[str, dict[str, object]]


class OnnxRuntimeBackend:
    """One session of ONNX Runtime.

    threads: threads of the session, shared by concurrent calls.
    precision: the file's precision, in which ONNX Runtime computes.
    tensorrt: use TensorRT and nothing else. Building its engine takes minutes; the engine is kept
    in featkit's cache folder.

    Raises InputError if ONNX Runtime cannot load the file or its inputs and outputs are not those
    of a featkit model file, and EnvironmentProblem if TensorRT is requested and does not work.
    """

    def __init__(
        self, model: Path, *, threads: int, precision: str = FP32, tensorrt: bool = False
    ) -> None:
        if tensorrt and not has_tensorrt():
            raise EnvironmentProblem(
                "TensorRT does not work here: the installed onnxruntime is built without it."
                " Install featkit[gpu] and tensorrt, or leave the backend at auto."
            )
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # A waiting thread would spin, taking a core from the threads that decode images.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self.model = model
        try:
            with text_path(model, companions=lambda: _beside(model)) as path:
                self._session = ort.InferenceSession(
                    path, options, providers=_providers(tensorrt=tensorrt)
                )
        except Exception as error:  # onnxruntime's exception classes share no base but Exception
            raise InputError(f"{model} cannot be loaded by ONNX Runtime: {error}") from error
        self._check_contract()
        # a provider that was requested and does not work is missing from this list
        provider = self._session.get_providers()[0]
        engine = PROVIDER_NAMES.get(provider, provider)
        by_tensorrt = provider == TENSORRT_PROVIDER
        if tensorrt and not by_tensorrt:
            raise EnvironmentProblem(
                f"TensorRT does not work here: ONNX Runtime would run {model} on {engine} instead."
                " Check that the tensorrt package and NVIDIA's driver match this onnxruntime-gpu,"
                " or leave the backend at auto."
            )
        self.name = f"onnxruntime {engine}"
        self.kind = Run(TENSORRT if by_tensorrt else ONNXRUNTIME, precision)
        self.tokens_per_call = TOKENS_PER_CALL.get(engine, TOKENS_PER_CALL["CUDA"])

    def run(
        self,
        images: np.ndarray,
        *,
        outputs: Sequence[str] = (EMBEDDING,),
        cancel: Cancel | None = None,
    ) -> dict[str, np.ndarray]:
        """Return the named outputs, float32, for images (N, H, W, 3) uint8.

        Only these outputs are computed. Raises Cancelled if `cancel` is set, and FeatkitError if
        ONNX Runtime fails, for example on a size that the graph does not accept.
        """
        options = ort.RunOptions()
        options.only_execute_path_to_fetches = len(outputs) < self._num_outputs

        def end() -> None:
            options.terminate = True

        cancel = cancel or Cancel()
        with cancel.ends_by(end):
            try:
                found: list[np.ndarray] = self._session.run(list(outputs), {INPUT: images}, options)
            except Exception as error:
                if cancel.is_set:
                    raise Cancelled from error
                raise FeatkitError(
                    f"{self.model} failed in ONNX Runtime on images {images.shape}: {error}"
                ) from error
        return dict(zip(outputs, found, strict=True))

    def _check_contract(self) -> None:
        takes = {value.name: value.type for value in self._session.get_inputs()}
        gives = {value.name: value.type for value in self._session.get_outputs()}
        self._num_outputs = len(gives)
        if takes != {INPUT: "tensor(uint8)"} or gives.get(EMBEDDING) != "tensor(float)":
            raise InputError(
                f"{self.model} is not a featkit model file: it takes {takes} and gives {gives}, "
                f"not {INPUT} as uint8 and {EMBEDDING} as float32."
            )


def has_tensorrt() -> bool:
    """Return whether the installed ONNX Runtime is built with TensorRT, even if it may not work."""
    return TENSORRT_PROVIDER in ort.get_available_providers()


def _beside(model: Path) -> list[str]:
    """Return the names of the external weight files of a model file, if it has any."""
    external = read_manifest(model).external
    return [] if external is None else [external.file]


def _providers(*, tensorrt: bool) -> list[Provider]:
    """Return the providers to try, best first.

    ONNX Runtime falls back by itself if a GPU or its libraries are missing. The session's own list
    then says which providers work; a requested TensorRT must come first in it.
    """
    built = ort.get_available_providers()
    providers: list[Provider] = [name for name in (CUDA,) if name in built]
    if tensorrt:
        providers.insert(0, (TENSORRT_PROVIDER, _tensorrt_options(cache_folder() / "tensorrt")))
        with suppress(ImportError):  # NVIDIA's package contains and loads the libraries
            import_module("tensorrt")
    if providers and hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    return [*providers, CPU]


def _tensorrt_options(cache: Path) -> dict[str, object]:
    """Return options that keep float32, since other precisions give other vectors, and that cache
    engines and timings."""
    cache.mkdir(parents=True, exist_ok=True)
    return {
        "trt_fp16_enable": False,
        "trt_int8_enable": False,
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": True,
        "trt_timing_cache_path": str(cache),
    }
