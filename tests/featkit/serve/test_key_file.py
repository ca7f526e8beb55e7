"""The file of keys is whole, private and checked, whoever writes and reads it."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from featkit.errors import EnvironmentProblem, InputError
from featkit.lock import AlreadyLocked, WriterLock
from featkit.serve.keys import create_key, read_keys, revoke_key
from featkit.serve.rates import Rate
from tests.commands import REPOSITORY
from tests.fuzzing import CASES, fuzz

LATER = datetime(2100, 1, 1, tzinfo=UTC)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "featkit-keys.json"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_only_the_owner_may_read_the_file(file: Path) -> None:
    before = os.umask(0)
    try:
        create_key(file, "web")
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        file.chmod(0o644)
        create_key(file, "group")
        assert stat.S_IMODE(file.stat().st_mode) == 0o640  # the group could read it before
    finally:
        os.umask(before)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
def test_the_owner_of_the_file_stays_its_owner(file: Path) -> None:
    create_key(file, "web")
    os.chown(file, 12345, 23456)
    revoke_key(file, "web")
    assert (file.stat().st_uid, file.stat().st_gid) == (12345, 23456)


def test_a_link_to_the_file_stays_a_link(file: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    file.symlink_to(tmp_path / "real" / "keys.json")
    create_key(file, "web")
    assert file.is_symlink()
    assert [key.name for key in read_keys(tmp_path / "real" / "keys.json")] == ["web"]


def test_a_missing_file_names_the_command_for_it(file: Path) -> None:
    for use in (read_keys, lambda path: revoke_key(path, "web")):
        with pytest.raises(InputError, match="does not exist; create a key: featkit keys create"):
            use(file)
    assert [*file.parent.iterdir()] == []


def test_a_pipe_or_a_folder_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(InputError, match="is not a file"):
            read_keys(path)


def test_only_one_process_changes_the_file_at_a_time(file: Path) -> None:
    create_key(file, "web")
    lock = WriterLock(file.with_name(f"{file.name}.lock"))
    with pytest.raises(AlreadyLocked):
        create_key(file, "late")
    lock.release()
    create_key(file, "late")


def test_no_change_of_eight_threads_is_lost(file: Path) -> None:
    def create(name: str) -> None:
        while True:
            try:
                create_key(file, name)
                return
            except AlreadyLocked:
                pass

    threads = [threading.Thread(target=create, args=(f"key{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(key.name for key in read_keys(file)) == [f"key{n}" for n in range(8)]


def test_a_full_disk_leaves_the_file_as_it_was(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_key(file, "web")
    before = file.read_bytes()

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("featkit.atomic.os.fsync", no_space)
    with pytest.raises(EnvironmentProblem, match="No space left"):
        create_key(file, "more")
    assert file.read_bytes() == before
    assert sorted(path.name for path in file.parent.iterdir()) == [
        "featkit-keys.json",
        "featkit-keys.json.lock",
    ]


def valid(path: Path) -> dict[str, list[dict[str, object]]]:
    create_key(path, "web", expires=LATER, image_rate=Rate(per_second=1, burst=2))
    content: dict[str, list[dict[str, object]]] = json.loads(path.read_text("utf-8"))
    return content


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", "XYZ"),
        ("id", "b5f02f3a\n"),
        ("name", ""),
        ("name", "a\x1b[2J"),
        ("scopes", []),
        ("scopes", ["root"]),
        ("scopes", "read"),
        ("created", "yesterday"),
        ("expires", "2100-01-01T00:00:00"),  # without a time zone
        ("expires", 5),
        ("hash", ""),
        ("hash", "0" * 63),
        ("salt", "0" * 31 + "g"),
        ("image_rate", {"per_second": 0, "burst": 1}),
        ("image_rate", {"per_second": float("nan"), "burst": 1}),
        ("image_rate", {"per_second": 1e999, "burst": 1}),
        ("image_rate", {"per_second": True, "burst": 1}),
        ("unknown", 1),
    ],
)
def test_a_damaged_field_is_named(file: Path, field: str, value: object) -> None:
    content = valid(file)
    secret = str(content["keys"][0]["hash"])
    content["keys"][0][field] = value
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match=rf"a valid file of API keys \(keys\.0\.{field}") as said:
        read_keys(file)
    assert secret not in str(said.value)


def test_two_keys_of_one_id_or_name_are_refused(file: Path) -> None:
    content = valid(file)
    for change, field in (({"name": "other"}, "id"), ({"id": "00000000"}, "name")):
        keys = [content["keys"][0], content["keys"][0] | change]
        file.write_text(json.dumps({"format": 1, "keys": keys}), encoding="utf-8")
        with pytest.raises(InputError, match=f"two keys have the same {field}"):
            read_keys(file)


def test_a_later_format_asks_for_an_update(file: Path) -> None:
    file.write_text('{"format": 2, "keys": [], "more": 1}', encoding="utf-8")
    with pytest.raises(InputError, match="later version of featkit; update featkit"):
        read_keys(file)


@pytest.mark.parametrize("cases", CASES)
def test_any_bytes_are_keys_or_refused(cases: int, file: Path, tmp_path: Path) -> None:
    create_key(file, "web", expires=LATER, image_rate=Rate(per_second=1, burst=2))
    create_key(file, "other")
    seeds = [file.read_bytes(), b'{"format": 1, "keys": []}']
    damaged = tmp_path / "damaged.json"

    def parse(content: bytes) -> object:
        damaged.write_bytes(content)
        return read_keys(damaged)

    fuzz(parse, seeds, cases=cases)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"[" * 100_000, b'{"a":' * 100_000])
def test_another_kind_of_content_is_refused(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(InputError, match="is not a valid file of API keys"):
        read_keys(file)


def test_a_file_that_is_too_large_is_not_parsed(file: Path) -> None:
    with file.open("wb") as written:
        written.truncate(2**40)
    with pytest.raises(InputError, match="more than 16,777,216 bytes"):
        read_keys(file)


KILLED = """
import os, sys
from pathlib import Path
from featkit.serve import keys
replace = Path.replace
Path.replace = lambda *arguments: os._exit(9)
keys.create_key(Path(sys.argv[1]), "second")
"""


def test_a_killed_writer_leaves_the_file_as_it_was(file: Path) -> None:
    create_key(file, "first")
    done = subprocess.run([sys.executable, "-c", KILLED, file], cwd=REPOSITORY, check=False)
    assert done.returncode == 9
    assert [key.name for key in read_keys(file)] == ["first"]
    create_key(file, "third")  # its lock is gone with it
    assert [key.name for key in read_keys(file)] == ["first", "third"]


def test_an_unreadable_file_is_an_environment_problem(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_key(file, "web")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(EnvironmentProblem, match="cannot be read: Permission denied"):
        read_keys(file)
