"""A writer that is killed, interrupted or out of space leaves the last committed state."""

from __future__ import annotations

import errno
import os
import random
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featkit.errors import EnvironmentProblem, InputError
from featkit.index import Index
from featkit.index.catalogue import Catalogue
from featkit.index.table_writer import CatalogueWriter
from tests.featkit.index.conftest import WIDTH, unit_vectors
from tests.processes import run_python, start_python

BLOCK = 50

ADD_BLOCKS = """
import sys
from featkit.index import Index
from tests.featkit.index.conftest import unit_vectors
with Index.open(sys.argv[1], writable=True) as index:
    for block in range(10_000):
        first = len(index)
        keys = [f"{number}.jpg" for number in range(first, first + 50)]
        index.add(keys, unit_vectors(50, seed=first), thumbnails=[b"x" * 3000] * 50)
        print(first + 50, flush=True)
"""

DIE_BEFORE_THE_COMMIT = """
import os, signal, sys
from featkit.index import Index
from tests.featkit.index.conftest import unit_vectors
with Index.open(sys.argv[1], writable=True) as index:
    # at this point only the vectors are in the file
    os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
    index.add(["new"] * 7, unit_vectors(7))
"""


def check_whole(path: Path, *, at_least: int) -> int:
    """Assert that an index of ADD_BLOCKS ends with a whole block; return its number of items."""
    with Index.open(path) as index:
        size = len(index)
        assert size >= at_least
        assert size % BLOCK == 0
        expected = np.concatenate(
            [unit_vectors(BLOCK, seed=first) for first in range(0, size, BLOCK)]
        )
        for item in index.items(0, size):
            assert item.key == f"{item.id}.jpg"
            np.testing.assert_array_equal(index.vector(item.id), expected[item.id])
            assert index.thumbnail(item.id) == b"x" * 3000
        if size:
            assert [
                [hit.id for hit in hits] for hits in index.search(vectors=expected[-3:], k=1)
            ] == [
                [size - 3],
                [size - 2],
                [size - 1],
            ]
    return size


@pytest.mark.parametrize("seed", range(4))
def test_kill_9_while_adding_leaves_the_last_commit(tmp_path: Path, model: Path, seed: int) -> None:
    path = tmp_path / "i"
    Index.create(path, model=model).close()
    process = start_python(ADD_BLOCKS, path)
    assert process.stdout is not None
    said = int(process.stdout.readline())
    time.sleep(random.Random(seed).uniform(0, 0.1))
    process.send_signal(signal.SIGKILL)
    out, error = process.communicate()
    said = int(out.split()[-1]) if out.split() else said
    assert (process.returncode, error) == (-signal.SIGKILL, "")
    size = check_whole(path, at_least=said)
    with Index.open(path, writable=True) as index:
        assert (path / "vectors.f32").stat().st_size == size * WIDTH * 4
        assert index.add(["next"], unit_vectors(1)) == [size]


def test_uncommitted_vectors_are_ignored_then_cut(
    photos: Path,
) -> None:
    status, _, error = run_python(DIE_BEFORE_THE_COMMIT, photos)
    assert (status, error) == (-signal.SIGKILL, "")
    committed = 100 * WIDTH * 4
    assert (photos / "vectors.f32").stat().st_size == committed + 7 * WIDTH * 4
    with Index.open(photos) as index:
        assert len(index) == 100
        assert len(index.search(vectors=unit_vectors(1), k=1000)[0]) == 100
    with Index.open(photos, writable=True) as index:
        assert (photos / "vectors.f32").stat().st_size == committed
        assert index.add(["new"], unit_vectors(1, seed=9)) == [100]
        np.testing.assert_array_equal(index.vector(100), unit_vectors(1, seed=9)[0])


def assert_as_before(index: Index) -> None:
    """Assert that nothing of a failed add is left, and that the next one works."""
    assert (index.path / "vectors.f32").stat().st_size == 100 * WIDTH * 4
    with Index.open(index.path) as reader:
        assert len(reader) == 100
        assert reader.item_by_key("3.jpg").id == 3
    assert index.add(["3.jpg"], unit_vectors(1)) == [100]


def test_a_full_disk_during_vectors_changes_nothing(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.pwrite

    def full(descriptor: int, data: memoryview, place: int) -> int:
        if place >= 105 * WIDTH * 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[: WIDTH * 4], place)  # writes may be partial

    with Index.open(photos, writable=True) as index:
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", full)
            with pytest.raises(
                EnvironmentProblem, match=r"No space left to write .*vectors\.f32; free some"
            ):
                index.add([f"{number}.jpg" for number in range(10)], unit_vectors(10, seed=1))
        assert_as_before(index)


def test_a_full_disk_during_the_commit_changes_nothing(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect: Callable[..., sqlite3.Connection] = sqlite3.connect

    def small(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **options)
        connection.execute("PRAGMA max_page_count = 30")
        return connection

    with Index.open(photos, writable=True) as index:
        with monkeypatch.context() as patch:
            patch.setattr(sqlite3, "connect", small)
            with pytest.raises(
                EnvironmentProblem, match=r"No space left to write .*photos\.index; free some"
            ):
                index.add(["3.jpg"], unit_vectors(1), thumbnails=[b"x" * 200_000])
        assert_as_before(index)


def test_ctrl_c_before_the_commit_changes_nothing(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_descriptor: int) -> None:
        raise KeyboardInterrupt

    with Index.open(photos, writable=True) as index:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", interrupt)
            with pytest.raises(KeyboardInterrupt):
                index.add(["3.jpg", "x"], unit_vectors(2))
        assert_as_before(index)


def test_ctrl_c_after_the_commit_keeps_it(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writing = Catalogue.writing

    @contextmanager
    def interrupted(self: Catalogue) -> Iterator[CatalogueWriter]:
        with writing(self) as writer:
            yield writer
        raise KeyboardInterrupt

    with Index.open(photos, writable=True) as index:
        with monkeypatch.context() as patch:
            patch.setattr(Catalogue, "writing", interrupted)
            with pytest.raises(KeyboardInterrupt):
                index.add(["x"], unit_vectors(1, seed=1))
        assert len(index) == 101
        np.testing.assert_array_equal(index.vector(100), unit_vectors(1, seed=1)[0])
    with Index.open(photos) as index:
        assert index.item_by_key("x").id == 100


def test_metadata_that_cannot_be_stored_adds_nothing(photos: Path) -> None:
    bad: list[tuple[str, dict[str, object], str]] = [
        ("b", {"label": object()}, "is object; only text and numbers"),
        ("b", {"n": 2**70}, "does not fit into 64 bits"),
        ("b", {"": 1}, "is empty or not valid text"),
        ("b", {"label": "\udcff"}, "is empty or not valid text"),
        ("\udcff", {}, "cannot be a key"),
        ("", {}, "cannot be a key"),
    ]
    with Index.open(photos, writable=True) as index:
        for key, metadata, words in bad:
            items: Any = [{"fine": 1}, metadata]
            with pytest.raises(InputError, match=words):
                index.add(["a", key], unit_vectors(2), metadata=items)
        assert_as_before(index)
