"""Codes whose links or lists come from elsewhere: exact neighbors stand in for a GPU's, and tests
that need a GPU run where FAISS sees one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from featkit.errors import EnvironmentProblem, InputError
from featkit.index import Index
from featkit.index.approximate import on_gpu
from featkit.index.approximate.building import LowRecall, compact
from featkit.index.approximate.codes import COARSE_GRAPH, FINE_GRAPH, KINDS, LISTS, Codes, Kind
from featkit.index.approximate.generation import Generation, codes_path
from featkit.index.approximate.graph import LINKS, add_linked, begin_graph
from featkit.index.approximate.on_gpu import Gpu, GpuProblem, choose_gpu
from featkit.index.bounded_faiss import faiss
from tests.featkit.index.approximate.conftest import (
    NUM_ITEMS,
    WIDTH,
    StandIn,
    clumped,
    use,
)

GPUS = getattr(faiss, "get_num_gpus", lambda: 0)()
needs_gpu = pytest.mark.skipif(GPUS == 0, reason="FAISS sees no GPU")
needs_cuvs = pytest.mark.skipif(
    GPUS == 0 or not hasattr(faiss, "GpuIndexCagra"), reason="FAISS with cuVS sees no GPU"
)


class Unrelated(StandIn):
    """Links to strangers only."""

    def links(self, vectors: np.ndarray, num_links: int) -> np.ndarray:
        return np.random.default_rng(0).integers(0, len(vectors), (len(vectors), num_links))


class Failing(StandIn):
    """A GPU without enough memory."""

    def links(self, vectors: np.ndarray, num_links: int) -> np.ndarray:  # noqa: ARG002
        with on_gpu._failing():
            raise RuntimeError("out of memory\nat line 5")

    def copy_of(self, flat: Any) -> Any:  # noqa: ARG002
        with on_gpu._failing():
            raise MemoryError


def data(index: Path, generation: Generation) -> bytes:
    return codes_path(index, generation.name).read_bytes()


def links_of(index: Any) -> np.ndarray:
    hnsw = index.hnsw
    return faiss.vector_to_array(hnsw.neighbors).reshape(-1, 2 * LINKS)


def test_links_are_kept_in_order_without_what_is_none() -> None:
    vectors = clumped(6)
    index = begin_graph(WIDTH)
    index.train(vectors)
    links = [
        [1, 2, 1, 3],
        [1, 0, 5, 0],
        [-1, 4, 6, 3],  # there are 6 nodes
        [2**32 - 1, 3, 3, 3],  # what CAGRA has for none
        [0, 1, 2, 3],
        [-1, -1, 0, -1],
    ]
    add_linked(index, vectors, np.array(links, np.int64))
    kept = [[each for each in row if each >= 0] for row in links_of(index).tolist()]
    assert kept == [[1, 2, 3], [0, 5], [4, 3], [], [0, 1, 2, 3], [0]]
    assert [row[: len(each)] for row, each in zip(links_of(index).tolist(), kept, strict=True)] == (
        kept
    )
    assert index.ntotal == index.storage.ntotal == 6


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_codes_by_another_device_find_what_they_should(
    index: Path, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(StandIn(), monkeypatch)
    steps: list[str] = []
    with Index.open(index) as opened:
        built = compact(opened, kind=kind, target=0.9, build_on="gpu", on_step=steps.append)
    assert (built.kind, built.built_on) == (kind, "gpu")
    assert f"building {kind.about} on the GPU" in steps
    queries = clumped(50, seed=5)
    true = np.argsort(-queries @ clumped(NUM_ITEMS).T, axis=1)[:, :10]
    with Index.open(index) as opened:
        found = opened.search(vectors=queries, k=10)
    pairs = zip(found, true, strict=True)
    assert np.mean([len({hit.id for hit in hits} & {*ids}) for hits, ids in pairs]) > 9


@pytest.mark.parametrize("kind", [FINE_GRAPH, COARSE_GRAPH], ids=lambda kind: kind.name)
def test_links_of_neighbors_are_as_good_as_a_cpus(
    index: Path, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(StandIn(), monkeypatch)
    vectors, recall = clumped(NUM_ITEMS), {}
    queries = clumped(200, seed=7)
    scores = queries @ vectors.T
    for device in ("cpu", "gpu"):
        with Index.open(index) as opened:
            built = compact(opened, kind=kind, target=0.9, build_on=device)
        ids = np.fromfile(index / "approximate" / f"{built.name}.ids", np.int64)
        codes = Codes.open(codes_path(index, built.name))
        found = ids[codes.search(queries, num_candidates=40, effort=40)]
        true = ids[np.argsort(-scores[:, ids], axis=1)[:, :10]]
        recall[device] = np.mean([np.isin(a, b).mean() for a, b in zip(true, found, strict=True)])
    assert recall["gpu"] > recall["cpu"] - 0.02


def test_lists_are_the_same_if_the_device_computes_the_same(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = StandIn()
    use(gpu, monkeypatch)
    made = {}
    with Index.open(index) as opened:
        for device in ("cpu", "gpu"):
            built = compact(opened, kind=LISTS, target=0.9, build_on=device)
            made[device] = built.name, data(index, built)
    assert made["cpu"][1] == made["gpu"][1]
    assert made["cpu"][0] != made["gpu"][0]
    assert gpu.num_copies == 2  # for k-means and for one batch


def test_a_cpu_builds_its_own_bytes_after_a_gpu(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(StandIn(), monkeypatch)
    steps: list[str] = []
    with Index.open(index) as opened:
        first = compact(opened, build_on="cpu")
        bytes_before = data(index, first)
        by_gpu = compact(opened, build_on="gpu")
        again = compact(opened, build_on="gpu", on_step=steps.append)
        assert (by_gpu.name, by_gpu.built_on) == (again.name, again.built_on)
        assert not any(step.startswith("building") for step in steps)
        last = compact(opened, build_on="cpu")
    assert (last.name, last.built_on) == (first.name, "cpu")
    assert data(index, last) == bytes_before


def test_a_bad_graph_is_refused(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(Unrelated(), monkeypatch)
    little = dataclasses.replace(FINE_GRAPH, efforts=(20,), candidates=(20,))
    with Index.open(index) as opened, pytest.raises(LowRecall, match="build with --build-on cpu"):
        compact(opened, kind=little, build_on="gpu")


@pytest.mark.parametrize("kind", [FINE_GRAPH, LISTS], ids=lambda kind: kind.name)
def test_auto_builds_on_the_cpu_if_the_gpu_fails(
    index: Path, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(Failing(), monkeypatch)
    steps: list[str] = []
    with Index.open(index) as opened:
        with pytest.raises(GpuProblem, match="could not build the codes"):
            compact(opened, kind=kind, target=0.9, build_on="gpu")
        built = compact(opened, kind=kind, target=0.9, on_step=steps.append)
        assert built.built_on == "cpu"
    assert any("building on the CPU" in step for step in steps)


CPU_ONLY = SimpleNamespace()
WITHOUT_CUVS = SimpleNamespace(index_cpu_to_gpu=None, get_num_gpus=lambda: 1)
WITHOUT_GPU = SimpleNamespace(index_cpu_to_gpu=None, GpuIndexCagra=None, get_num_gpus=lambda: 0)
COMPLETE = SimpleNamespace(
    index_cpu_to_gpu=None,
    GpuIndexCagra=None,
    get_num_gpus=lambda: 1,
    StandardGpuResources=lambda: None,
)
MANY = {"num_rows": 100_000, "width": 8}


@pytest.mark.parametrize(
    ("installed", "advice"),
    [
        (CPU_ONLY, "installed without GPUs; .*pip install faiss-gpu-cuvs"),
        (WITHOUT_CUVS, "without cuVS, which links graphs; .*pip install faiss-gpu-cuvs"),
        (WITHOUT_GPU, "sees no GPU; .*nvidia-smi"),
    ],
)
def test_a_gpu_that_is_asked_for_must_be_there(
    installed: object, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_gpu, "faiss", installed)
    with pytest.raises(EnvironmentProblem, match=advice):
        choose_gpu("gpu", links=True, **MANY)
    assert choose_gpu("auto", links=True, **MANY) is None
    assert choose_gpu("cpu", links=True, **MANY) is None


def test_lists_need_no_cuvs(monkeypatch: pytest.MonkeyPatch) -> None:
    with_resources = SimpleNamespace(**vars(WITHOUT_CUVS), StandardGpuResources=lambda: None)
    monkeypatch.setattr(on_gpu, "faiss", with_resources)
    assert isinstance(choose_gpu("gpu", links=False, **MANY), Gpu)
    assert isinstance(choose_gpu("auto", links=False, **MANY), Gpu)


def test_few_images_are_left_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_gpu, "faiss", COMPLETE)
    assert isinstance(choose_gpu("auto", links=True, **MANY), Gpu)
    assert choose_gpu("auto", links=True, num_rows=10_000, width=8) is None
    assert isinstance(choose_gpu("gpu", links=True, num_rows=10_000, width=8), Gpu)
    with pytest.raises(InputError, match="at least 1,000 images, and there are 999"):
        choose_gpu("gpu", links=True, num_rows=999, width=8)


def test_vectors_that_do_not_fit_are_left_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_gpu, "faiss", COMPLETE)
    monkeypatch.setattr(on_gpu, "spare_memory", lambda: 50_000_000)
    assert choose_gpu("auto", links=True, **MANY) is None
    with pytest.raises(EnvironmentProblem, match=r"needs 54\.4 MB of memory .* 50\.0 MB are free"):
        choose_gpu("gpu", links=True, **MANY)
    assert isinstance(choose_gpu("gpu", links=False, **MANY), Gpu)


@needs_cuvs
@pytest.mark.parametrize("kind", [FINE_GRAPH, COARSE_GRAPH], ids=lambda kind: kind.name)
def test_a_gpu_links_a_graph(index: Path, kind: Kind) -> None:
    with Index.open(index) as opened:
        built = compact(opened, kind=kind, target=0.9, build_on="gpu")
    assert (built.kind, built.built_on) == (kind, "gpu")


@needs_gpu
def test_a_gpu_makes_lists(index: Path) -> None:
    with Index.open(index) as opened:
        built = compact(opened, kind=LISTS, target=0.9, build_on="gpu")
    assert (built.kind, built.built_on) == (LISTS, "gpu")
