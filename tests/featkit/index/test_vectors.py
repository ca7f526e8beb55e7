"""Scans see the rows of the vectors file, which are kept in memory only if they fit."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from featkit.errors import InputError
from featkit.index import stored_rows
from featkit.index.stored_rows import FileRows
from featkit.index.vectors import VectorFile

WIDTH, COUNT = 24, 203
ONE, MANY = 1, 64  # queries


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, np.ndarray]:
    """A vectors file of several blocks, and its rows."""
    monkeypatch.setattr(stored_rows, "SMALL_BLOCK_BYTES", 32 * WIDTH * 4)
    monkeypatch.setattr(stored_rows, "LARGE_BLOCK_BYTES", 64 * WIDTH * 4)
    rows = np.random.default_rng(0).standard_normal((COUNT, WIDTH)).astype(np.float32)
    rows.tofile(tmp_path / "vectors.f32")
    return tmp_path / "vectors.f32", rows


def scan(rows: FileRows, num_queries: int) -> tuple[np.ndarray, list[int]]:
    """Return all rows of the blocks, and the first row of each block."""
    blocks = [(start, block.copy()) for start, block in rows.blocks(num_queries)]
    return np.concatenate([block for _, block in blocks]), [start for start, _ in blocks]


@pytest.mark.parametrize("num_queries", [ONE, MANY])
def test_every_scan_sees_the_rows_of_the_file(
    stored: tuple[Path, np.ndarray], num_queries: int
) -> None:
    path, expected = stored
    rows = FileRows(VectorFile(path, width=WIDTH), COUNT)
    for _ in range(4):
        seen, starts = scan(rows, num_queries)
        np.testing.assert_array_equal(seen, expected)
        assert all(start % 8 == 0 for start in starts)
        ids = np.array([200, 3, 3, 0])
        np.testing.assert_array_equal(rows.take(ids), expected[ids])


def test_rows_are_kept_by_the_second_scan(
    stored: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, expected = stored
    reads: list[int] = []
    read = VectorFile.read

    def counted_read(self: VectorFile, start: int, rows: np.ndarray) -> None:
        reads.append(start)
        read(self, start, rows)

    monkeypatch.setattr(VectorFile, "read", counted_read)
    rows = FileRows(VectorFile(path, width=WIDTH), COUNT)
    counts = []
    for _ in range(3):
        scan(rows, ONE)
        counts.append(len(reads))
    assert counts[1] == 2 * counts[0] == counts[2]
    assert scan(rows, ONE)[1] == [0]
    np.testing.assert_array_equal(scan(rows, MANY)[0], expected)


def test_rows_that_would_fill_memory_are_read_each_time(
    stored: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, expected = stored
    monkeypatch.setattr(stored_rows, "spare_memory", lambda: 2 * COUNT * WIDTH * 4 - 1)
    rows = FileRows(VectorFile(path, width=WIDTH), COUNT)
    for _ in range(3):
        seen, starts = scan(rows, ONE)
        np.testing.assert_array_equal(seen, expected)
        assert len(starts) > 1


@pytest.mark.parametrize("most_held", [None, COUNT * WIDTH * 4, COUNT * WIDTH * 4 - 1, 0])
def test_rows_taken_as_often_as_a_scan_are_kept(
    stored: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch, most_held: int | None
) -> None:
    path, expected = stored
    rows = FileRows(VectorFile(path, width=WIDTH), COUNT, most_held=most_held)
    ids = np.arange(0, COUNT, 3)
    for _ in range(6):
        np.testing.assert_array_equal(rows.take(ids), expected[ids])
    reads: list[int] = []
    monkeypatch.setattr(VectorFile, "read_rows", lambda *_arguments: reads.append(1))
    monkeypatch.setattr(VectorFile, "read", lambda *_arguments: reads.append(1))
    monkeypatch.setattr(VectorFile, "read_bytes", lambda *_arguments: reads.append(1))
    rows.take(ids)
    fits = most_held is None or most_held >= expected.nbytes
    assert (reads == []) == fits


def test_concurrent_scans_see_the_same_rows(stored: tuple[Path, np.ndarray]) -> None:
    path, expected = stored
    rows = FileRows(VectorFile(path, width=WIDTH), COUNT)
    start, wrong = threading.Barrier(8), []

    def work() -> None:
        start.wait()
        for number in range(20):
            if not np.array_equal(scan(rows, MANY if number % 2 else ONE)[0], expected):
                wrong.append(number)
            if not np.array_equal(rows.take(np.array([5, 1])), expected[[5, 1]]):
                wrong.append(-number)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_file_truncated_during_a_scan_is_refused(
    stored: tuple[Path, np.ndarray],
) -> None:
    path, _ = stored
    rows = FileRows(VectorFile(path, width=WIDTH), COUNT)
    scan(rows, ONE)
    with path.open("r+b") as file:
        file.truncate(COUNT * WIDTH * 4 // 2)
    for _ in range(3):
        with pytest.raises(InputError, match="is truncated"):
            scan(rows, ONE)


def test_an_empty_file_has_no_blocks(tmp_path: Path) -> None:
    (tmp_path / "vectors.f32").touch()
    rows = FileRows(VectorFile(tmp_path / "vectors.f32", width=WIDTH), 0)
    assert [list(rows.blocks(ONE)) for _ in range(3)] == [[], [], []]
