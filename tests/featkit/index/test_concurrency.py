"""Each answer comes from one committed state, with readers in many threads and a writer."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from featkit.index import Index
from featkit.index.catalogue import Catalogue
from tests.featkit.index.conftest import unit_vectors

KEYS = [f"{number}.jpg" for number in range(20)]


def test_an_answer_never_mixes_two_states(tmp_path: Path, model: Path) -> None:
    """A writer keeps replacing all items; a search sees all items of one round, none of others."""
    with Index.create(tmp_path / "i", model=model) as writer, Index.open(tmp_path / "i") as reader:
        writer.add(KEYS, unit_vectors(20), metadata=[{"round": 0}] * 20)
        done = threading.Event()

        def read(index: Index) -> set[int]:
            seen: set[int] = set()
            while not done.is_set():
                for hits in index.search(vectors=unit_vectors(2, seed=1), k=100):
                    assert sorted(hit.key for hit in hits) == sorted(KEYS)
                    assert len({hit.metadata["round"] for hit in hits}) == 1
                    seen.add(int(hits[0].metadata["round"]))
                items = index.items(0, 100)
                assert len(items) == 20
                assert len({item.metadata["round"] for item in items}) == 1
            return seen

        with ThreadPoolExecutor(5) as pool:
            readings = [
                pool.submit(read, index) for index in (writer, reader, reader, reader, reader)
            ]
            try:
                started = time.monotonic()
                number = 0
                while time.monotonic() - started < 1.0:
                    number += 1
                    writer.add(
                        KEYS, unit_vectors(20, seed=number), metadata=[{"round": number}] * 20
                    )
            finally:
                done.set()
            rounds = [reading.result() for reading in readings]
        assert all(len(seen) > 1 for seen in rounds)


def test_readers_do_not_wait_for_an_open_transaction(photos: Path) -> None:
    with (
        Index.open(photos) as reader,
        Catalogue(photos / "catalogue.sqlite").writing() as writer,
    ):
        writer.remove_items([f"{i}.jpg" for i in range(100)])
        started = time.monotonic()
        assert len(reader.search(vectors=unit_vectors(1), k=200)[0]) == 100
        assert time.monotonic() - started < 5.0  # SQLite would give up waiting after 30


def test_writing_threads_take_turns(photos: Path) -> None:
    with Index.open(photos, writable=True) as index:

        def add(thread: int) -> list[int]:
            return [
                index.add([f"{thread}-{number}"], unit_vectors(1, seed=thread))[0]
                for number in range(10)
            ]

        with ThreadPoolExecutor(4) as pool:
            ids = [number for numbers in pool.map(add, range(4)) for number in numbers]
        assert sorted(ids) == list(range(100, 140))
        for number in ids:
            thread = int(index.item(number).key.split("-")[0])
            assert index.vector(number).tolist() == unit_vectors(1, seed=thread)[0].tolist()


def test_a_closed_index_refuses_calls(photos: Path) -> None:
    index = Index.open(photos)
    index.close()
    index.close()
    with pytest.raises(ValueError, match="has been closed"):
        index.search(vectors=unit_vectors(1))
    writer = Index.open(photos, writable=True)
    writer.close()
    with pytest.raises(ValueError, match="has been closed"):
        writer.add(["a"], unit_vectors(1))
    with pytest.raises(ValueError, match="has been closed"):
        writer.remove(["a"])
