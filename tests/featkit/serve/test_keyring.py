"""A running service follows its file of keys, and accepts no key if it cannot."""

from __future__ import annotations

import json
import logging
import os
import threading
from pathlib import Path

import pytest

from featkit.errors import InputError
from featkit.serve.keyring import SETTLED_AFTER_S, Keyring, KeysUnreadable
from featkit.serve.keys import create_key, read_keys, revoke_key
from featkit.serve.rates import Rate


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def settle(path: Path) -> None:
    """Let the file be as old as one that nobody changes any more."""
    past = path.stat().st_mtime - 10 * SETTLED_AFTER_S
    os.utime(path, (past, past))


def test_new_and_revoked_keys_count_at_once(file: Path) -> None:
    first = create_key(file, "first")
    ring = Keyring(file)
    held = ring.find(first.encode())
    assert held is not None
    assert held.key.name == "first"
    for is_old in (False, True):
        second = create_key(file, "second")
        if is_old:
            settle(file)
        assert ring.find(second.encode()) is not None
        revoke_key(file, "second")
        if is_old:
            settle(file)
        assert ring.find(second.encode()) is None
    assert ring.find(first.encode()) is not None


def test_a_change_that_keeps_size_and_time_is_seen(file: Path) -> None:
    first = create_key(file, "a")
    other = create_key(file.with_name("other.json"), "b")
    swapped = file.with_name("other.json").read_bytes()
    ring = Keyring(file)
    assert ring.find(first.encode()) is not None
    status = file.stat()
    assert status.st_size == len(swapped)
    file.write_bytes(swapped)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (ring.find(first.encode()), ring.find(other.encode()) is None) == (None, False)


def test_a_file_that_stays_the_same_is_read_once(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = create_key(file, "web").encode()
    settle(file)
    ring = Keyring(file)
    reads: list[Path] = []

    def note(path: Path) -> object:
        reads.append(path)
        return read_keys(path)

    monkeypatch.setattr("featkit.serve.keyring.read_keys", note)
    assert all(ring.find(token) is not None for _ in range(5))
    assert reads == [file]


@pytest.mark.parametrize("damage", ["cut", "empty", "removed", "folder", "binary"])
def test_a_damaged_file_refuses_all_until_mended(
    file: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    token = create_key(file, "web").encode()
    ring = Keyring(file)
    assert ring.find(token) is not None
    content = file.read_bytes()
    file.unlink()
    if damage == "folder":
        file.mkdir()
    elif damage != "removed":
        file.write_bytes({"cut": content[:-10], "empty": b"", "binary": b"\xff\x00"}[damage])
    caplog.clear()
    for _ in range(5):
        with pytest.raises(KeysUnreadable) as said:
            ring.find(token)
        assert str(file) not in str(said.value)
    (line,) = caplog.records
    assert (line.levelno, str(file) in line.getMessage()) == (logging.ERROR, True)
    if damage == "folder":
        file.rmdir()
    file.write_bytes(content)
    assert ring.find(token) is not None


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_a_mounted_file_that_was_replaced_is_refused(file: Path) -> None:
    token = create_key(file, "web").encode()
    settle(file)
    # as a file that is mounted into a container: it stays the one that was opened
    with file.open("rb") as mounted:
        ring = Keyring(Path(f"/proc/self/fd/{mounted.fileno()}"))
        assert ring.find(token) is not None
        create_key(file, "other")
        with pytest.raises(KeysUnreadable):
            ring.find(token)
        with pytest.raises(InputError, match="mount the folder of the file"):
            read_keys(ring.path)


def test_a_read_that_fails_once_is_tried_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = create_key(file, "web").encode()
    settle(file)
    ring = Keyring(file)

    def fail(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", fail)
        with pytest.raises(KeysUnreadable):
            ring.find(token)
    assert ring.find(token) is not None


def test_a_service_does_not_start_with_a_damaged_file(file: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        Keyring(file)
    file.write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="is not a valid file of API keys"):
        Keyring(file)


def test_a_bucket_outlives_a_change_of_other_keys(file: Path) -> None:
    token = create_key(file, "web", image_rate=Rate(per_second=0.001, burst=3)).encode()
    ring = Keyring(file)

    def bucket_takes(amount: int) -> bool:
        held = ring.find(token)
        assert held is not None
        assert held.image_bucket is not None
        assert held.byte_bucket is None
        return held.image_bucket.take(amount) == 0

    assert bucket_takes(3)
    create_key(file, "other")
    assert not bucket_takes(1)
    content = json.loads(file.read_text("utf-8"))
    content["keys"][0]["image_rate"]["burst"] = 4
    file.write_text(json.dumps(content), encoding="utf-8")
    assert bucket_takes(4)


def test_eight_threads_see_each_change(file: Path) -> None:
    token = create_key(file, "web").encode()
    ring = Keyring(file)
    seen: list[list[bool]] = [[] for _ in range(8)]
    stop = threading.Event()

    def look(number: int) -> None:
        while not stop.is_set():
            seen[number].append(ring.find(token) is not None)

    threads = [threading.Thread(target=look, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for number in range(10):
        create_key(file, f"other{number}")
    revoke_key(file, "web")
    assert ring.find(token) is None
    stop.set()
    for thread in threads:
        thread.join()
    for each in seen:  # accepted at first, refused from some moment on
        assert each == sorted(each, reverse=True)
