"""The lock admits one writer among threads, openings and processes, and names the holder."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import filelock
import pytest

from featkit import lock as lock_module
from featkit.errors import EnvironmentProblem
from featkit.lock import AlreadyLocked, WriterLock
from tests.model_files import make_model_file
from tests.processes import run_python, start_python
from tests.sentences import refused

HOLD = """
import sys
from pathlib import Path
from featkit.lock import AlreadyLocked, WriterLock
lock = WriterLock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.readline()
"""
COUNT = """
import sys, time
from pathlib import Path
from featkit.errors import EnvironmentProblem
from featkit.lock import AlreadyLocked, WriterLock
folder, done = Path(sys.argv[1]), 0
while done < 20:
    try:
        lock = WriterLock(folder / "lock")
    except EnvironmentProblem:
        time.sleep(0.001)
        continue
    number = int((folder / "number").read_text())
    time.sleep(0.001)
    (folder / "number").write_text(str(number + 1))
    lock.release()
    done += 1
"""


def hold(path: Path) -> subprocess.Popen[str]:
    """Start a process that holds the lock until it reads from stdin or is killed."""
    holder = start_python(HOLD, path, "--name", "é x", stdin=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def test_a_second_opening_waits_for_the_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/featkit", "embed", "images"])
    first = WriterLock(tmp_path / "lock")
    who = f"process {os.getpid()} on {socket.gethostname()} (featkit embed images)"
    with refused(
        f"{tmp_path} is being written by {who}; wait for it to finish, or stop it.",
        error=AlreadyLocked,
    ):
        WriterLock(tmp_path / "lock")
    first.release()
    second = WriterLock(tmp_path / "lock")
    first.release()  # it no longer holds the lock
    with refused("is being written by", error=AlreadyLocked):
        WriterLock(tmp_path / "lock")
    second.release()


def test_the_death_of_the_holder_frees_the_lock(tmp_path: Path) -> None:
    holder = hold(tmp_path / "lock")
    try:
        for _ in range(2):  # a refused opening leaves the description
            with refused(
                tmp_path,
                f"process {holder.pid} on {socket.gethostname()} (-c ",
                "--name é x)",
                error=AlreadyLocked,
            ):
                WriterLock(tmp_path / "lock")
    finally:
        holder.kill()
        holder.communicate(timeout=60)
    WriterLock(tmp_path / "lock").release()


def test_the_lock_excludes_another_process(tmp_path: Path) -> None:
    lock = WriterLock(tmp_path / "lock")
    status, _, error = run_python(HOLD, tmp_path / "lock")
    assert status == 1
    assert f"{tmp_path} is being written by process {os.getpid()} on " in error.splitlines()[-1]
    lock.release()
    holder = hold(tmp_path / "lock")
    out, error = holder.communicate("\n", timeout=60)
    assert (holder.returncode, out, error) == (0, "", "")


def test_a_child_does_not_inherit_the_lock(tmp_path: Path) -> None:
    lock = WriterLock(tmp_path / "lock")
    with subprocess.Popen(["sleep", "60"], close_fds=False) as child:
        try:
            lock.release()
            WriterLock(tmp_path / "lock").release()
        finally:
            child.kill()


def test_processes_that_take_turns_lose_no_change(tmp_path: Path) -> None:
    (tmp_path / "number").write_text("0")
    writers = [start_python(COUNT, tmp_path) for _ in range(3)]
    for writer in writers:
        assert writer.communicate(timeout=60) == ("", "")
    assert (tmp_path / "number").read_text() == "60"


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '"x"', '{"pid": 1}', "\0" * 99])
def test_a_holder_without_description_is_not_named(tmp_path: Path, content: str) -> None:
    lock = WriterLock(tmp_path / "lock")
    (tmp_path / "lock").write_text(content)
    with refused(f"{tmp_path} is being written by another process; wait", error=AlreadyLocked):
        WriterLock(tmp_path / "lock")
    lock.release()


def test_a_released_lock_names_nobody(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("x" * 100_000)  # left by anybody
    lock = WriterLock(tmp_path / "lock")
    assert str(os.getpid()) in (tmp_path / "lock").read_text()
    lock.release()
    lock.release()
    assert (tmp_path / "lock").read_bytes() == b""


def test_a_lock_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "lock").mkdir()
    for name, reason in (("file/lock", "Not a directory"), ("lock", "Is a directory")):
        with refused(
            f"{tmp_path / name} cannot be written: {reason}; choose another path.",
            error=EnvironmentProblem,
        ):
            WriterLock(tmp_path / name)
    place = tmp_path / "place"
    place.mkdir(mode=0o555)
    code = (
        "import sys; from pathlib import Path; from featkit.lock import AlreadyLocked, WriterLock;"
        " WriterLock(Path(sys.argv[1]))"
    )
    status, _, error = run_python(code, place / "lock", ordinary_user=True)
    assert status == 1
    assert error.splitlines()[-1].endswith(
        f"{place}/lock cannot be written: Permission denied; choose another path."
    )


def test_featkit_imports_without_unix_features() -> None:
    """Windows has no fcntl, and its os lacks some functions and flags. Warnings are errors here."""
    code = """
import os, sys
sys.modules["fcntl"] = None
for name in ("O_CLOEXEC", "pread", "pwrite", "preadv", "sched_getaffinity"):
    delattr(os, name)
import featkit.lock, featkit.pipeline
from featkit import Index
print(Index.__name__)
"""
    assert run_python(code) == (0, "Index\n", "")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_that_cannot_lock_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(_descriptor: int, *, blocking: bool) -> bool:
        assert not blocking
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(filelock, "lock_descriptor", refuse)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    with refused(
        f"{tmp_path / 'lock'} cannot be locked for writing: {os.strerror(number)}.",
        error=EnvironmentProblem,
    ):
        WriterLock(tmp_path / "lock")
    assert os.dup(0) == lowest_free  # the refused opening is closed
    os.close(lowest_free)


def test_the_holder_is_named_without_the_first_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows also locks that byte against reading."""
    monkeypatch.setattr(lock_module, "FIRST_READABLE", 1)
    lock = WriterLock(tmp_path / "lock")
    with refused(
        f"is being written by process {os.getpid()} on {socket.gethostname()}",
        error=AlreadyLocked,
    ):
        WriterLock(tmp_path / "lock")
    lock.release()


WITHOUT_UNIX = """
import os, sys
import filelock  # which warns without fcntl, unless it is on Windows
sys.modules["fcntl"] = None
for name in ("O_CLOEXEC", "pread", "pwrite", "preadv", "pwritev"):
    delattr(os, name)
import threading
import numpy as np
filelock.lock_descriptor = lambda descriptor, *, blocking: True  # as LockFileEx
import featkit.atomic
featkit.atomic.WINDOWS = True
from featkit import Index
from tests.featkit.index.conftest import unit_vectors
path, vectors = sys.argv[1], unit_vectors(300)
with Index.create(path, model=sys.argv[2]) as index:
    index.add([str(i) for i in range(300)], vectors)
    index.remove(["7"])
found = []
with Index.open(path) as index:
    def ask(first):
        for i in range(first, 300, 4):
            (hit,) = index.search(vectors=vectors[i : i + 1], k=1)[0]
            found.append((hit.key == str(i) and hit.score > 0.999) != (i == 7))
            found.append(i == 7 or np.array_equal(index.vector(i), vectors[i]))
    threads = [threading.Thread(target=ask, args=[first]) for first in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
print(len(found), all(found))
"""


def test_an_index_works_without_unix_features(tmp_path: Path) -> None:
    model = make_model_file(tmp_path / "m.onnx", width=16)
    assert run_python(WITHOUT_UNIX, tmp_path / "i", model) == (0, "600 True\n", "")
