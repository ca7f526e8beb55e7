"""Opening a path that is not an index, or an index that is damaged, forbidden or busy."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from featkit.cli.app import main
from featkit.errors import EnvironmentProblem, InputError
from featkit.index import Index
from tests.featkit.index.conftest import unit_vectors
from tests.processes import run_python, start_python


def lose_vectors(path: Path) -> None:
    os.truncate(path / "vectors.f32", 99 * 16 * 4)


def remove_vectors(path: Path) -> None:
    (path / "vectors.f32").unlink()


def make_newer(path: Path) -> None:
    with sqlite3.connect(path / "catalogue.sqlite") as connection:
        connection.execute("PRAGMA user_version = 4")
    connection.close()


def put_text(path: Path) -> None:
    (path / "catalogue.sqlite").write_text("no database " * 1000)


def put_nothing(path: Path) -> None:
    (path / "catalogue.sqlite").write_bytes(b"")


def put_other_database(path: Path) -> None:
    (path / "catalogue.sqlite").unlink()
    with sqlite3.connect(path / "catalogue.sqlite") as connection:
        connection.execute("CREATE TABLE settings (name, value)")
    connection.close()


def halve_catalogue(path: Path) -> None:
    os.truncate(path / "catalogue.sqlite", 8192)


def empty_folder(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (shutil.rmtree, "does not exist; make an index with `featkit index`"),
        (empty_folder, "is not a featkit index: it has no catalogue.sqlite"),
        (put_text, "is damaged or not a catalogue"),
        (put_nothing, "is not the catalogue of a featkit index"),
        (put_other_database, "is not the catalogue of a featkit index"),
        (halve_catalogue, "is damaged or not a catalogue"),
        (make_newer, "has format 4; this featkit reads formats up to 3. Update featkit"),
        (
            lose_vectors,
            r"vectors.f32 is truncated: it has 6,336 bytes, but 100 vectors of 16 dimensions take",
        ),
        (remove_vectors, "vectors.f32 is missing"),
    ],
)
@pytest.mark.parametrize("writable", [False, True])
def test_incomplete_indexes_are_refused(
    photos: Path, harm: Callable[[Path], None], words: str, writable: bool
) -> None:
    harm(photos)
    with pytest.raises(InputError, match=words) as caught:
        Index.open(photos, writable=writable)
    assert str(photos) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_is_not_an_index(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is not a featkit index"):
        Index.open(tmp_path / "file")


def test_create_refuses_an_existing_path(photos: Path, model: Path) -> None:
    with pytest.raises(InputError, match="already exists"):
        Index.create(photos, model=model)
    with Index.open(photos) as index:
        assert len(index) == 100


def test_create_with_an_invalid_model_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("no model")
    with pytest.raises(InputError, match="is not a featkit model file"):
        Index.create(tmp_path / "i", model=tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_a_second_writer_learns_who_holds_the_index(photos: Path) -> None:
    with Index.open(photos, writable=True) as first:
        with pytest.raises(
            EnvironmentProblem, match=rf"is being written by process {os.getpid()} on .+; wait"
        ) as caught:
            Index.open(photos, writable=True)
        assert str(photos) in str(caught.value)
        assert first.add(["new"], unit_vectors(1)) == [100]
    with Index.open(photos, writable=True) as second:
        assert len(second) == 101


def test_a_writer_that_fails_to_open_holds_no_lock(photos: Path) -> None:
    vectors = (photos / "vectors.f32").read_bytes()
    lose_vectors(photos)
    for _ in range(2):
        with pytest.raises(InputError, match="truncated"):
            Index.open(photos, writable=True)
    (photos / "vectors.f32").write_bytes(vectors)
    with Index.open(photos, writable=True) as index:
        assert len(index) == 100


def test_an_index_open_for_reading_refuses_changes(photos: Path) -> None:
    with Index.open(photos) as index:
        with pytest.raises(ValueError, match="writable=True"):
            index.add(["a"], unit_vectors(1))
        with pytest.raises(ValueError, match="writable=True"):
            index.remove(["1.jpg"])


OPEN_AND_SEARCH = """
import sys
from featkit.errors import FeatkitError
from featkit.index import Index
try:
    with Index.open(sys.argv[1], writable=sys.argv[2] == "True") as index:
        print(len(index), [hit.id for hit in index.search(item=3, k=1)])
except FeatkitError as error:
    print(error)
    sys.exit(error.exit_code)
"""


@pytest.fixture
def read_only(photos: Path) -> Path:
    """The index of `photos`, whose folder and files are read-only."""
    for path in photos.iterdir():
        path.chmod(0o444)
    photos.chmod(0o555)
    return photos


def test_a_read_only_index_can_be_searched(read_only: Path) -> None:
    before = sorted(path.name for path in read_only.iterdir())
    assert run_python(OPEN_AND_SEARCH, read_only, False, ordinary_user=True) == (0, "100 [3]\n", "")
    assert sorted(path.name for path in read_only.iterdir()) == before


def test_a_read_only_index_cannot_be_written(read_only: Path) -> None:
    status, out, _ = run_python(OPEN_AND_SEARCH, read_only, True, ordinary_user=True)
    assert (status, out.count("\n")) == (3, 1)
    assert f"{read_only}/writer.lock cannot be written" in out


def test_a_reader_without_write_access_follows_a_writer(photos: Path) -> None:
    with Index.open(photos, writable=True) as index:
        index.add(["new"], unit_vectors(1))
        for path in photos.iterdir():
            path.chmod(0o444)
        photos.chmod(0o555)
        assert run_python(OPEN_AND_SEARCH, photos, False, ordinary_user=True) == (
            0,
            "101 [3]\n",
            "",
        )
        photos.chmod(0o755)


def test_a_reader_without_write_access_sees_later_writes(photos: Path) -> None:
    code = """
import sys
from featkit.index import Index
with Index.open(sys.argv[1]) as index:
    print(len(index), flush=True)
    sys.stdin.readline()
    print(len(index), flush=True)
"""
    photos.chmod(0o555)
    process = start_python(code, photos, ordinary_user=True, stdin=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "100\n"
    photos.chmod(0o755)
    with Index.open(photos, writable=True) as index:
        index.add(["new"], unit_vectors(1))
    photos.chmod(0o555)
    out, error = process.communicate("\n", timeout=60)
    photos.chmod(0o755)
    assert (out, error) == ("101\n", "")


def test_a_folder_without_permission_is_named(photos: Path) -> None:
    photos.chmod(0)
    status, out, _ = run_python(OPEN_AND_SEARCH, photos, False, ordinary_user=True)
    photos.chmod(0o755)
    assert (status, out) == (3, f"{photos} cannot be read: Permission denied; ask its owner.\n")


def test_create_needs_a_writable_folder(tmp_path: Path, model: Path) -> None:
    code = """
import sys
from featkit.errors import FeatkitError
from featkit.index import Index
try:
    Index.create(sys.argv[1], model=sys.argv[2])
except FeatkitError as error:
    print(error)
    sys.exit(error.exit_code)
"""
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o555)
    status, out, _ = run_python(code, folder / "i", model, ordinary_user=True)
    assert (status, out.count("\n")) == (3, 1)
    assert "cannot be written: Permission denied" in out
    assert list(folder.iterdir()) == []


def test_the_command_exits_with_the_errors_code(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", str(photos / "nothing"), "query.jpg"]) == 2
    assert "does not exist" in capsys.readouterr().err
    with Index.open(photos, writable=True):
        assert main(["index", str(photos), "--out", str(photos)]) == 2  # not an embeddings folder
    np.testing.assert_array_equal(
        np.fromfile(photos / "vectors.f32", "<f4").reshape(-1, 16), unit_vectors(100)
    )
