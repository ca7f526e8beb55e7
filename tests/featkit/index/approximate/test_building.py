"""A graph is built from a snapshot, measured, and put in place by one transaction."""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from featkit.errors import EnvironmentProblem, InputError, Interrupted
from featkit.index import Index
from featkit.index.approximate import building
from featkit.index.approximate.building import LowRecall, compact
from featkit.index.approximate.generation import FOLDER, SETTING, Generation
from featkit.index.approximate.searching import GraphSearcher
from featkit.index.exact import ExactSearcher
from tests.featkit.index.approximate.conftest import NUM_ITEMS, clumped


def generation_of(index: Path) -> Generation:
    with Index.open(index) as opened:
        text = opened.read(lambda state: state.catalogue.settings()[SETTING])
    return Generation.from_json(str(text))


def files(index: Path) -> list[str]:
    return sorted(file.name for file in (index / FOLDER).iterdir())


def test_a_generation_records_what_was_measured(index: Path) -> None:
    generation = generation_of(index)
    measured = generation.measured
    assert (generation.num_items, generation.until) == (NUM_ITEMS - 60, NUM_ITEMS)
    assert measured.num_queries == 60
    assert 0.95 <= measured.low <= measured.recall_at_10 <= 1
    assert 0 < measured.p50_ms <= measured.p99_ms
    assert Generation.from_json(generation.to_json()) == generation
    assert files(index) == [
        f"{generation.name}.faiss",
        f"{generation.name}.ids",
        building.LOCK_FILE,
    ]


def test_another_build_replaces_the_files_and_counts_new_items(index: Path) -> None:
    old = generation_of(index)
    with Index.open(index, writable=True) as opened:
        opened.remove([f"{i}.jpg" for i in range(1000)])
        opened.add([f"new{i}.jpg" for i in range(500)], clumped(500, seed=8))
        new = compact(opened)
    assert new.name != old.name
    assert (new.num_items, new.until) == (2500 - 50, NUM_ITEMS + 500)
    assert files(index) == [f"{new.name}.faiss", f"{new.name}.ids", building.LOCK_FILE]


def test_a_reader_of_the_old_generation_goes_over_to_the_new_one(index: Path) -> None:
    query = clumped(1, seed=9)
    with Index.open(index) as reader, Index.open(index) as builder:
        before = reader.search(vectors=query)
        new = compact(builder)
        assert reader.search(vectors=query) == before
        searcher = reader.read(lambda state: state.vectors.searcher)
        assert isinstance(searcher, GraphSearcher)
        assert searcher.generation.record == new


def test_a_build_does_not_disturb_a_writer(index: Path) -> None:
    with Index.open(index, writable=True) as writer, Index.open(index) as builder:
        writer.add(["before.jpg"], clumped(1, seed=10))
        compact(builder)
        writer.add(["after.jpg"], clumped(1, seed=11))
        assert builder.search(vectors=clumped(1, seed=11), k=1)[0][0].key == "after.jpg"
        assert len(builder) == NUM_ITEMS + 2


def test_a_recall_that_is_not_reached_changes_nothing(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featkit.index.approximate.tuning.EFS", (16,))
    monkeypatch.setattr("featkit.index.approximate.tuning.CANDIDATES", (20,))
    old, before = generation_of(index), files(index)
    with Index.open(index) as opened:
        with pytest.raises(LowRecall, match="but 1 was asked for") as caught:
            compact(opened, target=1.0)
        assert caught.value.generation.measured.low < 1
        assert (generation_of(index), files(index)) == (old, before)
        new = compact(opened, target=1.0, allow_low_recall=True)
    assert generation_of(index) == new


def test_an_index_without_enough_images_is_refused(tmp_path: Path, model: Path) -> None:
    with Index.create(tmp_path / "i", model=model) as opened:
        opened.add(["0.jpg"], clumped(1))
        with pytest.raises(InputError, match="has 1 image; add more"):
            compact(opened)
        opened.add(["1.jpg"], clumped(1, seed=1))
        compact(opened, allow_low_recall=True)
        assert len(opened.search(vectors=clumped(1), k=5)[0]) == 2


@pytest.mark.parametrize("target", [0, -1, 1.5, float("nan")])
def test_an_impossible_recall_is_refused(index: Path, target: float) -> None:
    with Index.open(index) as opened, pytest.raises(InputError, match="above 0 and at most 1"):
        compact(opened, target=target)


def test_two_builds_at_once_are_refused(index: Path) -> None:
    def build_again(_step: str) -> None:
        with pytest.raises(EnvironmentProblem, match="is being written by"):
            compact(opened)

    with Index.open(index) as opened:
        compact(opened, on_step=build_again)


def test_a_stopped_build_continues_and_gives_the_same_bytes(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def digest() -> str:
        (graph,) = (index / FOLDER).glob("0*.faiss")
        return hashlib.sha256(graph.read_bytes()).hexdigest()

    monkeypatch.setattr(building, "ROWS_PER_ADD", 700)
    monkeypatch.setattr(building, "SAVE_EVERY_S", 0.0)
    with Index.open(index) as opened:
        compact(opened)
        whole = digest()

        def stop(done: int, _total: int) -> None:
            if done > 1400:
                raise KeyboardInterrupt

        with pytest.raises(Interrupted, match="the same command continues"):
            compact(opened, on_progress=stop)
        assert digest() == whole
        seen: list[int] = []
        compact(opened, on_progress=lambda done, _total: seen.append(done))
    assert seen[0] == 1400
    assert digest() == whole
    assert "building.faiss" not in files(index)


def test_any_number_of_threads_builds_the_same_bytes(index: Path) -> None:
    program = f"""
import hashlib
from pathlib import Path
from featkit.index import Index
from featkit.index.approximate.building import compact
with Index.open({str(index)!r}) as index:
    compact(index)
(graph,) = Path({str(index)!r}, "approximate").glob("0*.faiss")
print(hashlib.sha256(graph.read_bytes()).hexdigest())
"""
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "OMP_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "2")
    }
    assert len(digests) == 1


def test_damaged_files_are_reported_and_searched_exactly(
    index: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = generation_of(index).name
    graph = index / FOLDER / f"{name}.faiss"
    data = graph.read_bytes()
    for damage in (data[:-1], b"", b"x" * len(data)):
        graph.write_bytes(damage)
        with caplog.at_level(logging.WARNING), Index.open(index) as opened:
            searcher = opened.read(lambda state: state.vectors.searcher)
            assert isinstance(searcher, ExactSearcher)
            (hits,) = opened.search(vectors=clumped(1, seed=12), k=3)
        scores = clumped(NUM_ITEMS) @ clumped(1, seed=12)[0]
        assert [hit.id for hit in hits] == np.argsort(-scores)[:3].tolist()
        assert "run `featkit compact` to build it again" in caplog.text
        caplog.clear()
    with Index.open(index) as opened:
        compact(opened)
    with Index.open(index) as opened:
        assert isinstance(opened.read(lambda state: state.vectors.searcher), GraphSearcher)


def test_a_full_disk_leaves_the_index_as_it_was(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = generation_of(index)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(building, "write_graph", full)
    with Index.open(index) as opened, pytest.raises(EnvironmentProblem, match="No space left"):
        compact(opened)
    assert generation_of(index) == old
    assert f"{old.name}.faiss" in files(index)
