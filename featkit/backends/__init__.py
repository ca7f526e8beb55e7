"""Inference engines for model files: one protocol, and one file per engine."""

from featkit.backends.base import (
    AUTO,
    BACKENDS,
    BF16,
    FP16,
    FP32,
    INT8,
    OPENVINO,
    TENSORRT,
    Backend,
    Cancel,
    Cancelled,
    Run,
)
from featkit.backends.choosing import (
    choose_run,
    images_per_call,
    offered_runs,
    possible_runs,
    reference_run,
)
from featkit.backends.opening import is_installed, open_backend

__all__ = [
    "AUTO",
    "BACKENDS",
    "BF16",
    "FP16",
    "FP32",
    "INT8",
    "OPENVINO",
    "TENSORRT",
    "Backend",
    "Cancel",
    "Cancelled",
    "Run",
    "choose_run",
    "images_per_call",
    "is_installed",
    "offered_runs",
    "open_backend",
    "possible_runs",
    "reference_run",
]
