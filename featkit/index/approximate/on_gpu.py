"""Build codes on an NVIDIA GPU, if FAISS is installed for it. The result is an index for CPUs.

    n vectors, D width, d links

For a graph, CAGRA (arXiv 2308.15136) finds the links of all nodes, which takes FAISS with cuVS. For
lists, the GPU runs k-means and assigns the vectors, which any FAISS for GPUs can do. Codes, the
small graph and the measurement are the CPU's. A GPU's result differs from run to run; the recall is
measured as always.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import numpy as np
from rich.filesize import decimal

from featkit.errors import EnvironmentProblem, InputError
from featkit.index.bounded_faiss import faiss
from featkit.resources import spare_memory
from featkit.wording import first_line

BuildOn: TypeAlias = Literal["auto", "cpu", "gpu"]

WORTH_IT_FROM = 50_000  # vectors; a CPU builds fewer in seconds
LEAST = 1000  # vectors that CAGRA is given
BYTES_OF_LINKS = 2 * 8 * 32  # per vector: two copies of the links as FAISS returns them
CANDIDATES_PER_LINK = 2  # neighbors from which CAGRA chooses the links
INSTALL = (
    "uninstall faiss-cpu and faiss-gpu, then `pip install faiss-gpu-cuvs`, or build with --build-on"
    " cpu"
)


class GpuProblem(EnvironmentProblem):
    """The GPU failed to build the codes."""


class Gpu:
    """The first GPU that FAISS sees. Its methods raise GpuProblem if the GPU fails."""

    def __init__(self) -> None:
        made: Any = faiss  # whose stubs, and whose builds for CPUs, lack these classes
        with _failing():
            self._resources = made.StandardGpuResources()

    def links(self, vectors: np.ndarray, num_links: int) -> np.ndarray:
        """Return CAGRA's links between vectors (n, D) float32, (n, d = num_links) int64."""
        made: Any = faiss
        config = made.GpuIndexCagraConfig()
        config.graph_degree = num_links
        config.intermediate_graph_degree = CANDIDATES_PER_LINK * num_links
        config.guarantee_connectivity = True
        config.store_dataset = False  # only the links are wanted
        config.build_algo = made.graph_build_algo_NN_DESCENT  # needs no parameters that fit n
        vectors = np.ascontiguousarray(vectors, np.float32)  # FAISS keeps a pointer to it
        with _failing():
            index = made.GpuIndexCagra(self._resources, vectors.shape[1], faiss.METRIC_L2, config)
            index.train(vectors)
            return faiss.vector_to_array(index.get_knngraph()).reshape(len(vectors), num_links)

    def copy_of(self, flat: Any) -> Any:
        """Return a copy on the GPU of FAISS's IndexFlat, which is used in the same way."""
        made: Any = faiss
        with _failing():
            return made.index_cpu_to_gpu(self._resources, 0, flat)

    @contextmanager
    def training(self, lists: Any) -> Iterator[None]:
        """Run the k-means of FAISS's IndexIVF, which is not trained yet, on the GPU."""
        copy = self.copy_of(faiss.IndexFlatL2(lists.d))
        lists.clustering_index = copy
        try:
            with _failing():
                yield
        finally:
            lists.clustering_index = None
            copy.thisown = True  # FAISS had taken it

    @contextmanager
    def assigning(self, lists: Any) -> Iterator[None]:
        """Find the lists of vectors that are added to FAISS's trained IndexIVF on the GPU."""
        quantizer = lists.quantizer
        copy = self.copy_of(faiss.downcast_index(quantizer))
        lists.quantizer = copy
        try:
            with _failing():
                yield
        finally:
            lists.quantizer = quantizer
            copy.thisown = True


def choose_gpu(build_on: BuildOn, *, links: bool, num_rows: int, width: int) -> Gpu | None:
    """Return the GPU that builds the codes of `num_rows` vectors, or None for the CPU.

    links: a graph is built, not lists. `auto` takes a GPU if it can build, there is memory for the
    vectors, and they are at least WORTH_IT_FROM.

    With `gpu`, EnvironmentProblem if it cannot build, naming what is missing, and InputError for
    fewer than LEAST vectors.
    """
    if build_on == "cpu" or (build_on == "auto" and num_rows < WORTH_IT_FROM):
        return None
    problem = _missing(links=links) or _memory_problem(links, num_rows, width)
    if build_on == "auto":
        return None if problem else Gpu()
    _refuse(problem)
    if num_rows < LEAST:
        raise InputError(
            f"--build-on gpu is for at least {LEAST:,} images, and there are"
            f" {num_rows:,}; build with --build-on cpu."
        )
    return Gpu()


def check_gpu(*, links: bool) -> None:
    """Check that a GPU can build; EnvironmentProblem that names what is missing if not.

    links: a graph is built, not lists.
    """
    _refuse(_missing(links=links))


def _refuse(problem: str | None) -> None:
    if problem is not None:
        raise EnvironmentProblem(f"--build-on gpu is not possible: {problem}.")


def _missing(*, links: bool) -> str | None:
    """Return why this FAISS cannot build on a GPU, and what to do; None if it can."""
    if not hasattr(faiss, "index_cpu_to_gpu"):
        return f"FAISS is installed without GPUs; {INSTALL}"
    if links and not hasattr(faiss, "GpuIndexCagra"):
        return f"FAISS is installed without cuVS, which links graphs; {INSTALL}"
    if faiss.get_num_gpus() == 0:
        return (
            "FAISS sees no GPU; check that `nvidia-smi` lists one and that its driver is new"
            " enough, or build with --build-on cpu"
        )
    return None


def _memory_problem(links: bool, num_rows: int, width: int) -> str | None:
    """Return why this machine's memory does not suffice; None if it does."""
    needed = num_rows * (4 * width + BYTES_OF_LINKS) if links else 0
    if needed <= (free := spare_memory()):
        return None
    return (
        f"building on a GPU needs {decimal(needed)} of memory for all vectors, and {decimal(free)}"
        " are free; build with --build-on cpu"
    )


@contextmanager
def _failing() -> Iterator[None]:
    """Raise GpuProblem for what FAISS raises."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        raise GpuProblem(
            f"The GPU could not build the codes ({first_line(error)}); build with --build-on cpu."
        ) from error
