"""FAISS with no more threads than processors, whichever thread calls it.

This is the only module that imports faiss. OpenMP keeps its number of threads per calling thread:
calling `omp_set_num_threads` in the thread that imports faiss does not affect a service's workers,
each of which would start as many threads as the machine has processors, however few this process
may use. So new threads start with a bound, which OpenMP reads from the environment once, when it is
loaded. Concurrent callers divide the processors among them, since each has its own team of threads.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from featkit.resources import usable_cpus

VARIABLE = "OMP_NUM_THREADS"


def _most_threads() -> int:
    """Return the number of usable processors, or the user's bound on OpenMP if it is lower."""
    cpus = usable_cpus()
    with suppress(ValueError):
        cpus = min(cpus, max(1, int(os.environ.get(VARIABLE, "").split(",")[0])))
    return cpus


MOST_THREADS = _most_threads()


@contextmanager
def _bound_in_environment() -> Iterator[None]:
    """Set OpenMP's variable during the first import of faiss, which makes OpenMP read it."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = str(MOST_THREADS)
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


with _bound_in_environment():
    import faiss

faiss.omp_set_num_threads(MOST_THREADS)  # if the program imported faiss earlier
# Batches of queries that have as many numbers, Q x D, are multiplied with rows as a matrix: eight
# queries of 384 dimensions, instead of 334. From there on it takes less time.
faiss.cvar.distance_compute_blas_threshold = 3072

__all__ = ["faiss", "shared_processors"]

_lock = threading.Lock()
_num_callers = 0


@contextmanager
def shared_processors(most: int = MOST_THREADS) -> Iterator[int]:
    """Bound FAISS to the calling thread's share of the processors, and yield that number.

    most: of use to the caller. A thread without work costs a wait for its processor, which now and
    then takes milliseconds.
    """
    global _num_callers
    with _lock:
        _num_callers += 1
        share = max(1, min(most, MOST_THREADS // _num_callers))
    try:
        faiss.omp_set_num_threads(share)
        yield share
    finally:
        with _lock:
            _num_callers -= 1
