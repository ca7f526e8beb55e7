"""Explain machine failures that end a run: too little memory, a full disk, a failing GPU.

Each becomes one sentence that says how to continue.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

import torch

from featkit.atomic import explain_os_errors
from featkit.errors import EnvironmentProblem, FeatkitError
from featkit_train.engine.checkpoints import list_checkpoints
from featkit_train.run_folder import CHECKPOINTS, CONFIG_FILE

# Phrases in messages of torch, CUDA and the C library; their exceptions have no specific class.
OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "Cannot allocate memory",
    "not enough memory",
    "ALLOC_FAILED",
)
SHARED_MEMORY = (
    "shared memory",
    "unable to mmap",
    "unable to write to file </torch",
    "unable to resize file </torch",
)
OPEN_FILES = ("Too many open files", "items of ancdata")
NO_PROCESS = ("can't start new thread", "Resource temporarily unavailable")
DEVICE_FAILED = (
    "CUDA error",
    "CUDA driver",
    "cuDNN error",
    "CUDNN_STATUS",
    "CUBLAS_STATUS",
    "NCCL error",
    "HIP error",
)


@contextlib.contextmanager
def explained(out: Path, device: torch.device) -> Iterator[None]:
    """Turn a machine failure into an EnvironmentProblem that explains what to change and how to
    resume the run in `out`."""
    try:
        yield
    except FeatkitError:
        raise
    except Exception as error:
        problem = problem_of(error, device)
        if problem is None:
            with explain_os_errors(out):
                raise
        raise EnvironmentProblem(f"{problem} {way_on(out)}".strip()) from error


def problem_of(error: Exception, device: torch.device) -> str | None:
    """Return a sentence on the failure and its remedy; None for any other error."""
    text = str(error)
    code = error.errno if isinstance(error, OSError) else None
    if code in (errno.ENOSPC, errno.EDQUOT):
        return "The disk of the run's folder is full; free some space."
    if _says(text, SHARED_MEMORY):
        return (
            "Shared memory (/dev/shm) is too small for the workers; lower --workers, or enlarge it,"
            " in Docker with --shm-size=8g."
        )
    if code in (errno.EMFILE, errno.ENFILE) or _says(text, OPEN_FILES):
        return (
            "Too many files are open; lower --workers, or raise the limit with `ulimit -n 65536`."
        )
    if (
        isinstance(error, MemoryError | torch.OutOfMemoryError)
        or code == errno.ENOMEM
        or _says(text, OUT_OF_MEMORY)
    ):
        if "DataLoader worker" in text:
            return "A data worker ran out of memory; lower --workers or run.cache_bytes."
        on_device = isinstance(error, torch.OutOfMemoryError) or _says(
            text, ("CUDA", "CUBLAS", "HIP")
        )
        others = "" if on_device else " Or lower --workers and run.cache_bytes."
        return (
            f"{f'The device {device}' if on_device else 'This machine'} has too little memory for"
            " the run. Set engine.checkpoint_activations=true, which a resumed run may change, or"
            f" begin another run with a smaller --batch-size.{others}"
        )
    if code == errno.EAGAIN or _says(text, NO_PROCESS):
        return (
            "No more processes or threads can be started; lower --workers, or raise the limit with"
            " `ulimit -u`."
        )
    if isinstance(error, torch.AcceleratorError) or _says(text, DEVICE_FAILED):
        return f"The device {device} failed: {text.strip().splitlines()[0].rstrip('.')}."
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return (
            f"torch.compile failed: {text.strip().splitlines()[0].rstrip('.')}. Set"
            " engine.compile=false."
        )
    return None


def way_on(out: Path) -> str:
    """Return a sentence on how to resume the run in a folder; "" if there is no run."""
    if not (out / CONFIG_FILE).is_file():
        return ""
    checkpoints = list_checkpoints(out / CHECKPOINTS)
    step = int(checkpoints[-1].name.removeprefix("step-")) if checkpoints else 0
    return f"Add --resume to continue from step {step:,}."


def _says(text: str, words: tuple[str, ...]) -> bool:
    return any(word in text for word in words)
