"""From a model file to the engine that runs it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from featkit.backends.base import BF16, OPENVINO, TENSORRT, Backend, Run
from featkit.errors import EnvironmentProblem, InputError

# The processor's and the graphics card's builds share module names and overwrite each other without
# a word.
EXCLUSIVE = (("onnxruntime", "onnxruntime-gpu"), ("faiss-cpu", "faiss-gpu"))


def open_backend(model: Path, run: Run, *, threads: int) -> Backend:
    """Load a model file. EnvironmentProblem when the engine is missing or installed twice;
    InputError for a broken file."""
    need_engine(run.backend)
    if run.precision == BF16 and run.backend != OPENVINO:
        raise InputError(f"{run.backend} does not compute in {BF16}; use {OPENVINO} for that.")
    if run.backend == OPENVINO:
        from featkit.backends.openvino import OpenVinoBackend

        return OpenVinoBackend(model, threads=threads, precision=run.precision)
    from featkit.backends.onnxruntime import OnnxRuntimeBackend

    return OnnxRuntimeBackend(
        model, threads=threads, precision=run.precision, tensorrt=run.backend == TENSORRT
    )


def need_engine(backend: str) -> None:
    """EnvironmentProblem with the line that installs it, when the package behind a backend is
    missing or there twice."""
    check_exclusive_packages()
    if is_installed(backend):
        return
    if backend == OPENVINO:
        raise EnvironmentProblem("openvino is not installed; run: pip install 'featkit[openvino]'.")
    raise EnvironmentProblem(
        "onnxruntime is not installed; run: pip install 'featkit[cpu]' (or featkit[gpu])."
    )


def is_installed(backend: str) -> bool:
    """Whether the package behind a backend is there; does not import it."""
    return find_spec("openvino" if backend == OPENVINO else "onnxruntime") is not None


def check_exclusive_packages() -> None:
    """EnvironmentProblem naming both when two builds of one module are installed at once."""
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
