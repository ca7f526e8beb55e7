"""The first calls of a process, by several threads at once, end and agree.

OpenVINO's Python binding once deadlocked there, as explained at `_complete_type_tables` in
featkit/backends/openvino.py.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from featkit.backends import Run
from tests.commands import REPOSITORY
from tests.featkit.backends.engines import RUNS, needs_openvino
from tests.featkit.backends.graphs import make_layered_file

NUM_COLD_STARTS = 200
TIMEOUT_S = 30.0  # a cold start takes less than two seconds; a deadlock never ends

# Arguments: model, engine and precision, number of threads, what is shared ("backend", "module" or
# "nothing"), switch interval.
FIRST_CALLS = """
import sys, threading
model, run, num_threads, shared, interval = sys.argv[1:]
sys.setswitchinterval(float(interval))
import numpy as np
from pathlib import Path
if SLOW:
    import time, numpy.lib
    # The binding calls this while it holds its lock; now it takes long enough for all to wait.
    class Slow(numpy.lib.NumpyVersion):
        def __init__(self, text):
            time.sleep(0.3)
            super().__init__(text)
    numpy.lib.NumpyVersion = Slow
from featkit.backends import Run, open_backend
images = np.arange(2 * 32 * 32 * 3, dtype=np.uint64).astype(np.uint8).reshape(2, 32, 32, 3)
backend = open_backend(Path(model), Run.parse(run), threads=1) if shared == "backend" else None
if shared == "module":
    import featkit.backends.openvino
barrier, vectors = threading.Barrier(int(num_threads)), []
def work():
    barrier.wait()
    mine = backend or open_backend(Path(model), Run.parse(run), threads=1)
    for _ in range(3):
        vectors.append(mine.run(images)["embedding"])
threads = [threading.Thread(target=work, daemon=True) for _ in range(int(num_threads))]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert len(vectors) == 3 * int(num_threads)
assert all(np.array_equal(each, vectors[0]) for each in vectors)
"""
SLOW_NUMPY, PLAIN = f"SLOW = True\n{FIRST_CALLS}", f"SLOW = False\n{FIRST_CALLS}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model file."""
    return make_layered_file(tmp_path_factory.mktemp("model") / "m.onnx")


def start_cold(
    program: str,
    model: Path,
    run: Run,
    *,
    threads: int,
    shared: str = "backend",
    interval: float = 1e-6,
) -> None:
    """Run the program in a process of its own; TimeoutExpired if it hangs."""
    command = [
        sys.executable,
        "-c",
        program,
        str(model),
        str(run),
        str(threads),
        shared,
        str(interval),
    ]
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@needs_openvino
@pytest.mark.parametrize("shared", ["backend", "module", "nothing"])
def test_threads_wait_for_no_one_while_numpy_loads(model: Path, shared: str) -> None:
    """Hung every time, not one time in eight, before the tables were filled at the import."""
    start_cold(SLOW_NUMPY, model, Run("openvino", "fp32"), threads=4, shared=shared)


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("threads", [2, 8])
def test_first_calls_of_several_threads_end(model: Path, run: Run, threads: int) -> None:
    start_cold(PLAIN, model, run, threads=threads)


@pytest.mark.slow
@needs_openvino
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("threads", [2, 4, 8])
def test_two_hundred_cold_starts_end(model: Path, threads: int) -> None:
    run = Run("openvino", "fp32")
    for i in range(NUM_COLD_STARTS):
        shared = ("backend", "module", "nothing")[i % 3]
        start_cold(
            PLAIN, model, run, threads=threads, shared=shared, interval=(1e-6, 0.005)[i // 3 % 2]
        )
