"""Codes are built from a snapshot, measured, and put in place by one transaction."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from featkit.errors import EnvironmentProblem, InputError, Interrupted
from featkit.index import Index, index_types
from featkit.index.approximate import building
from featkit.index.approximate.building import LowRecall, compact
from featkit.index.approximate.codes import FINE_GRAPH, KINDS, LISTS, Codes, Kind
from featkit.index.approximate.generation import FOLDER, SETTING, Generation
from featkit.index.approximate.searching import CodesSearcher
from featkit.index.builders import LOCK_FILE
from featkit.index.exact import ExactSearcher
from tests.featkit.index.approximate.conftest import NUM_ITEMS, WIDTH, clumped


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
        LOCK_FILE,
    ]


def test_another_build_replaces_the_files_and_counts_new_items(index: Path) -> None:
    old = generation_of(index)
    with Index.open(index, writable=True) as opened:
        opened.remove([f"{i}.jpg" for i in range(1000)])
        opened.add([f"new{i}.jpg" for i in range(500)], clumped(500, seed=8))
        new = compact(opened)
    assert new.name != old.name
    assert (new.num_items, new.until) == (2500 - 50, NUM_ITEMS + 500)
    assert files(index) == [f"{new.name}.faiss", f"{new.name}.ids", LOCK_FILE]


def test_a_state_just_replaced_is_searched_exactly(
    index: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Index.open(index, writable=True) as opened:
        old = opened.read(lambda state: state.catalogue.settings())
        opened.add([f"new{i}.jpg" for i in range(200)], clumped(200, seed=8))
        compact(opened)
    index_types._open.clear()
    assert isinstance(index_types.searcher_for(index, old), ExactSearcher)
    assert caplog.text == ""


def test_a_reader_of_the_old_generation_goes_over_to_the_new_one(index: Path) -> None:
    query = clumped(1, seed=9)
    with Index.open(index) as reader, Index.open(index) as builder:
        before = reader.search(vectors=query)
        new = compact(builder)
        assert reader.search(vectors=query) == before
        searcher = reader.read(lambda state: state.vectors.searcher)
        assert isinstance(searcher, CodesSearcher)
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
    little = dataclasses.replace(FINE_GRAPH, efforts=(16,), candidates=(20,))
    monkeypatch.setattr("featkit.index.approximate.building.FINE_GRAPH", little)
    old, before = generation_of(index), files(index)
    with Index.open(index) as opened:
        with pytest.raises(LowRecall, match="but 1 was asked for") as caught:
            compact(opened, kind=little, target=1.0)
        assert caught.value.generation.measured.low < 1
        assert (generation_of(index), files(index)) == (old, before)
        new = compact(opened, kind=little, target=1.0, allow_low_recall=True)
    assert generation_of(index) == new


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_kind_is_built_and_finds_most(index: Path, kind: Kind) -> None:
    with Index.open(index) as opened:
        built = compact(opened, kind=kind, target=0.9)
        assert (built.kind, generation_of(index)) == (kind, built)
        queries = clumped(50, seed=5)
        found = opened.search(vectors=queries, k=10)
    true = np.argsort(-queries @ clumped(NUM_ITEMS).T, axis=1)[:, :10]
    pairs = zip(found, true, strict=True)
    assert np.mean([len({hit.id for hit in hits} & {*ids}) for hits, ids in pairs]) > 9
    promised = NUM_ITEMS * kind.bytes_per_row(WIDTH)
    assert built.num_bytes < promised + 200_000


def test_another_recall_is_tuned_without_building_again(index: Path) -> None:
    steps: list[str] = []
    old = generation_of(index)
    with Index.open(index) as opened:
        new = compact(opened, target=0.9, on_step=steps.append)
        assert (new.name, new.target) == (old.name, 0.9)
        searcher = opened.read(lambda state: state.vectors.searcher)
        assert isinstance(searcher, CodesSearcher)
        assert searcher.generation.record == new
    assert not any(step.startswith("building") for step in steps)


def test_what_was_built_outlives_a_stop_while_it_is_measured(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    steps: list[str] = []
    with Index.open(index, writable=True) as opened:
        opened.add(["new.jpg"], clumped(1, seed=8))
        with monkeypatch.context() as patch:
            patch.setattr(building, "tune", stop)
            with pytest.raises(Interrupted):
                compact(opened)
        new = compact(opened, on_step=steps.append)
    assert generation_of(index) == new
    assert not any(step.startswith("building") for step in steps)


def test_leftovers_of_a_killed_build_are_removed(index: Path) -> None:
    (index / FOLDER / "x.faiss.partial-1").write_bytes(b"x")
    with Index.open(index) as opened:
        compact(opened)
    assert len(files(index)) == 3


def test_a_copy_put_in_place_meanwhile_is_refused(index: Path) -> None:
    """The copy is of an earlier time, and has got other items since."""
    backup = shutil.copytree(index, index.with_name("backup"))
    for path, seed in ((index, 21), (backup, 22)):
        with Index.open(path, writable=True) as writer:
            writer.add([f"new{i}.jpg" for i in range(1500)], clumped(1500, seed=seed))

    def replace(_step: str) -> None:
        for file in filter(Path.is_file, backup.iterdir()):
            shutil.copyfile(file, index / file.name)

    old = generation_of(index)
    with Index.open(index) as opened, pytest.raises(InputError, match="was replaced by another"):
        compact(opened, allow_low_recall=True, on_step=replace)
    assert generation_of(index) == old


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
        for file in (index / FOLDER).glob("0*"):
            file.unlink()

        def stop(done: int, _total: int) -> None:
            if done > 1400:
                raise KeyboardInterrupt

        with pytest.raises(Interrupted, match="the same command continues"):
            compact(opened, on_progress=stop)
        seen: list[int] = []
        compact(opened, on_progress=lambda done, _total: seen.append(done))
    assert seen[0] == 1400
    assert digest() == whole
    assert "building.faiss" not in files(index)


def test_any_number_of_threads_builds_the_same_bytes(index: Path) -> None:
    program = f"""
import dataclasses
import hashlib
from pathlib import Path
from featkit.index import Index
from featkit.index.approximate.building import compact
for file in Path({str(index)!r}, "approximate").glob("0*"):
    file.unlink()
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
        assert isinstance(opened.read(lambda state: state.vectors.searcher), CodesSearcher)


def test_a_full_disk_leaves_the_index_as_it_was(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = generation_of(index)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Codes, "write", full)
    with Index.open(index) as opened, pytest.raises(EnvironmentProblem, match="No space left"):
        compact(opened, kind=LISTS)
    assert generation_of(index) == old
    assert f"{old.name}.faiss" in files(index)
