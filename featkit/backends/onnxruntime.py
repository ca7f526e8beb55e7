"""ONNX Runtime: on NVIDIA where that really works, else on the processor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort

from featkit.errors import InputError
from featkit.modelfile import EMBEDDING, INPUT

PROVIDER_NAMES = {"CUDAExecutionProvider": "CUDA", "CPUExecutionProvider": "CPU"}


class OnnxRuntimeBackend:
    """One session. `threads` is what one call may use; several callers at once share them."""

    def __init__(self, model: Path, *, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # A waiting thread would spin, and take a core from the threads that decode pictures meanwhile.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(str(model), options, providers=_providers())
        except Exception as error:  # onnxruntime's exception classes share no base but Exception
            raise InputError(f"{model} cannot be loaded by ONNX Runtime: {error}") from error
        provider = self._session.get_providers()[0]  # what was asked for and did not work is not among them
        self.name = f"onnxruntime {PROVIDER_NAMES.get(provider, provider)}"

    def run(self, images: np.ndarray) -> np.ndarray:
        """(N, H, W, 3) uint8 to unit vectors (N, D) float32."""
        result: np.ndarray = self._session.run([EMBEDDING], {INPUT: images})[0]
        return result


def _providers() -> list[str]:
    """CUDA first where this build has it; ONNX Runtime falls back by itself where the card or its libraries are missing."""
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return ["CPUExecutionProvider"]
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    return ["CUDAExecutionProvider", "CPUExecutionProvider"]
