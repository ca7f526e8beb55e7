"""How fast the engines run a model here, beside what this machine can do at all.

Runs take turns, so that whatever else the machine does hits all of them, and the median turn
counts. A turn is what the batch job does: as many callers at once as there are processors, each
with its batch and one thread.
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

ROUNDS = 5
MATRIX_SIDE = 1536  # its products take some 20 to 100 ms on a few cores
MATRIX_ROUNDS = 20
CHILD_TIMEOUT_S = 600.0
# Whichever library numpy multiplies with reads one of these when it is loaded.
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
    """The median rate of each, of so many turns of `seconds` / `rounds`, and one before that does
    not count.

    images: (N, H, W, 3) uint8, of which a call takes the first few. embedders: each made with
    threads=1.
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
    """Images a second of callers that begin no call after `seconds`, each with one at least."""
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
    """Multiplications with an addition that an image of the native size takes; None without
    openvino, which counts them."""
    if not is_installed(OPENVINO):
        return None
    from featkit.backends.openvino import num_multiply_adds

    geometry = read_manifest(model).geometry
    try:
        return num_multiply_adds(model, height=geometry.height, width=geometry.width)
    except RuntimeError:  # OpenVINO does not know an operator of it
        return None


def memory_bytes(model: Path, run: Run) -> int:
    """What a process grows by when it opens the session and runs a batch, the engine's own code
    included.

    FeatkitError when it does not end well.
    """
    return int(_in_child("memory", str(model), str(run), threads=1))


def matrix_flops(threads: int) -> float:
    """Operations a second of numpy's float32 matrix product with so many threads: what float32
    inference stays below."""
    return float(_in_child("matrix", threads=threads))


def _in_child(*arguments: str, threads: int) -> str:
    """What a process of its own prints, whose libraries are loaded with so many threads."""
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
            f"Measuring did not end within {CHILD_TIMEOUT_S:.0f} s; try a smaller model."
        ) from error
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["without a word"])[-1]
        raise FeatkitError(
            f"A process that measured {arguments[0]} ended with {error.returncode}: {last}."
        ) from error
    return done.stdout.strip().splitlines()[-1]


def child() -> None:
    """What runs in a process of its own: `memory MODEL RUN` or `matrix`. Prints one number."""
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
    return 2 * MATRIX_SIDE**3 / min(seconds[1:])  # a limit, so the best of them


def _resident_bytes() -> int:
    """Memory of this process that is in RAM; its peak so far where the system has no /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return pages * os.sysconf("SC_PAGE_SIZE")
