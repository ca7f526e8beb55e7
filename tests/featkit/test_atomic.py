"""Files and folders appear complete or not at all, however their writing ends."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import threading
from pathlib import Path

import pytest

from featkit import atomic
from featkit.atomic import (
    TEMPORARY_MARK,
    explain_os_errors,
    remove_partials,
    replace_file,
    replace_folder,
    write_text,
)
from featkit.errors import EnvironmentProblem
from tests.processes import run_python, start_python
from tests.sentences import refused

FULL = Path("/dev/full")
WRITE_HALF = """
import sys
from pathlib import Path
from featkit.atomic import replace_file, replace_folder
path = Path(sys.argv[1])
with replace_file(path) if sys.argv[2] == "file" else replace_folder(path) as temporary:
    (temporary if sys.argv[2] == "file" else temporary / "part").write_text("half")
    print("half", flush=True)
    sys.stdin.readline()
"""


def names(folder: Path) -> list[str]:
    """Return the names in a folder."""
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def fsynced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """Record every fsync: the name of its file or folder, and the names in the folder at that
    moment."""
    calls: list[tuple[str, list[str]]] = []
    fsync = os.fsync

    def recorded(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        calls.append(
            (path.name.split(TEMPORARY_MARK)[0], names(path if path.is_dir() else path.parent))
        )
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded)
    return calls


def test_a_file_is_replaced_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "x.json"
    for text in ("first", "second"):
        before = path.read_text() if path.exists() else None
        with replace_file(path) as temporary:
            assert temporary.parent == path.parent  # rename works only within one file system
            temporary.write_text(text)
            assert (path.read_text() if path.exists() else None) == before
        assert path.read_text() == text
    assert names(path.parent) == ["x.json"]


@pytest.mark.skipif(
    not Path("/proc/self/fd").exists(), reason="the system does not show what a descriptor is of"
)
def test_a_file_is_flushed_before_its_folder(
    tmp_path: Path, fsynced: list[tuple[str, list[str]]]
) -> None:
    write_text(tmp_path / "x", "text")
    assert [name for name, _ in fsynced] == ["x", tmp_path.name]
    assert [beside == ["x"] for _, beside in fsynced] == [False, True]


@pytest.mark.skipif(
    not Path("/proc/self/fd").exists(), reason="the system does not show what a descriptor is of"
)
def test_a_folder_is_flushed_before_it_is_renamed(
    tmp_path: Path, fsynced: list[tuple[str, list[str]]]
) -> None:
    with replace_folder(tmp_path / "x") as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "b").write_text("b")
        (temporary / "a").write_text("a")
    assert [name for name, _ in fsynced] == ["a", "sub", "b", "x", tmp_path.name]
    assert fsynced[-1][1] == ["x"]
    assert names(tmp_path / "x") == ["a", "sub"]


def end_after_half(path: Path, error: type[BaseException]) -> None:
    """Write something and raise."""
    path.write_text("half")
    raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, MemoryError])
def test_an_exception_leaves_everything_unchanged(
    tmp_path: Path, error: type[BaseException]
) -> None:
    write_text(tmp_path / "x", "old")
    for path, replace, part in (
        ("x", replace_file, "."),
        ("y", replace_file, "."),
        ("z", replace_folder, "part"),
    ):
        with pytest.raises(error), replace(tmp_path / path) as temporary:
            end_after_half(temporary / part, error)
    assert names(tmp_path) == ["x"]
    assert (tmp_path / "x").read_text() == "old"


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_killed_writer_leaves_only_a_partial_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "file":
        write_text(path, "old")
    write_text(tmp_path / "other", "kept")
    before = names(tmp_path)
    writer = start_python(WRITE_HALF, path, kind, stdin=subprocess.PIPE)
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "half\n"
    finally:
        writer.kill()
        writer.communicate(timeout=60)
    assert writer.returncode == -signal.SIGKILL
    (left,) = set(names(tmp_path)) - set(before)
    assert left.startswith(f"x{TEMPORARY_MARK}")
    remove_partials(tmp_path)
    assert names(tmp_path) == before
    assert kind == "folder" or path.read_text() == "old"


def test_remove_partials_touches_nothing_deeper(tmp_path: Path) -> None:
    deep = tmp_path / "sub" / f"x{TEMPORARY_MARK}0123"
    deep.parent.mkdir()
    deep.touch()
    remove_partials(tmp_path)
    assert deep.exists()
    remove_partials(deep.parent)
    remove_partials(deep.parent)
    assert names(deep.parent) == []


def test_writers_of_one_file_do_not_mix(tmp_path: Path) -> None:
    path, texts = tmp_path / "x", [letter * 50_000 for letter in "abcd"]
    write_text(path, texts[0])

    def write_often(text: str) -> None:
        for _ in range(10):
            write_text(path, text)

    threads = [threading.Thread(target=write_often, args=[text]) for text in texts]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert path.read_text() in texts
    assert path.read_text() in texts
    assert names(tmp_path) == ["x"]


def test_text_is_written_in_utf_8(tmp_path: Path) -> None:
    write_text(tmp_path / "x", "é 猫\n")
    assert (tmp_path / "x").read_bytes() == "é 猫\n".encode()


@pytest.mark.skipif(
    not FULL.exists(), reason="the system has no /dev/full, which fails like a full disk"
)
def test_a_full_disk_is_named_and_nothing_stays(tmp_path: Path) -> None:
    with (
        refused(
            f"No space left to write {tmp_path}/x; free some space, or choose another path.",
            error=EnvironmentProblem,
        ),
        replace_file(tmp_path / "x") as temporary,
    ):
        temporary.symlink_to(FULL)
        temporary.write_text("x" * 100_000)
    with (
        refused(f"No space left to write {tmp_path}/y; free some", error=EnvironmentProblem),
        replace_folder(tmp_path / "y") as temporary,
    ):
        (temporary / "part").symlink_to(FULL)
        (temporary / "part").write_text("x" * 100_000)
    assert names(tmp_path) == []


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder" / "full").mkdir(parents=True)
    for name, reason in (
        ("file/x", "Not a directory"),
        ("folder", "Is a directory"),
        ("n" * 300, "File name too long"),
    ):
        with refused(
            f"{tmp_path / name} cannot be written: {reason}; choose another path.",
            error=EnvironmentProblem,
        ):
            write_text(tmp_path / name, "text")
    with (
        refused(f"{tmp_path}/file/x cannot be written: Not a directory", error=EnvironmentProblem),
        replace_folder(tmp_path / "file" / "x"),
    ):
        pass
    assert names(tmp_path) == ["file", "folder"]


@pytest.mark.parametrize("name", ["x", "new/x"])
def test_a_folder_without_permission_is_named(tmp_path: Path, name: str) -> None:
    place = tmp_path / "place"
    place.mkdir(mode=0o555)
    code = (
        "import sys; from pathlib import Path; from featkit.atomic import write_text;"
        " write_text(Path(sys.argv[1]), 'text')"
    )
    status, _, error = run_python(code, place / name, ordinary_user=True)
    assert status == 1
    expected = (
        f"featkit.errors.EnvironmentProblem: {place / name} cannot be written: Permission denied;"
        " choose another path."
    )
    assert error.splitlines()[-1] == expected
    assert names(place) == []


def test_other_errors_pass_through() -> None:
    for number in (errno.ENOENT, errno.EPIPE, errno.EAGAIN):
        with (
            pytest.raises(OSError, match=os.strerror(number)) as caught,
            explain_os_errors(Path("x")),
        ):
            raise OSError(number, os.strerror(number))
        assert caught.value.errno == number


@pytest.mark.skipif(
    not Path("/proc/self/fd").exists(), reason="the system does not show what a descriptor is of"
)
def test_windows_flushes_files_but_not_folders(
    tmp_path: Path, fsynced: list[tuple[str, list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic, "WINDOWS", True)
    write_text(tmp_path / "x", "text")
    with replace_folder(tmp_path / "y") as temporary:
        (temporary / "a").write_text("a")
    assert [name for name, _ in fsynced] == ["x", "a"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
def test_fsync_of_folders_is_optional(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    fsync = os.fsync

    def refuse_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    if number == errno.EIO:  # a failed disk is not a missing feature
        with refused(tmp_path / "x", error=EnvironmentProblem):
            write_text(tmp_path / "x", "text")
    else:
        write_text(tmp_path / "x", "text")
        assert names(tmp_path) == ["x"]


def test_a_file_that_cannot_be_flushed_is_not_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_descriptor: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="Invalid argument"):
        write_text(tmp_path / "x", "text")
    assert names(tmp_path) == []
