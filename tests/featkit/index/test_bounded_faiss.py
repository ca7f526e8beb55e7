"""FAISS never starts more threads than processors, whichever thread calls or imports it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from featkit.resources import usable_cpus
from tests.commands import REPOSITORY

# Prints the threads that OpenMP allows in a new thread, in one search and in four concurrent
# ones, and the variable.
PROGRAM = """
import os, sys, threading
import numpy as np
if sys.argv[1] == "faiss-first":
    import faiss
from featkit.index import exact
from featkit.index.bounded_faiss import faiss, shared_processors
def in_threads(count, ask):
    seen, barrier = [], threading.Barrier(count)
    threads = [threading.Thread(target=lambda: seen.append(ask(barrier))) for _ in range(count)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    return max(seen)
def inside(barrier):
    vectors = np.eye(8, dtype=np.float32)
    seen, scan = [], faiss.knn_inner_product
    def watched(*arguments):
        seen.append(faiss.omp_get_max_threads())
        return scan(*arguments)
    faiss.knn_inner_product = watched
    exact.exact_search(vectors[:4], vectors, k=1, allowed=np.ones(8, bool))
    return max(seen)
def share(barrier):
    with shared_processors() as allowed:
        barrier.wait()
        return allowed
print(in_threads(1, lambda _: faiss.omp_get_max_threads()), in_threads(1, inside),
      in_threads(1, share), in_threads(4, share), os.environ.get("OMP_NUM_THREADS"))
"""


def asked(order: str, environment: str | None) -> list[str]:
    variables = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    variables |= {} if environment is None else {"OMP_NUM_THREADS": environment}
    command = [sys.executable, "-c", PROGRAM, order]
    return subprocess.run(
        command, cwd=REPOSITORY, env=variables, capture_output=True, text=True, check=True
    ).stdout.split()


@pytest.mark.parametrize(
    ("environment", "bound"),
    [("16", usable_cpus()), ("1", 1), ("9,3", usable_cpus()), (None, usable_cpus())],
)
def test_threads_start_with_at_most_one_per_processor(environment: str | None, bound: int) -> None:
    new_thread, in_search, alone, _, left = asked("featkit-first", environment)
    assert (int(new_thread), int(in_search), int(alone)) == (bound, bound, bound)
    assert left == str(environment)  # the program's own variable is unchanged


def test_search_is_bounded_if_faiss_was_imported_first() -> None:
    _, in_search, *_ = asked("faiss-first", "16")
    assert int(in_search) == usable_cpus()


def test_concurrent_callers_divide_the_processors() -> None:
    from featkit.index.bounded_faiss import shared_processors

    with shared_processors() as first, shared_processors() as second:
        assert (first, second) == (usable_cpus(), max(1, usable_cpus() // 2))
    with shared_processors() as again:
        assert again == usable_cpus()
