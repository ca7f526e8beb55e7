"""From a model file to the engine that runs it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from featkit.backends.base import Backend
from featkit.errors import EnvironmentProblem

# The processor's and the graphics card's builds share module names and overwrite each other without a word.
EXCLUSIVE = (("onnxruntime", "onnxruntime-gpu"), ("faiss-cpu", "faiss-gpu"))


def open_backend(model: Path, *, threads: int) -> Backend:
    """Load a model file. EnvironmentProblem when onnxruntime is missing or installed twice; InputError for a broken file."""
    check_exclusive_packages()
    try:
        from featkit.backends.onnxruntime import OnnxRuntimeBackend
    except ModuleNotFoundError as error:
        raise EnvironmentProblem("onnxruntime is not installed; run: pip install 'featkit[cpu]' (or featkit[gpu]).") from error
    return OnnxRuntimeBackend(model, threads=threads)


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
