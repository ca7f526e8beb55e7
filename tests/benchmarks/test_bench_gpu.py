"""Tests of the code behind `make bench-gpu` without a GPU, and of the table of chips."""

from __future__ import annotations

from pathlib import Path

import pytest

from featkit.index.bounded_faiss import faiss
from tests.benchmarks import bench_gpu, bench_gpu_index, record
from tests.benchmarks.flops import chip_peak
from tests.data import needs_shared_data


# of lightly's and torch's own
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_bench_gpu_can_be_tried_on_a_cpu_keeping_no_figures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    figures = bench_gpu.main(["--cpu-check"])
    for name in bench_gpu.WORKS:
        loops = {row["loop"]: row for row in figures[name]["loops"]}
        assert set(loops) == {bench_gpu.EAGER, bench_gpu.LIGHTLY}
        assert all(row["images/s"] > 0 for row in loops.values())
        assert figures[name]["GFLOP an image"] > 0
        assert figures[name]["median ratio to lightly, alone"] > 0
    assert "| loop |" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@needs_shared_data
def test_bench_gpu_index_can_be_tried_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    rows = bench_gpu_index.main(["--cpu-check"])
    assert [row["codes"] for row in rows] == ["graph-4", "lists"]
    assert all(row["built on"] == "cpu" and row["recall@10"] > 0.9 for row in rows)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(getattr(faiss, "get_num_gpus", lambda: 0)() > 0, reason="FAISS sees a GPU")
def test_bench_gpu_index_says_what_it_needs() -> None:
    with pytest.raises(SystemExit, match=r"gpu is not possible: .* --cpu-check"):
        bench_gpu_index.main([])


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("Tesla T4", None),
    ],
)
def test_a_chip_is_known_by_the_whole_words_of_its_name(name: str, peak: float | None) -> None:
    assert chip_peak(name) == peak
