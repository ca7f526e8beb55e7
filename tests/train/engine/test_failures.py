"""Promises of failures: each is one sentence that says what to change and how to resume."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from featkit.errors import EnvironmentProblem, InputError
from featkit_train.engine.failures import explained, way_on
from tests.sentences import refused

CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)
IN_WORKER = (
    "Caught MemoryError in DataLoader worker process 0.\nOriginal Traceback (most recent call"
    " last):\n  ..."
)


@pytest.mark.parametrize(
    ("error", "device", "words"),
    [
        (
            MemoryError(),
            CPU,
            (
                "too little memory",
                "engine.checkpoint_activations=true",
                "--batch-size",
                "--workers",
            ),
        ),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you"
                " tried ..."
            ),
            CPU,
            ("memory",),
        ),
        (
            RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
            CPU,
            ("memory",),
        ),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore"),
            GPU,
            ("cuda:1 has too little memory",),
        ),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
            GPU,
            ("cuda:1 has too little memory",),
        ),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), CPU, ("memory",)),
        (
            MemoryError(IN_WORKER),
            CPU,
            ("A data worker ran out of memory", "--workers", "run.cache_bytes"),
        ),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            CPU,
            ("disk of the run's folder is full", "free some space"),
        ),
        (OSError(errno.EFBIG, "File too large"), CPU, ("cannot be written: File too large",)),
        (
            RuntimeError("unable to open shared memory object </torch_1_2> in read-write mode"),
            CPU,
            ("/dev/shm", "--shm-size"),
        ),
        (
            RuntimeError("unable to write to file </torch_1_2_3>: No space left on device (28)"),
            CPU,
            ("/dev/shm", "--workers"),
        ),
        (RuntimeError("received 0 items of ancdata"), CPU, ("ulimit -n", "--workers")),
        (OSError(errno.EMFILE, "Too many open files"), CPU, ("ulimit -n",)),
        (RuntimeError("can't start new thread"), CPU, ("ulimit -u",)),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), CPU, ("ulimit -u",)),
        (
            RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with ..."),
            GPU,
            ("cuda:1 failed: CUDA error",),
        ),
        (
            torch.AcceleratorError("CUDA error: unspecified launch failure\nmore"),
            GPU,
            ("cuda:1 failed",),
        ),
        (
            torch._dynamo.exc.InternalTorchDynamoError("no C++ compiler"),
            CPU,
            ("torch.compile failed", "engine.compile=false"),
        ),
    ],
)
def test_machine_failure_becomes_one_sentence(
    error: Exception, device: torch.device, words: tuple[str, ...], tmp_path: Path
) -> None:
    with refused(*words, error=EnvironmentProblem), explained(tmp_path, device):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        ValueError("shapes"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        KeyError("x"),
    ],
)
def test_programming_error_stays_as_it_is(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as caught, explained(tmp_path, CPU):
        raise error
    assert caught.value is error


def test_featkits_own_error_is_not_explained_again(tmp_path: Path) -> None:
    with refused("out of memory is the name of this file."), explained(tmp_path, CPU):
        raise InputError("out of memory is the name of this file.")


def test_way_on_names_the_newest_checkpoint(tmp_path: Path) -> None:
    assert way_on(tmp_path) == ""
    (tmp_path / "config.yaml").touch()
    assert way_on(tmp_path) == "Add --resume to continue from step 0."
    for step in (5, 1200):
        (tmp_path / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    assert way_on(tmp_path) == "Add --resume to continue from step 1,200."
    with (
        refused("Add --resume to continue from step 1,200.", error=EnvironmentProblem),
        explained(tmp_path, CPU),
    ):
        raise MemoryError
