"""The catalogue's transactions and its write-ahead log."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from featkit.folders import CATALOGUE_FILE
from featkit.index import Index
from featkit.index import catalogue as catalogue_module
from featkit.index.catalogue import Catalogue
from tests.featkit.index.conftest import unit_vectors
from tests.sentences import refused


@pytest.fixture
def catalogue(photos: Path) -> Catalogue:
    """The catalogue of an index of 100 items."""
    return Catalogue(photos / CATALOGUE_FILE)


def test_a_reading_sees_one_state_until_it_ends(catalogue: Catalogue) -> None:
    with catalogue.reading() as reader:
        before = reader.state_key()
        with catalogue.writing() as writer:
            assert writer.remove_items(["0.jpg", "unknown"]) == 1
        assert (reader.state_key(), reader.deleted_ids()) == (before, [])
    with catalogue.reading() as reader:
        assert reader.deleted_ids() == [0]
        assert reader.state_key().changes == before.changes + 1
        assert reader.state_key().commit != before.commit


def test_a_writing_that_raises_changes_nothing(catalogue: Catalogue) -> None:
    with catalogue.reading() as reader:
        before = reader.state_key()

    def remove_and_raise() -> None:
        with catalogue.writing() as writer:
            writer.remove_items(["0.jpg"])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        remove_and_raise()
    with catalogue.reading() as reader:
        assert (reader.state_key(), reader.deleted_ids()) == (before, [])


def test_a_closed_catalogue_refuses_reads(catalogue: Catalogue) -> None:
    catalogue.close()
    with pytest.raises(ValueError, match="has been closed"), catalogue.reading():
        pass


def test_a_missing_catalogue_is_named(catalogue: Catalogue) -> None:
    catalogue.path.unlink()
    with refused(f"{catalogue.path} is missing"), catalogue.reading():
        pass


@pytest.fixture
def small_log(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(catalogue_module, "MAX_LOG_BYTES", 100_000)
    return 100_000


def test_the_log_is_bounded_while_readers_never_pause(photos: Path, small_log: int) -> None:
    done = threading.Event()

    def read(index: Index) -> int:
        count = 0
        while not done.is_set():
            index.search(vectors=unit_vectors(4), k=24)
            index.items(0, 500)
            count += 1
        return count

    sizes: list[int] = []
    with (
        Index.open(photos, writable=True) as index,
        Index.open(photos) as reader,
        ThreadPoolExecutor(4) as pool,
    ):
        readings = [pool.submit(read, each) for each in (index, reader, reader, reader)]
        try:
            for turn in range(60):
                index.add(
                    [f"{turn}-{i}" for i in range(5)],
                    unit_vectors(5),
                    thumbnails=[os.urandom(4000)] * 5,
                )
                sizes.append((photos / "catalogue.sqlite-wal").stat().st_size)
        finally:
            done.set()
        assert min(reading.result() for reading in readings) > 0
    assert sum(np.diff(sizes) > 0) >= 2  # it was used
    assert max(sizes) < 4 * small_log  # 60 commits are 2 MB
    assert not (photos / "catalogue.sqlite-wal").exists()


def test_a_long_reader_hardly_delays_the_writer(
    photos: Path, small_log: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue_module, "CHECKPOINT_TIMEOUT_MS", 50)
    log = photos / "catalogue.sqlite-wal"
    with Index.open(photos, writable=True) as index, Index.open(photos) as reader:

        def add(count: int, name: str) -> float:
            started = time.monotonic()
            for turn in range(count):
                index.add([f"{name}{turn}"], unit_vectors(1), thumbnails=[os.urandom(20_000)])
            return time.monotonic() - started

        with Catalogue(photos / "catalogue.sqlite").reading() as state:
            assert state.num_rows() == 100
            index.add(["x"], unit_vectors(1))
            seconds = add(30, "held")
            assert log.stat().st_size > 5 * small_log
            assert state.num_rows() == 100
        assert seconds < 10
        add(30, "free")
        assert log.stat().st_size < 5 * small_log
        assert len(index) == len(reader) == 161
