"""Conditions that hold for all tests: ONNX Runtime runs the models, and a worker has one core.

ONNX Runtime, so that nothing is measured first and vectors are the same everywhere. Tests of `auto`
itself remove the two variables and name a cache folder of their own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.shared_files import share_below

DEFAULTS = {"FEATKIT_BACKEND": "onnxruntime", "FEATKIT_PRECISION": "fp32"}


ALL_CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def keep_to_one_core(worker: str) -> None:
    """Pin this worker of pytest-xdist, and every process it starts, to a core of its own.

    Threads of two workers on two cores would wait for each other at the end of every operation:
    on a busy machine, 40 steps of the smallest training took 30 s of CPU time that way, against
    0.5 s with one thread.
    """
    if ALL_CORES:  # macOS and Windows cannot pin
        index = int(worker.removeprefix("gw")) % len(ALL_CORES)
        os.sched_setaffinity(0, {ALL_CORES[index]})


# When this file is imported, no library has started its threads yet.
if "PYTEST_XDIST_WORKER" in os.environ:
    keep_to_one_core(os.environ["PYTEST_XDIST_WORKER"])


@pytest.fixture
def all_cores() -> Iterator[None]:
    """Undo the pin for a test about several processors or several loader processes."""
    if not ALL_CORES:
        yield
        return
    pinned = os.sched_getaffinity(0)
    os.sched_setaffinity(0, ALL_CORES)
    yield
    os.sched_setaffinity(0, pinned)


@pytest.fixture(autouse=True, scope="session")
def _share_files(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Choose the folder of shared files: the one that holds the folders of all workers."""
    base = tmp_path_factory.getbasetemp()
    share_below(base.parent if "PYTEST_XDIST_WORKER" in os.environ else base)


@pytest.fixture(autouse=True, scope="session")
def _onnxruntime_by_default() -> Iterator[None]:
    """Set the variables before any fixture opens a model; processes of commands inherit them."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in DEFAULTS.items():
            patch.setenv(name, value)
        yield
