"""The token in the catalogue excludes a second writer when the lock file does not."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sqlite3
import subprocess
from pathlib import Path

import filelock
import numpy as np
import pytest

from featkit.backends import Run
from featkit.errors import EnvironmentProblem
from featkit.index import Index, writer_token
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
        keys = [f"{{seed}}-{{done}}-{{i}}" for i in range(5)]
        index.add(keys, unit_vectors(5, seed=100 * seed + done))
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
    """A file system whose locks succeed but do nothing."""
    monkeypatch.setattr(filelock, "lock_descriptor", lambda _descriptor, *, blocking: not blocking)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other writer is known to be alive, as if it ran on another machine."""
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
def test_a_killed_writer_is_taken_over(
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


def test_removing_the_lock_file_admits_nobody(photos: Path) -> None:
    with Index.open(photos, writable=True) as first:
        (photos / "writer.lock").unlink()
        with refused("is being written by", error=EnvironmentProblem):
            Index.open(photos, writable=True)
        first.add(["new"], unit_vectors(1))


@pytest.mark.usefixtures("without_locks", "elsewhere")
def test_a_writer_that_lost_its_token_changes_nothing(photos: Path) -> None:
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
            assert len(first) == 110  # reading is still allowed
            first.close()
            assert second.add(["more"], unit_vectors(1, seed=4)) == [110]
    with Index.open(photos) as index:
        assert len(index) == 111
        np.testing.assert_array_equal(index.vector(105), added[4])


@pytest.mark.usefixtures("without_locks", "elsewhere")
def test_a_failed_add_cuts_no_rows_of_the_next_writer(
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


def test_mutual_takeover_corrupts_nothing(tmp_path: Path, model: Path) -> None:
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


def test_a_token_of_a_dead_process_is_taken_over(photos: Path) -> None:
    """Even if another process has its pid: in this one, on another machine, or after a reboot."""
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
def test_a_forked_child_cannot_write(photos: Path) -> None:
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
