"""Embedding with little memory: fewer threads, large images one after the other, the same rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
from PIL import Image

from featkit import pipeline, resources, workers
from featkit.embedder import Embedder
from featkit.embeddings import Embeddings
from featkit.images.room import PLAIN, MemoryBudget
from featkit.pipeline import EmbedOptions, embed_source
from featkit.sources import open_source
from featkit.workers import workers_for
from tests.commands import REPOSITORY, digests, is_one_sentence, run_featkit
from tests.model_files import make_model_file

MB = 10**6
SMALL_MB, NUM_CORES = 512, 16
NUM_LARGE, LARGE_SIDE = 6, 2500  # 6 million pixels: 94 MB each while they are decoded

# Runs `featkit embed` as if on a machine of 16 cores and 512 MB; prints the peak memory in MB.
PLAYED = """
import sys, threading, time
from featkit import resources, workers
peak = 0
def watch():  # ru_maxrss begins with what the process that started this one had
    global peak
    while True:
        peak = max(peak, resources.own_memory()[1])
        time.sleep(0.002)
threading.Thread(target=watch, daemon=True).start()
resources.machine_memory = lambda: [512 * 10**6]
resources.cgroup_folders = lambda controller: []
resources.os.sched_getaffinity = lambda process: set(range(16))
from featkit.cli.app import main
status = main(sys.argv[1:])
print(peak // 10**6)
sys.exit(status)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model file."""
    return make_model_file(tmp_path_factory.mktemp("model") / "m.onnx")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images that are decoded at full size: one file under many names."""
    folder = tmp_path_factory.mktemp("large")
    first = folder / "00.png"
    Image.new("RGB", (LARGE_SIDE, LARGE_SIDE), (90, 120, 30)).save(first, compress_level=1)
    for i in range(1, NUM_LARGE):
        (folder / f"{i:02d}.png").hardlink_to(first)
    return folder


@pytest.mark.parametrize(("spare_mb", "expected"), [(60_000, 16), (2_000, 5), (300, 1), (0, 1)])
def test_number_of_threads_fits_in_memory(
    model: Path, monkeypatch: pytest.MonkeyPatch, spare_mb: int, expected: int
) -> None:
    monkeypatch.setattr(workers, "usable_cpus", lambda: NUM_CORES)
    monkeypatch.setattr(resources, "spare_memory", lambda: spare_mb * MB)
    assert workers_for(Embedder(model, threads=1)) == expected


def test_large_images_wait_for_each_other(
    model: Path, large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Watched] = []
    monkeypatch.setattr(Watched, "made", made)
    monkeypatch.setattr(workers, "MemoryBudget", Watched)
    monkeypatch.setattr(workers, "spare_memory", lambda: workers.RESERVED_BYTES + 200 * MB)
    report = embed_source(
        open_source(large), Embedder(model, threads=1), tmp_path / "e", EmbedOptions(workers=4)
    )
    (budget,) = made
    assert (report.num_workers, report.num_failed, budget.num_bytes) == (4, 0, 200 * MB)
    assert budget.taken == [LARGE_SIDE**2 * PLAIN] * NUM_LARGE  # two of them fit at a time
    assert budget._free == budget.num_bytes
    monkeypatch.setattr(workers, "spare_memory", lambda: 100_000 * MB)
    embed_source(
        open_source(large), Embedder(model, threads=1), tmp_path / "plenty", EmbedOptions(workers=4)
    )
    assert len(made) == 1  # nothing is counted if everything fits
    assert digests(tmp_path / "plenty" / "shards") == digests(tmp_path / "e" / "shards")


class Watched(MemoryBudget):
    """A budget that records what is taken."""

    made: ClassVar[list[Watched]] = []

    def __init__(self, num_bytes: int) -> None:
        super().__init__(num_bytes)
        self.made.append(self)
        self.taken: list[int] = []

    def take(self, num_bytes: int) -> int:
        self.taken.append(num_bytes)
        return super().take(num_bytes)


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not say what a process holds")
@pytest.mark.parametrize("threads", [(), ("--threads", "8")])
def test_job_fits_into_a_small_machine(
    model: Path, large: Path, tmp_path: Path, threads: tuple[str, ...]
) -> None:
    command = ["embed", large, "--model", model, "--out", tmp_path / "e", "--json", *threads]
    done = subprocess.run(
        [sys.executable, "-c", PLAYED, *map(str, command)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ,
    )
    report, peak = done.stdout.splitlines()
    assert json.loads(report)["threads"] == (8 if threads else 1)
    assert (json.loads(report)["failed"], json.loads(report)["embedded_now"]) == (0, NUM_LARGE)
    assert int(peak) < SMALL_MB
    assert Embeddings.open(tmp_path / "e").num_rows == NUM_LARGE


def test_report_explains_a_reduced_number_of_threads(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (40, 40)).save(folder / "a.png")
    command = [
        sys.executable,
        "-c",
        PLAYED,
        "embed",
        str(folder),
        "--model",
        str(model),
        "--out",
        str(tmp_path / "e"),
        "--quiet",
    ]
    out = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert (
        "Memory is limited to 512 MB, so only 1 of 16 threads were used; change this with"
        " --threads." in " ".join(out.split())
    )


def test_running_out_of_memory_is_reported(
    monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path
) -> None:
    def out_of_memory(*_arguments: object, **_options: object) -> None:
        raise MemoryError("malloc of size 1600 failed")

    monkeypatch.setattr(pipeline, "embed_source", out_of_memory)
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    said = run_featkit(
        "embed", tmp_path / "a.png", "--model", model, "--out", tmp_path / "e", "--quiet"
    )
    assert (said.code, is_one_sentence(said)) == (3, True)
    assert "out of memory; this process may use" in said.error
