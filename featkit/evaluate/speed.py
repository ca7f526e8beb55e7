"""Measure how fast engines run a model on this machine, and the machine's own limit.

Runs take turns, so other load affects them equally, and the median turn counts. A turn does
what the batch job does: one caller per CPU, each with its own batch and a single thread.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from featkit.backends import OPENVINO, Run, is_installed, open_backend
from featkit.backends.drawn import drawn_images
from featkit.embedder import Embedder
from featkit.errors import EnvironmentProblem, FeatkitError
from featkit.modelfile import read_manifest
from featkit.resources import peak_memory

ROUNDS = 5
MATRIX_SIDE = 1536  # one product takes 20 to 100 ms on a few cores
MATRIX_ROUNDS = 20
CHILD_TIMEOUT_S = 600.0
# The BLAS library of numpy reads one of these when it is loaded.
THREAD_VARIABLES = (
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


def images_per_second(
    embedders: Mapping[Run, Embedder],
    images: np.ndarray,
    *,
    seconds: float,
    callers: int,
    rounds: int = ROUNDS,
) -> dict[Run, float]:
    """Return each run's median rate over `rounds` turns of `seconds` / `rounds`, after a warmup.

    embedders: each with threads=1. images: (N, H, W, 3) uint8; a call uses the first batch of them.
    """
    batches = {run: images[: embedder.batch_size] for run, embedder in embedders.items()}
    rates: dict[Run, list[float]] = {run: [] for run in embedders}
    for number in range(1 + rounds):
        for run, embedder in embedders.items():
            rate = _turn(
                embedder, batches[run], seconds=seconds / rounds if number else 0.0, callers=callers
            )
            if number:
                rates[run].append(rate)
    return {run: statistics.median(found) for run, found in rates.items()}


def _turn(embedder: Embedder, images: np.ndarray, *, seconds: float, callers: int) -> float:
    """Return images per second; callers start no call after `seconds`, but make at least one."""
    counts = [0] * callers
    errors: list[BaseException] = []
    started = time.perf_counter()

    def work(caller: int) -> None:
        try:
            while counts[caller] == 0 or time.perf_counter() < started + seconds:
                embedder.infer(images)
                counts[caller] += len(images)
        except BaseException as error:
            errors.append(error)

    threads = [
        threading.Thread(target=work, args=(caller,), daemon=True) for caller in range(callers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return sum(counts) / (time.perf_counter() - started)


def multiply_adds(model: Path) -> int | None:
    """Return the multiply-adds per image of the native size, or None without openvino."""
    if not is_installed(OPENVINO):
        return None
    from featkit.backends.openvino import num_multiply_adds

    geometry = read_manifest(model).geometry
    try:
        return num_multiply_adds(model, height=geometry.height, width=geometry.width)
    except RuntimeError:  # the graph has an operator that OpenVINO does not know
        return None


def memory_bytes(model: Path, run: Run) -> int:
    """Return the growth of a process that opens the session and runs a batch, engine included.

    Raises FeatkitError if the process fails.
    """
    return int(_in_child("memory", str(model), str(run), threads=1))


def matrix_flops(threads: int) -> float:
    """Return operations per second of numpy's float32 matrix product, a bound for inference."""
    return float(_in_child("matrix", threads=threads))


def _in_child(*arguments: str, threads: int) -> str:
    """Return the last line that a subprocess prints; its libraries use `threads` threads."""
    environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads))}
    command = [
        sys.executable,
        "-c",
        "from featkit.evaluate.speed import child; child()",
        *arguments,
    ]
    try:
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=CHILD_TIMEOUT_S,
            check=True,
        )
    except subprocess.TimeoutExpired as error:
        raise EnvironmentProblem(
            f"The measurement did not finish within {CHILD_TIMEOUT_S:.0f} s; try a smaller model."
        ) from error
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise FeatkitError(
            f"The process that measures {arguments[0]} exited with {error.returncode}:"
            f" {last.rstrip('.')}."
        ) from error
    return done.stdout.strip().splitlines()[-1]


def child() -> None:
    """Run in a subprocess: `memory MODEL RUN` or `matrix`. Print one number."""
    if sys.argv[1] == "matrix":
        print(_matrix_flops())
        return
    model, run = Path(sys.argv[2]), Run.parse(sys.argv[3])
    geometry = read_manifest(model).geometry
    images = drawn_images(1, height=geometry.height, width=geometry.width)
    before = _resident_bytes()
    backend = open_backend(model, run, threads=1)
    for _ in range(2):
        backend.run(images)
    print(_resident_bytes() - before)


def _matrix_flops() -> float:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((MATRIX_SIDE, MATRIX_SIDE), np.float32) for _ in range(2))
    seconds = []
    for _ in range(1 + MATRIX_ROUNDS):
        started = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - started)
    return 2 * MATRIX_SIDE**3 / min(seconds[1:])  # the best, since it serves as an upper bound


def _resident_bytes() -> int:
    """Return this process's resident memory, or its peak on a system without /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return peak_memory()
    return pages * os.sysconf("SC_PAGE_SIZE")
