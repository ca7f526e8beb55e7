"""Open a model file with the engine that is to run it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from featkit.backends.base import BF16, OPENVINO, TENSORRT, Backend, Run
from featkit.errors import EnvironmentProblem, InputError

# The CPU and the GPU builds share module names and silently overwrite each other.
EXCLUSIVE = (("onnxruntime", "onnxruntime-gpu"), ("faiss-cpu", "faiss-gpu"))


def open_backend(model: Path, run: Run, *, threads: int) -> Backend:
    """Load a model file.

    Raises EnvironmentProblem if the engine is missing or installed twice, and InputError if the
    file is broken.
    """
    need_engine(run.backend)
    if run.precision == BF16 and run.backend != OPENVINO:
        raise InputError(f"{run.backend} does not compute in {BF16}; use {OPENVINO}.")
    if run.backend == OPENVINO:
        from featkit.backends.openvino import OpenVinoBackend

        return OpenVinoBackend(model, threads=threads, precision=run.precision)
    from featkit.backends.onnxruntime import OnnxRuntimeBackend

    return OnnxRuntimeBackend(
        model, threads=threads, precision=run.precision, tensorrt=run.backend == TENSORRT
    )


def need_engine(backend: str) -> None:
    """Raise EnvironmentProblem, with the command to run, if an engine is missing or installed
    twice."""
    check_exclusive_packages()
    if is_installed(backend):
        return
    if backend == OPENVINO:
        raise EnvironmentProblem("openvino is not installed; run: pip install 'featkit[openvino]'.")
    raise EnvironmentProblem(
        "onnxruntime is not installed; run: pip install 'featkit[cpu]' (or featkit[gpu])."
    )


def is_installed(backend: str) -> bool:
    """Return whether an engine's package is installed, without importing it."""
    return find_spec("openvino" if backend == OPENVINO else "onnxruntime") is not None


def check_exclusive_packages() -> None:
    """Raise EnvironmentProblem if two builds of one module are installed at the same time."""
    for first, second in EXCLUSIVE:
        if _installed(first) and _installed(second):
            raise EnvironmentProblem(
                f"{first} and {second} are both installed and overwrite each other; keep one: "
                f"pip uninstall {first} {second}, then install featkit[cpu] or featkit[gpu] again."
            )


def _installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True
