"""autofaiss to compare with, in an environment and processes of its own.

    N vectors, Q queries

autofaiss_process.py runs there. autofaiss chooses its index and how to search it, within a memory
that it is given; it has no target of recall.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from featkit.index.bounded_faiss import MOST_THREADS
from featkit.index.searcher import Neighbors
from tests.benchmarks.other_indexes import Answer, Ask, K

AUTOFAISS = "autofaiss"
# autofaiss 2.18.0 needs numpy 1, which later versions of pyarrow refuse, and names an argument of
# OPQMatrix, which later versions of FAISS do not take by its name.
REQUIREMENTS = ("autofaiss==2.18.0", "pyarrow<21", "faiss-cpu<1.14")
MEMORY_SHARE = 0.25  # of the vectors' bytes, as featkit's finest codes
PROGRAM = Path(__file__).with_name("autofaiss_process.py")


def make_environment(folder: Path) -> Path:
    """Return the Python of an environment with autofaiss in this folder, made if it is not there.

    SystemExit if it cannot be installed.
    """
    python, done = folder / "bin" / "python", folder / "installed.txt"
    if done.is_file() and done.read_text() == "\n".join(REQUIREMENTS):
        return python
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for words in ([sys.executable, "-m", "venv", str(folder)], [*pip, *REQUIREMENTS]):
        if subprocess.run(words, check=False).returncode:
            raise SystemExit(
                "autofaiss could not be installed; see above, or leave out --autofaiss."
            )
    done.write_text("\n".join(REQUIREMENTS))
    return python


def build(python: Path, vectors: np.ndarray, file: Path) -> dict[str, Any]:
    """Build an index of vectors (N, D) float32; return its seconds and peak memory, and how
    autofaiss chose to search."""
    folder = file.with_name(f"{file.name}-vectors")
    folder.mkdir(exist_ok=True)
    np.save(folder / "vectors.npy", vectors)
    memory = f"{round(MEMORY_SHARE * vectors.nbytes / 2**10)}KB"
    words = [str(python), str(PROGRAM), "build", str(folder), str(file), memory]
    started = time.perf_counter()
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, env=_environment())
    seconds = round(time.perf_counter() - started, 1)
    return {"build s": seconds, **json.loads(done.stdout.splitlines()[-1])}


@contextmanager
def served(python: Path, file: Path) -> Iterator[Ask]:
    """Open an index in a process of the other environment, and yield a function that asks it.

    Its answers have the ids that the index finds, without scores, and the seconds of its search.
    """
    process = subprocess.Popen(
        [str(python), str(PROGRAM), "serve", str(file), str(K)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=_environment(),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    to_process, from_process = process.stdin, process.stdout

    def ask(queries: np.ndarray) -> Answer:
        count = len(queries)
        data = np.ascontiguousarray(queries, np.float32).tobytes()
        to_process.write(count.to_bytes(8, "little") + data)
        to_process.flush()
        size = 8 * (1 + count * K)
        answer = from_process.read(size)
        if len(answer) < size:
            raise RuntimeError(f"The process of {AUTOFAISS} has ended.")
        ids = np.frombuffer(answer, np.int64, offset=8).reshape(count, K)
        no_scores = np.zeros(K, np.float32)
        seconds = float(np.frombuffer(answer[:8])[0])
        return Answer([Neighbors(row, no_scores) for row in ids], seconds)

    with process:  # closes the pipes, which ends it, and waits
        yield ask


def _environment() -> dict[str, str]:
    """Return the variables of the other processes: as many threads as this one may use, and none of
    this environment's packages."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**kept, "OMP_NUM_THREADS": str(MOST_THREADS)}
