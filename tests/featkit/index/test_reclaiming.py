"""Rows of removed items are reclaimed, and nothing else changes."""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from pathlib import Path

import numpy as np
import pytest

from featkit.errors import EnvironmentProblem, InputError, Interrupted
from featkit.index import Index, connections, reclaiming, writer_token
from featkit.index.approximate.building import compact
from featkit.index.builders import excluding_builders
from featkit.index.checking import check
from featkit.index.reclaiming import DeadRows, reclaim
from featkit.index.vector_file import VectorFile, read_vectors, write_vectors
from tests.featkit.index.conftest import WIDTH, unit_vectors

Content = dict[int, tuple[str, bytes]]
ODD = [f"{number}.jpg" for number in range(1, 100, 2)]


def content(index: Index) -> Content:
    """Return the key and vector of each item by id."""
    return {item.id: (item.key, index.vector(item.id).tobytes()) for item in index.items(0, 10**6)}


def vector_files(path: Path) -> list[tuple[str, int]]:
    """Return the prefix of the name and the number of rows of each vectors file."""
    return sorted(
        (file.name[:8], file.stat().st_size // (4 * WIDTH)) for file in path.glob("*.f32")
    )


@pytest.fixture
def halved(photos: Path) -> Path:
    """The index `photos`, of which half the items were removed."""
    with Index.open(photos, writable=True) as index:
        index.remove(ODD)
    return photos


def test_reclaiming_halves_the_file_and_keeps_all(halved: Path) -> None:
    with Index.open(halved) as index:
        before, hits = content(index), index.search(vectors=unit_vectors(5, seed=1), k=60)
        assert DeadRows.of(index) == DeadRows(num_rows=100, num_dead=50, row_bytes=4 * WIDTH)
        dead = reclaim(index)
        assert (dead.num_dead, dead.num_bytes) == (50, 50 * WIDTH * 4)
        for opened in (index, Index.open(halved)):
            assert content(opened) == before
            assert opened.search(vectors=unit_vectors(5, seed=1), k=60) == hits
            assert DeadRows.of(opened).num_dead == 0
            opened.close()
    assert vector_files(halved) == [("vectors-", 50)]
    with sqlite3.connect(halved / "catalogue.sqlite") as catalogue:
        assert catalogue.execute("SELECT count(*) FROM items").fetchone() == (50,)


def test_ids_are_never_reused(halved: Path) -> None:
    with Index.open(halved, writable=True) as index:
        index.remove([f"{number}.jpg" for number in range(90, 100)])
        reclaim(index)
        assert index.add(["new", "newer"], unit_vectors(2, seed=2)) == [100, 101]
        np.testing.assert_array_equal(index.vector(101), unit_vectors(2, seed=2)[1])
        index.remove(["new", "newer"])
        reclaim(index)
        assert index.add(["newest"], unit_vectors(1)) == [102]
    assert vector_files(halved) == [("vectors-", 46)]


def test_an_emptied_index_can_be_filled_again(photos: Path) -> None:
    with Index.open(photos, writable=True) as index:
        index.remove(where="key like '%'")
        reclaim(index)
        assert len(index) == 0
        assert index.search(vectors=unit_vectors(1), k=3) == [[]]
        assert index.add(["a"], unit_vectors(1)) == [100]
        assert [hit.id for hit in index.search(vectors=unit_vectors(1), k=3)[0]] == [100]


def test_nothing_dead_changes_nothing(photos: Path) -> None:
    with Index.open(photos) as index:
        assert reclaim(index).num_dead == 0
    assert vector_files(photos) == [("vectors.", 100)]


def test_rounds_of_churn_keep_every_item(photos: Path, tmp_path: Path) -> None:
    rng, vectors = np.random.default_rng(0), unit_vectors(1000, seed=3)
    expected = {f"{number}.jpg": unit_vectors(100)[number] for number in range(100)}
    with Index.open(photos, writable=True) as index, Index.open(photos) as reader:
        for turn in range(12):
            gone = rng.choice(sorted(expected), 20, replace=False).tolist()
            index.remove(gone)
            for key in gone:
                del expected[key]
            new = {f"{turn}-{i}": vectors[turn * 20 + i] for i in range(20)}
            index.add(new, np.stack([*new.values()]))
            expected |= new
            if turn % 3 == 2:
                reclaim(index)
            found = {item.key: reader.vector(item.id) for item in reader.items(0, 1000)}
            assert found.keys() == expected.keys()
            for key, vector in found.items():
                np.testing.assert_array_equal(vector, expected[key])
            keys = [*expected]
            query = unit_vectors(3, seed=turn)
            scores = query @ np.stack([expected[key] for key in keys]).T
            for hits, row in zip(reader.search(vectors=query, k=7), scores, strict=True):
                best = np.argsort(-row, kind="stable")[:7]
                assert [hit.key for hit in hits] == [keys[i] for i in best]
            (allowed,) = reader.search(vectors=query[:1], k=3, where="key like '%1'")
            matching = [i for i, key in enumerate(keys) if key.endswith("1")]
            matching.sort(key=lambda i: -scores[0][i])
            assert [hit.key for hit in allowed] == [keys[i] for i in matching[:3]]
        assert check(reader).problems == []
        write_vectors(reader, tmp_path / "v.parquet")
        with Index.create(tmp_path / "again", model=photos / "model.onnx") as again:
            read_vectors(again, VectorFile(tmp_path / "v.parquet"))
            assert {each[1] for each in content(again).values()} == {
                vector.tobytes() for vector in expected.values()
            }


def test_a_read_of_the_old_state_is_finished(halved: Path) -> None:
    calls = []
    with Index.open(halved) as reader, Index.open(halved) as other:

        def read(state: object) -> np.ndarray:
            calls.append(1)
            reclaim(other)
            return state.vectors_of(np.arange(0, 100, 2))  # type: ignore[attr-defined, no-any-return]

        np.testing.assert_array_equal(reader.read(read), unit_vectors(100)[::2])
        assert len(calls) == 1
        assert len(reader.search(vectors=unit_vectors(1), k=100)[0]) == 50


def test_a_writer_writes_on_into_the_new_file(halved: Path) -> None:
    with Index.open(halved, writable=True) as writer, Index.open(halved) as other:
        writer.add(["before"], unit_vectors(1, seed=5))
        reclaim(other)
        assert writer.add(["after"], unit_vectors(1, seed=6)) == [101]
        np.testing.assert_array_equal(other.vector(100), unit_vectors(1, seed=5)[0])
        np.testing.assert_array_equal(other.vector(101), unit_vectors(1, seed=6)[0])
    assert vector_files(halved) == [("vectors-", 52)]


def test_what_is_written_meanwhile_is_kept(halved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy, turn = reclaiming._Copier.copy, iter(range(9))
    with Index.open(halved, writable=True) as writer, Index.open(halved) as index:

        def copy_and_write(*arguments: object) -> None:
            copy(*arguments)  # type: ignore[arg-type]
            if (number := next(turn)) < 2:
                writer.add([f"new {number}"], unit_vectors(1, seed=number + 7))
                writer.remove([f"{2 * number}.jpg"])

        monkeypatch.setattr(reclaiming._Copier, "copy", copy_and_write)
        reclaim(index)
        assert len(index) == 50
        assert "0.jpg" not in index
        for number in range(2):
            vector = index.vector(index.item_by_key(f"new {number}").id)
            np.testing.assert_array_equal(vector, unit_vectors(1, seed=number + 7)[0])
        assert check(index).problems == []
        assert DeadRows.of(index).num_dead == 2
    assert vector_files(halved) == [("vectors-", 52)]


def test_codes_stay_in_use_after_reclaiming(halved: Path) -> None:
    with Index.open(halved, writable=True) as index:
        compact(index, allow_low_recall=True)
        index.remove([f"{number}.jpg" for number in range(0, 40, 2)])
        reclaim(index)
        hits = index.search(vectors=unit_vectors(100)[40::2], k=1)
        assert [each[0].id for each in hits] == list(range(40, 100, 2))
        assert len(index.search(vectors=unit_vectors(1), k=100)[0]) == 30
        assert check(index).problems == []
        compact(index, allow_low_recall=True)
        hits = index.search(vectors=unit_vectors(100)[40::2], k=1)
        assert [each[0].id for each in hits] == list(range(40, 100, 2))


def test_readers_never_fail_while_rows_are_reclaimed(photos: Path) -> None:
    failures: list[BaseException] = []
    is_over = threading.Event()
    query = unit_vectors(100)[:3]

    def search() -> None:
        with Index.open(photos) as reader:
            while not is_over.is_set():
                try:
                    assert [hits[0].id for hits in reader.search(vectors=query, k=5)] == [0, 1, 2]
                except BaseException as error:
                    failures.append(error)
                    raise

    threads = [threading.Thread(target=search) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        with Index.open(photos, writable=True) as index:
            for turn in range(25):
                index.add([f"{turn}"], unit_vectors(1, seed=turn))
                index.remove([f"{turn}"])
                reclaim(index)
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    assert failures == []


def test_a_full_disk_leaves_the_index_as_it_was(
    halved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    with Index.open(halved) as index:
        monkeypatch.setattr(os, "pwrite", refuse)
        with pytest.raises(EnvironmentProblem, match=r"No space left to write .*vectors-"):
            reclaim(index)
        assert len(content(index)) == 50
    assert vector_files(halved) == [("vectors.", 100)]


def test_ctrl_c_leaves_the_index_as_it_was(halved: Path) -> None:
    def stop(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with Index.open(halved) as index:
        with pytest.raises(Interrupted, match="holds what it held"):
            reclaim(index, on_progress=stop)
        assert len(content(index)) == 50
    assert vector_files(halved) == [("vectors.", 100)]


def test_two_do_not_reclaim_at_once(halved: Path) -> None:
    with (
        Index.open(halved) as index,
        excluding_builders(halved),
        pytest.raises(EnvironmentProblem, match="is being written by process"),
    ):
        reclaim(index)


def test_a_new_file_that_disappears_is_not_used(
    halved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = reclaiming._Copier.copy

    def copy_and_remove(*arguments: object) -> None:
        copy(*arguments)  # type: ignore[arg-type]
        for file in halved.glob("vectors-*.f32"):
            file.unlink()

    monkeypatch.setattr(reclaiming._Copier, "copy", copy_and_remove)
    with Index.open(halved) as index:
        with pytest.raises(EnvironmentProblem, match="was removed by another process; see that"):
            reclaim(index)
        assert len(content(index)) == 50
    assert vector_files(halved) == [("vectors.", 100)]


def test_files_of_a_killed_compaction_are_removed(halved: Path) -> None:
    (halved / "vectors-0123.f32").write_bytes(b"half")
    with excluding_builders(halved):  # as if it were running
        Index.open(halved, writable=True).close()
    assert (halved / "vectors-0123.f32").exists()
    Index.open(halved, writable=True).close()
    assert vector_files(halved) == [("vectors.", 100)]


def test_tombstones_left_by_a_kill_go_next_time(
    halved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Index.open(halved, writable=True) as index:
        with monkeypatch.context() as patch:
            patch.setattr(reclaiming, "_drop_tombstones", lambda _index: None)
            reclaim(index)
        assert len(content(index)) == 50
        assert check(index).problems == []
        index.remove(["0.jpg"])
        reclaim(index)
        assert index.read(lambda state: state.catalogue.deleted_ids()) == []
        assert index.add(["new"], unit_vectors(1)) == [100]


def test_earlier_versions_refuse_the_index(halved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with sqlite3.connect(halved / "catalogue.sqlite") as catalogue:
        assert catalogue.execute("PRAGMA user_version").fetchone() == (2,)
    with Index.open(halved, writable=True) as index:
        reclaim(index)
    Index.open(halved, writable=True).close()
    monkeypatch.setattr(connections, "FORMAT", 2)
    with pytest.raises(InputError, match="has format 3; this featkit reads formats up to 2"):
        Index.open(halved)


def test_a_writer_of_an_earlier_version_is_respected(
    halved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Index.open(halved) as index:
        monkeypatch.setattr(writer_token, "FORMAT", 2)
        writer = Index.open(halved, writable=True)
        monkeypatch.undo()
        with pytest.raises(EnvironmentProblem, match="by an earlier version of featkit, process"):
            reclaim(index)
        assert vector_files(halved) == [("vectors.", 100)]
        # as if it were a process of another machine
        monkeypatch.setattr(writer_token, "is_alive", lambda _text: False)
        reclaim(index)
        with pytest.raises(EnvironmentProblem, match="open the index again"):
            writer.add(["new"], unit_vectors(1))
        writer.close()
        assert len(content(index)) == 50


def test_a_restored_copy_is_not_compacted(halved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = reclaiming._Copier.copy
    with Index.open(halved) as index:

        def copy_and_restore(*arguments: object) -> None:
            copy(*arguments)  # type: ignore[arg-type]
            with sqlite3.connect(halved / "catalogue.sqlite") as catalogue:
                catalogue.execute("UPDATE items SET deleted = 0 WHERE id = 1")
                catalogue.execute("UPDATE settings SET value = 'other' WHERE name = 'commit'")

        monkeypatch.setattr(reclaiming._Copier, "copy", copy_and_restore)
        with pytest.raises(InputError, match="replaced by another copy meanwhile"):
            reclaim(index)
    assert vector_files(halved) == [("vectors.", 100)]


def test_damaged_records_of_rows_are_named(halved: Path) -> None:
    with Index.open(halved) as index:
        reclaim(index)
    for statement in ("UPDATE kept_rows SET bits = x'00'", "DELETE FROM kept_rows"):
        with sqlite3.connect(halved / "catalogue.sqlite") as catalogue:
            catalogue.execute(statement)
        with pytest.raises(InputError, match=r"damaged .*the record of its rows cannot be read"):
            Index.open(halved)


def test_check_names_images_without_a_vector(halved: Path) -> None:
    with Index.open(halved) as index:
        reclaim(index)
    with sqlite3.connect(halved / "catalogue.sqlite") as catalogue:
        catalogue.execute("INSERT INTO items (id, key, folder, source) VALUES (1, 'b', '', '')")
    with Index.open(halved, check_sample=False) as index:
        sentences = [problem.wrong for problem in check(index).problems]
    assert any("51 images, but 50" in sentence for sentence in sentences), sentences
