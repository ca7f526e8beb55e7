"""Two writers where the lock file keeps nobody apart: the token in the catalogue does, and nothing
committed is lost."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import filelock
import numpy as np
import pytest

from featkit.backends import Run
from featkit.errors import EnvironmentProblem
from featkit.index import Index, writer_token
from featkit.index import catalogue as catalogue_module
from featkit.index.catalogue import Catalogue
from tests.featkit.index.conftest import WIDTH, unit_vectors
from tests.processes import start_python
from tests.sentences import refused

WITHOUT_LOCKS = "import filelock; filelock.lock_descriptor = lambda descriptor, *, blocking: True\n"

HOLD = f"""{WITHOUT_LOCKS}
import sys
from featkit.index import Index
from tests.featkit.index.conftest import unit_vectors
index = Index.open(sys.argv[1], writable=True)
index.add(["held"], unit_vectors(1, seed=5))
print("held", flush=True)
sys.stdin.readline()
"""

TAKE_TURNS = f"""{WITHOUT_LOCKS}
import sys
from featkit.errors import EnvironmentProblem
from featkit.index import Index, writer_token
from tests.featkit.index.conftest import unit_vectors
writer_token.is_alive = lambda text: False  # as a process of another machine
seed, done, index = int(sys.argv[2]), 0, None
while done < 20:
    try:
        index = index or Index.open(sys.argv[1], writable=True)
        index.add([f"{{seed}}-{{done}}-{{i}}" for i in range(5)], unit_vectors(5, seed=100 * seed + done))
    except EnvironmentProblem as error:
        assert "was opened for writing by" in str(error), error
        if index is not None:
            index.close()
        index = None
    else:
        done += 1
index.close()
"""


@pytest.fixture
def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system whose locks succeed and do nothing."""
    monkeypatch.setattr(filelock, "lock_descriptor", lambda _descriptor, *, blocking: not blocking)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other writer is seen to live, as when it runs on another machine."""
    monkeypatch.setattr(writer_token, "is_alive", lambda _text: False)


def stored_token(path: Path) -> str | None:
    connection = sqlite3.connect(path / "catalogue.sqlite")
    row = connection.execute("SELECT value FROM settings WHERE name = 'writer'").fetchone()
    connection.close()
    return None if row is None else str(row[0])


@pytest.mark.usefixtures("without_locks")
def test_a_second_writer_in_this_process_is_refused(photos: Path) -> None:
    with Index.open(photos, writable=True) as first:
        for _ in range(2):
            with refused(
                photos,
                f"is being written by process {os.getpid()} on ",
                "wait",
                error=EnvironmentProblem,
            ):
                Index.open(photos, writable=True)
        assert first.add(["new"], unit_vectors(1)) == [100]
    assert stored_token(photos) is None
    with Index.open(photos, writable=True) as second:
        assert second.add(["newer"], unit_vectors(1)) == [101]


@pytest.mark.usefixtures("without_locks")
def test_another_process_is_refused_while_this_one_lives_and_not_after_it_is_killed(
    photos: Path,
) -> None:
    holder = start_python(HOLD, photos, stdin=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    try:
        with refused(
            photos, f"is being written by process {holder.pid} on ", error=EnvironmentProblem
        ):
            Index.open(photos, writable=True)
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate(timeout=60)
    assert stored_token(photos) is not None
    with Index.open(photos, writable=True) as index:
        assert index.item_by_key("held").id == 100
        assert index.add(["new"], unit_vectors(1)) == [101]


def test_a_lock_file_removed_by_hand_lets_nobody_in(photos: Path) -> None:
    with Index.open(photos, writable=True) as first:
        (photos / "writer.lock").unlink()
        with refused("is being written by", error=EnvironmentProblem):
            Index.open(photos, writable=True)
        first.add(["new"], unit_vectors(1))


@pytest.mark.usefixtures("without_locks", "elsewhere")
def test_a_writer_that_another_took_over_from_changes_nothing_more(photos: Path) -> None:
    with Index.open(photos, writable=True) as first:
        assert first.add(["first"], unit_vectors(1, seed=1)) == [100]
        with Index.open(photos, writable=True) as second:
            added = unit_vectors(9, seed=2)
            second.add([f"second{i}" for i in range(9)], added)
            bytes_before = (photos / "vectors.f32").read_bytes()
            words = (
                photos,
                f"was opened for writing by process {os.getpid()} on ",
                "open the index again",
            )
            with refused(*words, error=EnvironmentProblem):
                first.add(["lost"], unit_vectors(1, seed=3))
            with refused(*words, error=EnvironmentProblem):
                first.remove(["0.jpg"])
            with refused(*words, error=EnvironmentProblem):
                first.drop_proof(Run("openvino", "bf16"))
            assert (photos / "vectors.f32").read_bytes() == bytes_before
            assert len(first) == 110  # it may read
            first.close()
            assert second.add(["more"], unit_vectors(1, seed=4)) == [110]
    with Index.open(photos) as index:
        assert len(index) == 111
        np.testing.assert_array_equal(index.vector(105), added[4])


@pytest.mark.usefixtures("without_locks", "elsewhere")
def test_an_add_that_fails_cuts_no_rows_of_the_writer_that_took_over(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Index.open(photos, writable=True) as first:
        writing = Catalogue.writing
        added = unit_vectors(5, seed=2)

        def interrupted(_self: Catalogue) -> object:
            monkeypatch.setattr(Catalogue, "writing", writing)  # for the second writer
            with Index.open(photos, writable=True) as second:
                second.add([f"second{i}" for i in range(5)], added)
            raise KeyboardInterrupt

        monkeypatch.setattr(Catalogue, "writing", interrupted)
        with pytest.raises(KeyboardInterrupt):
            first.add(["lost"], unit_vectors(1))
    with Index.open(photos) as index:
        np.testing.assert_array_equal(index.vector(104), added[4])


def test_two_processes_that_take_over_from_each_other_corrupt_nothing(
    tmp_path: Path, model: Path
) -> None:
    path = tmp_path / "i"
    Index.create(path, model=model).close()
    processes = [start_python(TAKE_TURNS, path, seed) for seed in (1, 2)]
    outs = [process.communicate(timeout=120) for process in processes]
    assert [error for _, error in outs] == ["", ""]
    with Index.open(path) as index:
        items = index.items(0, 10_000)
        assert len(items) == 2 * 20 * 5
        for item in items:
            seed, turn, i = map(int, item.key.split("-"))
            np.testing.assert_array_equal(
                index.vector(item.id), unit_vectors(5, seed=100 * seed + turn)[i]
            )
    assert (path / "vectors.f32").stat().st_size == len(items) * WIDTH * 4


def test_a_token_of_a_process_that_ended_is_taken_over(photos: Path) -> None:
    """Whatever has its number now, in this process, on another machine, or before this machine was
    started."""
    with Index.open(photos, writable=True):
        text = stored_token(photos)
        assert text is not None
        who = json.loads(text)
        assert writer_token.is_alive(text) or not Path("/proc/self/stat").exists()
    assert not writer_token.is_alive(text)  # closed
    for change in (
        {"started": "1"},
        {"boot": "another"},
        {"namespace": "pid:[1]"},
        {"pid": 2**30},
        {"pid": None},
    ):
        assert not writer_token.is_alive(json.dumps(who | change))
    for text in ("", "{", "[]", "3", "{}", '{"token": "x"}'):
        with sqlite3.connect(photos / "catalogue.sqlite") as connection:
            connection.execute("INSERT OR REPLACE INTO settings VALUES ('writer', ?)", [text])
        connection.close()
        with Index.open(photos, writable=True) as index:
            index.remove(["0.jpg"])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_child_does_not_write_through_its_parents_index(photos: Path) -> None:
    with Index.open(photos, writable=True) as index:
        results: multiprocessing.SimpleQueue[str] = multiprocessing.get_context(
            "fork"
        ).SimpleQueue()

        def child() -> None:
            try:
                index.add(["lost"], unit_vectors(1))
            except ValueError as error:
                results.put(str(error))
            os._exit(0)

        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join(60)
        assert "was opened for writing by the parent process" in results.get()
        assert len(index) == 100


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


def test_a_reader_that_does_not_end_keeps_the_log_and_hardly_delays_the_writer(
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
