"""ONNX Runtime: by TensorRT where that was asked for; otherwise on NVIDIA where that really works,
else on the processor."""

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
# On a processor small batches stay in its caches: a ViT-S/14 at 224 made 6.2 images a core-second
# in batches of 2, 5.0 in batches of 16; a small ViT of 64 tokens was fastest in batches of 8 to 16.
# A graphics card wants to be filled.
TOKENS_PER_CALL = {"CPU": 512, "CUDA": 8192, "TensorRT": 8192}

Provider = str | tuple[str, dict[str, object]]


class OnnxRuntimeBackend:
    """One session. `threads` is what one call may use; several callers at once share them.

    precision: the file's own, which is what ONNX Runtime computes in. tensorrt: run by TensorRT,
    and by nothing else in its place; an engine that it builds for a model takes minutes, and is
    kept in featkit's cache folder. InputError for a file that ONNX Runtime does not load, or that
    does not take and give what a featkit model file does; EnvironmentProblem when TensorRT is
    wanted and does not work here.
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
        # A waiting thread would spin, and take a core from the threads that decode images
        # meanwhile.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self.model = model
        try:
            with text_path(model, beside=lambda: _beside(model)) as path:
                self._session = ort.InferenceSession(
                    path, options, providers=_providers(tensorrt=tensorrt)
                )
        except Exception as error:  # onnxruntime's exception classes share no base but Exception
            raise InputError(f"{model} cannot be loaded by ONNX Runtime: {error}") from error
        self._check_contract()
        # what was asked for and did not work is not among them
        provider = self._session.get_providers()[0]
        engine = PROVIDER_NAMES.get(provider, provider)
        by_tensorrt = provider == TENSORRT_PROVIDER
        if tensorrt and not by_tensorrt:
            raise EnvironmentProblem(
                f"TensorRT does not work here: ONNX Runtime would run {model} on {engine} in its"
                " place. Check that the tensorrt package and NVIDIA's driver fit this"
                " onnxruntime-gpu, or leave the backend at auto."
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
        """(N, H, W, 3) uint8 to the outputs of these names, float32; nothing is computed for the
        others.

        Cancelled when `cancel` was set; FeatkitError when ONNX Runtime fails, on a size that the
        graph does not take, say.
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
    """Whether the installed ONNX Runtime is built with TensorRT; it may still not work on this
    machine."""
    return TENSORRT_PROVIDER in ort.get_available_providers()


def _beside(model: Path) -> list[str]:
    """The file of weights beside the model file, if it has one."""
    external = read_manifest(model).external
    return [] if external is None else [external.file]


def _providers(*, tensorrt: bool) -> list[Provider]:
    """The best first of what this build has; ONNX Runtime falls back by itself where a card or its
    libraries are missing.

    The session's own list of providers then says what works; TensorRT, which somebody asked for,
    has to be first there.
    """
    built = ort.get_available_providers()
    providers: list[Provider] = [name for name in (CUDA,) if name in built]
    if tensorrt:
        providers.insert(0, (TENSORRT_PROVIDER, _tensorrt_options(cache_folder() / "tensorrt")))
        with suppress(ImportError):  # NVIDIA's package, which brings the libraries and loads them
            import_module("tensorrt")
    if providers and hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    return [*providers, CPU]


def _tensorrt_options(cache: Path) -> dict[str, object]:
    """float32 throughout, since another precision would make other vectors; engines and timings are
    kept."""
    cache.mkdir(parents=True, exist_ok=True)
    return {
        "trt_fp16_enable": False,
        "trt_int8_enable": False,
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": True,
        "trt_timing_cache_path": str(cache),
    }
