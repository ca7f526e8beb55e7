"""The engines that tests are run with, and marks for what this machine may lack."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from featkit.backends import BF16, OPENVINO, Run
from featkit.backends.choosing import processor_multiplies_bf16

needs_openvino = pytest.mark.skipif(
    find_spec("openvino") is None, reason="openvino is not installed"
)
needs_bf16 = pytest.mark.skipif(
    not processor_multiplies_bf16(), reason="no bf16: openvino or the processor lacks it"
)

ONNXRUNTIME_FP32, OPENVINO_FP32, OPENVINO_BF16 = (
    Run("onnxruntime", "fp32"),
    Run(OPENVINO, "fp32"),
    Run(OPENVINO, BF16),
)
RUNS = [
    pytest.param(ONNXRUNTIME_FP32, id="onnxruntime-fp32"),
    pytest.param(OPENVINO_FP32, id="openvino-fp32", marks=needs_openvino),
    pytest.param(OPENVINO_BF16, id="openvino-bf16", marks=needs_bf16),
]
