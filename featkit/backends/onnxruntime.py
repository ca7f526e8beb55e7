"""ONNX Runtime: on NVIDIA where that really works, else on the processor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort

from featkit.backends.base import Cancel, Cancelled
from featkit.errors import FeatkitError, InputError
from featkit.modelfile import EMBEDDING, INPUT

PROVIDER_NAMES = {"CUDAExecutionProvider": "CUDA", "CPUExecutionProvider": "CPU"}
# On a processor small batches stay in its caches: a ViT-S/14 at 224 made 6.2 pictures a core-second in batches of 2, 5.0 in
# batches of 16; a small ViT of 64 tokens was fastest in batches of 8 to 16. A graphics card wants to be filled.
TOKENS_PER_CALL = {"CPU": 512, "CUDA": 8192}


class OnnxRuntimeBackend:
    """One session. `threads` is what one call may use; several callers at once share them.

    InputError for a file that ONNX Runtime does not load, or that does not take and give what a featkit model file does.
    """

    def __init__(self, model: Path, *, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # A waiting thread would spin, and take a core from the threads that decode pictures meanwhile.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self.model = model
        try:
            self._session = ort.InferenceSession(str(model), options, providers=_providers())
        except Exception as error:  # onnxruntime's exception classes share no base but Exception
            raise InputError(f"{model} cannot be loaded by ONNX Runtime: {error}") from error
        self._check_contract()
        provider = self._session.get_providers()[0]  # what was asked for and did not work is not among them
        engine = PROVIDER_NAMES.get(provider, provider)
        self.name = f"onnxruntime {engine}"
        self.tokens_per_call = TOKENS_PER_CALL.get(engine, TOKENS_PER_CALL["CUDA"])

    def run(self, images: np.ndarray, *, cancel: Cancel | None = None) -> np.ndarray:
        """(N, H, W, 3) uint8 to unit vectors (N, D) float32.

        Cancelled when `cancel` was set; FeatkitError when ONNX Runtime fails, on a size that the graph does not take, say.
        """
        options = ort.RunOptions()

        def end() -> None:
            options.terminate = True

        cancel = cancel or Cancel()
        with cancel.ends_by(end):
            try:
                result: np.ndarray = self._session.run([EMBEDDING], {INPUT: images}, options)[0]
            except Exception as error:
                if cancel.is_set:
                    raise Cancelled from error
                raise FeatkitError(f"{self.model} failed in ONNX Runtime on pictures {images.shape}: {error}") from error
        return result

    def _check_contract(self) -> None:
        takes = {value.name: value.type for value in self._session.get_inputs()}
        gives = {value.name: value.type for value in self._session.get_outputs()}
        if takes != {INPUT: "tensor(uint8)"} or gives.get(EMBEDDING) != "tensor(float)":
            raise InputError(
                f"{self.model} is not a featkit model file: it takes {takes} and gives {gives}, "
                f"not {INPUT} as uint8 and {EMBEDDING} as float32."
            )


def _providers() -> list[str]:
    """CUDA first where this build has it; ONNX Runtime falls back by itself where the card or its libraries are missing."""
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return ["CPUExecutionProvider"]
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    return ["CUDAExecutionProvider", "CPUExecutionProvider"]
